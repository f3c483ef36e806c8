"""Timing as conversation analysis counts it, laws that recover what made the data, distances that mean something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.corpora.extraction import extract
from envs.corpora.laws import distance, distances, drawn_from, fit, seen_in, timings
from envs.corpora.simulated import simulated
from envs.corpora.timing import Timing, measure
from envs.corpora.utterances import disjoint
from envs.errors import UptakeError
from envs.users.laws import NAMES, Law, load_laws, to_json
from launch.corpora import run_fit
from tests.corpora import write_tones


def timed(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> Timing:
    return measure(
        [[(CLOCK.nearest_sample(on), CLOCK.nearest_sample(off)) for on, off in own] for own in (first, second)]
    )


@pytest.mark.parametrize(
    "first, second, transfers, pauses",
    [
        ([(0, 2)], [(2.3, 5)], [0.3], []),
        ([(0, 2)], [(1.8, 5)], [-0.2], []),
        ([(0, 2)], [(2, 5)], [0.0], []),
        ([(0, 2), (2.5, 4)], [], [], [0.5]),
        ([(0, 2), (2.5, 4)], [(4.2, 6)], [0.2], [0.5]),
        ([(0, 5)], [(1, 3)], [], []),  # speech within the other's is no transfer
        ([(0, 3), (3.3, 6)], [(3.05, 3.2)], [], [0.3]),  # a backchannel interrupts no pause
        ([(0, 3), (6, 9)], [(4, 5)], [1.0, 1.0], []),  # a short turn between two is no backchannel
        ([(0, 2), (7.5, 9)], [], [], []),  # a lapse
    ],
)
def test_transfers_and_pauses_are_those_of_conversation_analysis(
    first: list[tuple[float, float]], second: list[tuple[float, float]], transfers: list[float], pauses: list[float]
) -> None:
    for pair in ((first, second), (second, first)):
        found = timed(*pair)
        assert found.floor_transfers == pytest.approx(transfers)
        assert found.pauses == pytest.approx(pauses)


def test_backchannels_are_counted_by_the_minute_and_timed_from_the_nearest_end() -> None:
    found = timed([(0, 10), (10.5, 20), (20.6, 30)], [(10.2, 10.4), (19.9, 20.3), (26, 27), (40, 41)])
    assert found.backchannel_latencies == pytest.approx([0.2, -0.1, -4.0])
    assert found.backchannels_per_minute == pytest.approx(6.0)
    assert (found.speech, found.both) == (pytest.approx(30.4), pytest.approx(1.1))


intervals = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12).map(
    lambda rows: disjoint([(2400 * on, 2400 * (on + length)) for on, length in rows], 10**7)
)


@given(first=intervals, second=intervals)
@settings(max_examples=60, deadline=None)
def test_timing_is_the_same_with_the_channels_exchanged_and_bounded_by_the_conversation(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    here, there = measure([first, second]), measure([second, first])
    assert sorted(here.floor_transfers) == sorted(there.floor_transfers)
    assert sorted(here.pauses) == sorted(there.pauses)
    assert len(here.backchannel_latencies) == len(there.backchannel_latencies)
    assert all(abs(offset) <= 5.0 for offset in here.floor_transfers)
    assert 0.0 <= here.both <= here.speech


def test_one_speakers_timing_is_its_own_part_of_both() -> None:
    units = [[(0, 2), (2.5, 4), (7, 9)], [(4.2, 6.8)]]
    units = [[(CLOCK.nearest_sample(on), CLOCK.nearest_sample(off)) for on, off in own] for own in units]
    first, second = measure(units, of=0), measure(units, of=1)
    assert first.floor_transfers == pytest.approx([0.2]) and second.floor_transfers == pytest.approx([0.2])
    assert first.pauses == pytest.approx([0.5]) and second.pauses == ()


def normal(mean: float, sd: float, dyad: float = 0.0) -> Law:
    return Law("fto", "normal", (mean, sd), dyad=dyad)


def conversations(law: Law, dyads: int, each: int, seed: int = 0) -> list[Timing]:
    rows = drawn_from(law)(np.random.default_rng(seed), dyads, each)
    return [Timing(tuple(row), (), (), (), None, 0, 1.0, 0.0) for row in rows]


def test_a_fit_recovers_the_law_within_and_between_conversations() -> None:
    found = fit(conversations(normal(0.2, 0.5, 0.1), 200, 100)).laws["fto"]
    assert found.params == (pytest.approx(0.2, abs=0.04), pytest.approx(0.5, abs=0.02))
    assert found.dyad == pytest.approx(0.1, abs=0.04)


def test_conversations_without_a_law_of_their_own_get_no_spread_between_them() -> None:
    assert fit(conversations(normal(0.2, 0.45), 200, 100)).laws["fto"].dyad < 0.01


def test_a_lognormal_is_fitted_by_its_median() -> None:
    law = Law("pause", "lognormal", (0.5, 0.6), dyad=0.1)
    rows = drawn_from(law)(np.random.default_rng(1), 200, 60)
    found = fit([Timing((), tuple(row), (), (), None, 0, 1.0, 0.0) for row in rows]).laws["pause"]
    assert (found.dist, found.params[0]) == ("lognormal", pytest.approx(0.5, abs=0.05))
    assert (found.params[1], found.dyad) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.1, abs=0.04))


def test_a_corpus_too_small_for_a_law_gets_none() -> None:
    found = fit([Timing((0.2,), (), (), (), None, 0, 1.0, 0.0)])
    assert found.laws == {}
    assert set(distances(found, {"fto": drawn_from(normal(0.2, 0.45))})) == {"fto"}
    assert fit([]).figures == {}


def test_the_true_law_is_nearest_and_distance_grows_with_the_shift() -> None:
    observed = fit(conversations(normal(0.2, 0.46, 0.05), 100, 50)).observed["fto"]
    found = [distance("fto", observed, drawn_from(normal(0.2 + shift, 0.46, 0.05))) for shift in (0.0, 0.3, 0.6)]
    assert found[0].ks < 0.06 and found[0].w1 < 0.06
    assert found[0].ks < found[1].ks < found[2].ks
    assert found[1].w1 == pytest.approx(0.3, abs=0.06) and found[2].w1 == pytest.approx(0.6, abs=0.06)
    assert found[1].w1_interval[0] < 0.3 < found[1].w1_interval[1]


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    shift=st.sampled_from([0.0, 0.5, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_the_interval_holds_what_it_is_about_for_few_values_as_for_many(
    seed: int, sizes: list[int], shift: float
) -> None:
    rng = np.random.default_rng(seed)
    observed = [shift + rng.standard_normal(size) for size in sizes]
    same = distance("fto", observed[:1], drawn_from(normal(0.2, 0.45)))  # of one conversation every resampling is it
    assert same.w1_interval == pytest.approx((same.w1, same.w1), rel=0.01, abs=2e-3)
    assert same.ks_interval == pytest.approx((same.ks, same.ks), abs=2e-3)
    alike = distance("fto", [observed[0]] * 5, drawn_from(normal(0.2, 0.45)))
    assert alike.w1_interval == pytest.approx((alike.w1, alike.w1), rel=0.01, abs=2e-3)


def test_pauses_are_compared_where_a_corpus_can_show_them() -> None:
    law = drawn_from(Law("pause", "lognormal", (0.2, 0.5)))
    seen = [row[row >= 0.18] for row in law(np.random.default_rng(5), 100, 60)]
    assert distance("pause", seen, law).ks < 0.05
    assert distance("fto", seen, law).ks > 0.3  # without the floor the same values are far off


def test_what_was_seen_elsewhere_is_compared_as_a_law_is() -> None:
    found = distance("fto", [np.full(10, 0.2), np.full(5, 0.2)], seen_in([np.full(3, 0.5), np.full(1, 0.5)]))
    assert (found.ks, found.w1) == (1.0, pytest.approx(0.3))


def test_a_law_that_draws_nothing_a_corpus_could_show_is_refused() -> None:
    with pytest.raises(UptakeError, match="pause"):
        distance("pause", [np.ones(3)], seen_in([np.zeros(3)]))


def test_a_fit_is_written_as_laws_that_users_take_and_then_time_themselves_by(tmp_path: Path) -> None:
    for number, gap in enumerate((0.9, 1.0, 1.1, 1.2)):  # slow people
        speech = [[(1.0, 3.0), (3.4, 5.0)], [(5.0 + gap, 8.0)]]
        write_tones(tmp_path / "corpus" / f"{number}.wav", speech, 10.0, 8_000)
    (tmp_path / "corpus" / "broken.wav").write_text("no audio")
    with pytest.raises(UptakeError, match=r"no summary\.json"):
        timings(tmp_path / "out")
    extract(tmp_path / "corpus", tmp_path / "out")
    run_fit(tmp_path / "out", None)
    report, written = json.loads((tmp_path / "out/fit.json").read_text()), tmp_path / "out/laws.json"
    assert report["conversations"] == 4 and report["observations"]["fto"] == 4
    assert report["distances"]["simulated users"]["fto"]["w1"] > 0.5 > report["distances"]["its own laws"]["fto"]["w1"]
    learned = load_laws(str(written))
    assert set(learned) == set(NAMES) and learned["entry"] == load_laws()["entry"]  # of what it says nothing about
    assert learned["fto"].params[0] == pytest.approx(1.05, abs=0.02)
    assert learned["pause"].params[0] == pytest.approx(0.4, abs=0.02)
    (tmp_path / "again.json").write_text(json.dumps(to_json(learned, "again")))
    assert load_laws(str(tmp_path / "again.json")) == learned

    realised = fit(simulated(str(written), 13)).observed["fto"]
    corpus = fit(timings(tmp_path / "out"))
    near = distance("fto", corpus.observed["fto"], seen_in(realised)).w1
    assert near < 0.7 * report["distances"]["simulated users"]["fto"]["w1"]


def test_the_grid_of_the_resamplings_agrees_with_the_exact_distance() -> None:
    observed = fit(conversations(normal(0.1, 0.6), 1, 3000)).observed["fto"]
    found = distance("fto", observed, drawn_from(normal(0.2, 0.45)))  # one conversation: every resampling is it
    assert found.ks_interval == pytest.approx((found.ks, found.ks), abs=2e-3)
    assert found.w1_interval == pytest.approx((found.w1, found.w1), rel=0.01)

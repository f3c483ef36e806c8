"""Timing as conversation analysis counts it, laws that recover what made the data, distances that mean something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.corpora.extraction import extract
from envs.corpora.laws import HUMAN, UNITS, Law, distance, distances, fit, load_laws, timings, to_json
from envs.corpora.timing import Timing, measure
from envs.corpora.utterances import disjoint
from envs.errors import UptakeError
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


def conversations(law: Law, dyads: int, each: int, seed: int = 0) -> list[Timing]:
    rows = law.draw(np.random.default_rng(seed), dyads, each)
    return [Timing(tuple(row), (), (), (), None, 0, 1.0, 0.0) for row in rows]


def test_a_fit_recovers_the_law_within_and_between_conversations() -> None:
    found = fit(conversations(Law("normal", 0.2, 0.45, 0.15), 200, 100)).laws["floor_transfer"]
    assert found.location == pytest.approx(0.2, abs=0.04)
    assert found.spread == pytest.approx(0.45, abs=0.02)
    assert found.dyad == pytest.approx(0.15, abs=0.04)


def test_conversations_without_a_law_of_their_own_get_no_spread_between_them() -> None:
    found = fit(conversations(Law("normal", 0.2, 0.45), 200, 100)).laws["floor_transfer"]
    assert found.dyad < 0.03


def test_a_lognormal_is_fitted_by_its_median() -> None:
    rows = Law("lognormal", 0.5, 0.6, 0.2).draw(np.random.default_rng(1), 200, 60)
    found = fit([Timing((), tuple(row), (), (), None, 0, 1.0, 0.0) for row in rows]).laws["pause"]
    assert (found.family, found.location) == ("lognormal", pytest.approx(0.5, abs=0.05))
    assert (found.spread, found.dyad) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.2, abs=0.05))


def test_a_corpus_too_small_for_a_law_gets_none() -> None:
    found = fit([Timing((0.2,), (), (), (), None, 0, 1.0, 0.0)])
    assert found.laws == {}
    assert set(distances(found, HUMAN)) == {"floor_transfer"}
    assert fit([]).figures == {}


def test_the_true_law_is_nearest_and_distance_grows_with_the_shift() -> None:
    true = Law("normal", 0.2, 0.45, 0.1)
    observed = fit(conversations(true, 100, 50)).observed["floor_transfer"]
    found = [distance("floor_transfer", observed, replace(true, location=0.2 + shift)) for shift in (0.0, 0.3, 0.6)]
    assert found[0].ks < 0.06 and found[0].w1 < 0.06
    assert found[0].ks < found[1].ks < found[2].ks
    assert found[1].w1 == pytest.approx(0.3, abs=0.06) and found[2].w1 == pytest.approx(0.6, abs=0.06)
    for one in found:
        assert one.w1_interval[0] <= one.w1_interval[1]
    assert found[1].w1_interval[0] < 0.3 < found[1].w1_interval[1]


def test_pauses_are_compared_where_a_corpus_can_show_them() -> None:
    law = Law("lognormal", 0.2, 0.5)
    drawn = law.draw(np.random.default_rng(5), 100, 60)
    seen = [row[row >= 0.18] for row in drawn]
    assert distance("pause", seen, law).ks < 0.05
    assert distance("floor_transfer", seen, law).ks > 0.3  # without the floor the same values are far off


def test_any_object_that_draws_is_a_law() -> None:
    class Always:
        def draw(self, rng: np.random.Generator, dyads: int, each: int) -> np.ndarray:
            return np.full((dyads, each), 0.5)

    found = distance("floor_transfer", [np.full(10, 0.2), np.full(5, 0.2)], Always())
    assert (found.ks, found.w1) == (1.0, pytest.approx(0.3))


def test_a_law_that_draws_nothing_a_corpus_could_show_is_refused() -> None:
    with pytest.raises(UptakeError, match="pause"):
        distance("pause", [np.ones(3)], Law("normal", 0.0, 0.0))


def test_the_literatures_laws_give_the_literatures_figures() -> None:
    drawn = {name: law.draw(np.random.default_rng(0), 400, 100).ravel() for name, law in HUMAN.items()}
    assert set(drawn) == set(UNITS)
    assert (drawn["floor_transfer"] < 0).mean() == pytest.approx(1 / 3, abs=0.02)
    assert (drawn["overlap"] < 0.374).mean() == pytest.approx(0.75, abs=0.01)
    assert (drawn["backchannel_rate"].min(), np.median(drawn["backchannel_rate"])) == (0.0, pytest.approx(6.0, abs=0.5))


@pytest.mark.parametrize(
    "change",
    [{"family": "gamma"}, {"spread": -1.0}, {"location": float("nan")}, {"family": "lognormal", "location": 0.0}],
)
def test_an_impossible_law_is_refused(change: dict) -> None:
    with pytest.raises(UptakeError, match="law"):
        replace(Law("normal", 0.2, 0.4), **change)


def test_a_fit_of_a_corpus_is_written_and_can_be_given_again(tmp_path: Path) -> None:
    for number, gap in enumerate((0.1, 0.3)):
        speech = [[(1.0, 3.0), (3.4, 5.0)], [(5.0 + gap, 8.0)]]
        write_tones(tmp_path / "corpus" / f"{number}.wav", speech, 10.0, 8_000)
    (tmp_path / "corpus" / "broken.wav").write_text("no audio")
    with pytest.raises(UptakeError, match=r"no summary\.json"):
        timings(tmp_path / "out")
    extract(tmp_path / "corpus", tmp_path / "out")
    learned = fit(timings(tmp_path / "out"))
    assert learned.conversations == 2
    assert learned.laws["floor_transfer"].location == pytest.approx(0.2, abs=0.02)
    assert learned.laws["pause"].location == pytest.approx(0.4, abs=0.02)
    content = to_json(learned, {"literature": distances(learned, HUMAN)})
    (tmp_path / "laws.json").write_text(json.dumps(content))
    assert load_laws(tmp_path / "laws.json") == learned.laws


@pytest.mark.parametrize("text", ["{", "[]", '{"laws": {"speed": {}}}', '{"laws": {"pause": {"median": 1}}}'])
def test_a_malformed_file_of_laws_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "laws.json").write_text(text)
    with pytest.raises(UptakeError, match=r"laws\.json"):
        load_laws(tmp_path / "laws.json")


def test_the_grid_of_the_resamplings_agrees_with_the_exact_distance() -> None:
    observed = fit(conversations(Law("normal", 0.1, 0.6), 1, 3000)).observed["floor_transfer"]
    found = distance("floor_transfer", observed, HUMAN["floor_transfer"])  # one conversation: every resampling is it
    assert found.ks_interval == pytest.approx((found.ks, found.ks), abs=2e-3)
    assert found.w1_interval == pytest.approx((found.w1, found.w1), rel=0.01)

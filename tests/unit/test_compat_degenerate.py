"""Which published figures reward an agent that does the same whatever it hears.

`docs/measures.md` says so with figures of the core pack; here it holds on one conversation with every kind of event, so
that a change of a definition cannot quietly make that page wrong.
"""

from __future__ import annotations

import math
from functools import lru_cache

import pytest

from rewards.compat import EVALUATORS
from tests.unit.test_rewards_episodes import conversation, event, words

SECONDS = 40.0
SCRIPT = [
    event("A1", 1.0, 5.0),
    event("B1", 2.5, 3.5),
    event("C1", 7.0, 8.2, sem=7.5),
    event("D1", 10.5, 10.9),
    event("B7", 14.0, 26.0, bc0=16.5, bc1=18.2, bc2=22.7),
    event("A3", 14.0, 26.0),
    event("D3", 28.4, 28.7),
    event("D5", 31.0, 32.0),
    event("A1", 34.0, 36.0),
]
AGENTS = {
    "silent": [],
    "always": [(0.0, SECONDS)],
    "metronome": [(on, on + 1.0) for on in range(2, 40, 3)],
    "murmurs": [(on, on + 0.4) for on in range(0, 39, 2)],
    "oracle": [(5.3, 7.8), (8.5, 12.8), (16.7, 17.1), (18.4, 18.8), (22.9, 23.3), (26.3, 30.5), (36.3, 38.0)],
}


@lru_cache
def figures(name: str, agent: str, fixed: bool = False) -> dict[str, float]:
    """An evaluator's figures of an agent, as coded or with all bugs off; the agent says "la" every 0.3 s."""
    said = [w for on, off in AGENTS[agent] for w in words(" ".join(["la"] * max(1, int((off - on) / 0.3))), on, 0.3)]
    episode = conversation(AGENTS[agent], SCRIPT, seconds=SECONDS, transcript=said)
    evaluator = EVALUATORS[name]
    run = {"s": [evaluator.measurement(episode, None, () if fixed else evaluator.bugs)]}
    return {figure: one.estimate for figure, one in evaluator.intervals(run, draws=1).items()}


def test_full_duplex_bench_gives_constant_talk_perfect_turns_and_instant_answers() -> None:
    always, oracle = figures("fdb_v1", "always"), figures("fdb_v1", "oracle")
    assert always["turn_tor"] == oracle["turn_tor"] == 1.0
    assert always["turn_latency"] == 0.0 < oracle["turn_latency"]
    assert always["interruption_tor"] == 1.0
    assert always["interruption_latency"] < oracle["interruption_latency"]
    fixed = figures("fdb_v1", "always", fixed=True)
    assert (fixed["turn_tor"], fixed["interruption_tor"], fixed["pause_tor"]) == (0.0, 0.0, 1.0)
    assert figures("fdb_v1", "oracle", fixed=True)["turn_tor"] == 1.0


def test_full_duplex_bench_gives_silence_perfect_pauses_and_monologues_whatever_is_fixed() -> None:
    for fixed in (False, True):
        silent = figures("fdb_v1", "silent", fixed)
        assert (silent["pause_tor"], silent["backchannel_tor"]) == (0.0, 0.0)
        assert silent["turn_tor"] == 0.0, "another task of the benchmark says it, a single column does not"


def test_the_distance_to_listeners_prefers_more_backchannels_to_better_ones_until_the_control_is_beside_it() -> None:
    murmurs, oracle = figures("fdb_v1", "murmurs"), figures("fdb_v1", "oracle")
    assert murmurs["backchannel_rate"] > oracle["backchannel_rate"]
    assert murmurs["backchannel_jsd"] < oracle["backchannel_jsd"]
    better = {agent: figures("fdb_v1", agent, True) for agent in ("murmurs", "oracle")}
    gain = {a: f["backchannel_jsd_random"] - f["backchannel_jsd"] for a, f in better.items()}
    assert gain["oracle"] > 0.1 > gain["murmurs"]


def test_version_15_lets_an_agent_that_never_stops_stop_with_the_user() -> None:
    always = figures("fdb_v15", "always")
    assert always["user_interruption_stop"] == pytest.approx(1.2)  # the barge-in's own length
    assert always["user_interruption_stop"] == pytest.approx(always["user_interruption_stop_control"], abs=0.05)
    assert math.isnan(figures("fdb_v15", "silent")["user_interruption_stop"])


def test_tau_voice_gives_constant_talk_perfect_selectivity_and_asks_it_no_responses() -> None:
    always = figures("tau_voice", "always")
    assert always["selectivity"] == 1.0
    assert math.isnan(always["response_rate"]), "it is never silent at the end of a turn, so no turn is counted"
    assert always["yield_rate"] == 0.0


def test_tau_voice_gives_a_metronome_every_yield_which_its_control_explains() -> None:
    metronome = figures("tau_voice", "metronome")
    assert metronome["response_rate"] == metronome["yield_rate"] == metronome["yield_rate_control"] == 1.0


def test_silence_ignores_every_cough_and_aside_of_tau_voice() -> None:
    silent = figures("tau_voice", "silent")
    assert silent["selectivity_vocal_tic"] == silent["selectivity_non_directed"] == 1.0


def test_sid_bench_charges_constant_talk_only_the_rest_of_the_interruption() -> None:
    always = figures("sid_bench", "always")
    assert always["fir_paper"] == 0.0
    # 0.7 s of the barge-in are left after its meaning; the four clips are the barge-in, "mm", the cough and the aside.
    assert always["apt"] == pytest.approx(0.7 / 4)


def test_eva_leaves_silence_out_and_counts_backchannels_as_interruptions() -> None:
    assert math.isnan(figures("eva", "silent")["turn_taking"])
    assert figures("eva", "silent", fixed=True)["turn_taking"] == 0.0
    oracle = figures("eva", "oracle")
    assert oracle["agent_interruption"] == 0.25  # three "mm" in the monologue
    assert oracle["turn_taking"] < 0.7
    assert figures("eva", "always")["turn_taking"] == 0.0


def test_nvidias_script_ranks_a_metronome_above_an_oracle_as_coded() -> None:
    assert figures("nvidia_duplex", "metronome")["f1"] > figures("nvidia_duplex", "oracle")["f1"]
    metronome, oracle = (figures("nvidia_duplex", agent, True)["f1"] for agent in ("metronome", "oracle"))
    assert metronome < oracle


def test_nvidias_script_gives_every_constant_agent_full_marks_on_backchannels() -> None:
    for agent in ("silent", "always", "metronome"):
        assert figures("nvidia_duplex", agent)["backchannel_accuracy"] == 1.0
        assert math.isnan(figures("nvidia_duplex", agent, True)["backchannel_accuracy"]) is (agent != "always")


def test_late_stops_say_nothing_of_silence_and_everything_of_constant_talk() -> None:
    assert math.isnan(figures("late_stop", "silent")["late_share"])
    assert figures("late_stop", "always")["failed_share"] == 1.0

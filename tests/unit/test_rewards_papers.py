"""What ASPIRin, DuplexPO and SteerDuplex pay, worked out by hand, with the holes that their letters leave."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from align.judging import check_axes
from envs.errors import UptakeError
from envs.event import Event
from envs.pack import Pack
from rewards import Composition, Verdict, get, reward
from rewards.registry import whole
from tests.unit.test_rewards_episodes import at, conversation, event, value

QUESTION = event("A1", 1.0, 4.0)
PAUSE = event("B1", 3.0, 4.0)
BARGE_IN = event("C1", 5.0, 6.5, sem=5.5)
MONOLOGUE = event("B7", 1.0, 10.0, bc0=3.0, bc1=7.0)


def judged(name: str, agent, events, user=(), **more):
    """The verdict of a term on the first event (or on the whole) of a conversation of spans."""
    episode = conversation(agent, events, user, **more)
    term = get(name)
    return term.judge(episode, whole(episode) if term.events == ("episode",) else episode.events[0])


# ---- ASPIRin


def test_aspirin_multiplies_the_share_of_short_overlaps_with_the_share_of_prompt_answers():
    user = [(1.0, 3.0), (6.0, 9.0)]
    # The first answer is 0.5 s late and overlaps nothing; the second begins 1.5 s into the user's turn and overlaps
    # 1.5 s of it; the third, 1.6 s after it, is late.
    told = judged("aspirin", [(3.5, 5.0), (7.5, 9.2), (10.6, 12.0)], [], user)
    assert told.raw["interruption"] == pytest.approx(2 / 3)
    assert told.raw["response"] == pytest.approx(1.0)  # the third is no response: the second was, to the same speech
    assert told.value == pytest.approx(2 / 3)
    late = judged("aspirin", [(3.5, 5.0), (10.6, 12.0)], [], user)
    assert (late.raw["interruption"], late.raw["response"], late.value) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize("overlap, counts", [(0.9, True), (1.0, True), (1.2, False)])
def test_aspirin_forgives_an_overlap_of_one_second(overlap, counts):
    told = judged("aspirin", [(4.0 - overlap, 6.0)], [], [(1.0, 4.0)])
    assert told.raw["interruption"] == float(counts)
    assert told.raw["response"] == 1.0  # begun inside the user's speech: at most 1.0 s late


def test_aspirin_gives_silence_nothing_and_says_nothing_where_the_user_was_silent():
    assert judged("aspirin", [], [], [(1.0, 4.0)]).value == 0.0
    assert judged("aspirin", [(1.0, 2.0)], []).value is None


def test_mm_hm_without_end_is_perfect_for_aspirin():
    assert judged("aspirin", [(0.2 + 1.2 * i, 0.7 + 1.2 * i) for i in range(11)], [], [(1.0, 4.0)]).value == 1.0


def test_aspirin_judges_a_conversation_once_and_only_when_it_is_over():
    composition = Composition({"aspirin": 1.0, "turn_taking": 1.0})
    episode = conversation([(4.3, 6.3)], [QUESTION], [(1.0, 4.0)], meta={"ended": None})
    assert [v.term for v in composition.due(episode, 0)] == ["turn_taking"]
    over = replace(episode, meta={"ended": "script"})
    assert [(v.term, v.event) for v in composition.due(over, at(13.0))] == [("aspirin", "episode")]
    assert [v.term for v in composition.score(over)] == ["turn_taking", "aspirin"]


# ---- DuplexPO


def test_duplexpo_pays_an_onset_by_a_gaussian_that_is_narrower_for_early():
    aim = 4.0 + 0.16
    on_time, late, early = (judged("duplexpo_onset", [(aim + d, 8.0)], [QUESTION]) for d in (0.0, 0.5, -0.5))
    assert on_time.value == pytest.approx(1.0)
    assert late.value == pytest.approx(math.exp(-0.5 * (0.5 / 0.5) ** 2), abs=0.02)
    assert early.value == pytest.approx(math.exp(-0.5 * (0.5 / 0.25) ** 2), abs=0.02)
    assert early.raw["onset_s"] == pytest.approx(-0.5, abs=0.01)


def test_duplexpo_knows_no_onset_outside_its_window_of_one_second_before_to_two_after():
    for onset in (3.0, 6.3):
        told = judged("duplexpo_onset", [(onset, 9.0)], [QUESTION])
        assert (told.value, told.raw) == (0.0, {})
    assert judged("duplexpo_onset", [], [QUESTION]).window == (at(3.16), at(6.16))
    before = event("A3", 0.1, 3.5)
    cut = conversation([], [replace(QUESTION, onset=at(3.6)), before])
    assert get("duplexpo_onset").judge(cut, cut.events[1]).window[0] == at(3.5)  # cut at the end of what came before


def test_a_truncated_answer_is_all_that_duplexpo_asks_for():
    assert judged("duplexpo_onset", [(4.16, 4.4)], [QUESTION]).value == pytest.approx(1.0)


def test_duplexpo_pays_speech_in_a_backchannel_and_less_the_further_away_it_is():
    # The first lies inside [3.0, 3.5]; the second begins 0.5 s after [7.0, 7.5] ends.
    told = judged("duplexpo_backchannel", [(3.1, 3.4), (8.0, 8.4)], [MONOLOGUE], seconds=16)
    assert told.value == pytest.approx((1.0 + math.exp(-2.0 * 0.5)) / 2, abs=0.01)
    assert told.raw == {"opportunities": 2.0, "hit": 1.0}
    assert judged("duplexpo_backchannel", [], [MONOLOGUE], seconds=16).value == 0.0
    assert judged("duplexpo_backchannel", [(0.0, 16.0)], [MONOLOGUE], seconds=16).value == 1.0  # the hole


@pytest.mark.parametrize("stop, cost", [(5.3, 0.0), (5.4, 0.0), (6.4, 0.5), (7.4, 1.0), (9.0, 1.0)])
def test_duplexpo_charges_a_stop_beyond_grace_and_tolerance_up_to_two_seconds(stop, cost):
    told = judged("duplexpo_stop", [(2.0, stop)], [BARGE_IN])
    assert told.value == pytest.approx(-cost, abs=0.01)
    assert told.raw["stop_s"] == pytest.approx(min(stop, 8.5) - 5.0, abs=0.01)  # the view ends at 8.5 s


def test_duplexpo_masks_the_stop_of_one_that_was_not_speaking():
    assert judged("duplexpo_stop", [(6.0, 8.0)], [BARGE_IN]).value is None


def test_duplexpo_adds_up_what_went_wrong():
    def events(agent, kind, **more):
        told = judged("duplexpo_events", agent, [kind], **more)
        return told.value, {name for name, there in told.raw.items() if there}

    assert events([], QUESTION) == (-0.5, {"missed"})
    assert events([(4.2, 6.0)], QUESTION) == (0.0, set())
    assert events([(2.0, 6.0)], QUESTION) == (-1.0, {"missed", "false_alarm"})
    assert events([(3.2, 5.0)], PAUSE) == (-0.5, {"false_alarm"})
    assert events([(3.2, 3.6)], PAUSE) == (0.0, set())
    assert events([(3.1, 3.4), (7.1, 8.6)], MONOLOGUE, seconds=16) == (-0.5, {"overlong"})
    assert events([(3.1, 3.4)], MONOLOGUE, seconds=16) == (-0.5, {"missed"})
    assert events([(2.0, 5.1)], BARGE_IN) == (-0.15, {"early_stop"})
    assert events([(2.0, 5.3)], BARGE_IN) == (0.0, set())
    assert events([(2.0, 6.0)], BARGE_IN) == (-0.1, {"late_stop"})
    assert events([(2.0, 14.0)], BARGE_IN) == (pytest.approx(-0.85), {"no_end", "late_stop"})


# ---- SteerDuplex


def test_steerduplex_pays_a_response_by_its_length_up_to_four_seconds():
    for length in (1.0, 2.0, 4.0, 6.0):
        told = judged("steerduplex_continuity", [(4.5, 4.5 + length)], [QUESTION])
        assert told.value == pytest.approx(min(1.0, length / 4.0), abs=0.01)
    assert judged("steerduplex_continuity", [], [QUESTION]).value == 0.0
    assert judged("steerduplex_continuity", [(0.0, 14.0)], [QUESTION]).value == 1.0  # the hole: only the length counts


@pytest.mark.parametrize("kind", ["D1", "D3", "D4"])
def test_steerduplex_pays_going_on_after_a_backchannel_or_a_noise_up_to_four_seconds(kind):
    heard = event(kind, 4.0, 4.5)
    assert judged("steerduplex_continuation", [(2.0, 6.5)], [heard]).value == pytest.approx(0.5, abs=0.01)
    assert judged("steerduplex_continuation", [(2.0, 12.0)], [heard]).value == 1.0
    assert judged("steerduplex_continuation", [(2.0, 4.3)], [heard]).value == 0.0
    assert judged("steerduplex_continuation", [(5.0, 9.0)], [heard]).value is None
    assert judged("steerduplex_continuation", [(2.0, 6.0)], [heard], seconds=6.0).value is None  # cut, so unknown


def test_steerduplex_pays_a_yield_only_to_one_that_was_speaking():
    assert judged("steerduplex_yield", [(2.0, 5.5)], [BARGE_IN]).value == pytest.approx(0.75, abs=0.01)
    assert judged("steerduplex_yield", [(2.0, 9.0)], [BARGE_IN]).value == 0.0
    silent = judged("steerduplex_yield", [], [BARGE_IN])
    assert (silent.value, silent.raw["was_speaking"]) == (0.0, 0.0)


def test_steerduplex_pays_a_recovery_only_after_a_yield():
    assert judged("steerduplex_recovery", [(2.0, 5.5), (7.5, 9.0)], [BARGE_IN]).value == pytest.approx(0.8, abs=0.01)
    assert judged("steerduplex_recovery", [(7.5, 9.0)], [BARGE_IN]).value == 0.0
    assert judged("steerduplex_recovery", [(2.0, 7.0), (8.0, 9.0)], [BARGE_IN]).value == 0.0
    assert judged("steerduplex_recovery", [(2.0, 5.5)], [BARGE_IN]).value == 0.0


@pytest.mark.parametrize("broken", ["clipped", "invalid"])
def test_steerduplex_pays_nothing_for_audio_that_fails_its_gate(broken):
    sound = conversation([(4.2, 8.2)], [QUESTION])
    assert value("steerduplex_continuity", sound) == pytest.approx(1.0, abs=0.01)
    agent = sound.agent.copy()
    agent[at(5.0) : at(5.1)] = 1.0 if broken == "clipped" else np.nan
    assert value("steerduplex_continuity", replace(sound, agent=agent)) == 0.0


def test_an_event_of_the_whole_conversation_is_none_of_the_taxonomy():
    episode = conversation([], [])
    assert whole(episode) == Event("episode", "episode", "agent", 0, episode.samples)


@pytest.mark.parametrize("events, horizon", [(["episode"], 1.0), (["episode", "A1"], 0.0)])
def test_a_reward_of_whole_conversations_judges_nothing_else_and_waits_for_nothing_more(events, horizon):
    with pytest.raises(UptakeError, match=r"give events=\['episode'\], horizon_s=0"):
        reward("unfit", axis="x", events=events, horizon_s=horizon)(lambda view, event: Verdict(None, (0, 0)))


def test_a_reward_of_whole_conversations_has_something_to_say_about_every_axis():
    check_axes(Composition({"aspirin": 1.0}), Pack.load("core").scenarios("dev"))
    with pytest.raises(UptakeError, match="nothing applies"):
        check_axes(Composition({"collision": 1.0}), Pack.load("core").scenarios("dev"))

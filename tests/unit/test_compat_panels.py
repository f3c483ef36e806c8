"""τ-voice, SID-Bench, EVA, NVIDIA's script and late stops, on conversations whose figures are worked out by hand."""

from __future__ import annotations

import math

import pytest

from rewards.aggregate import aggregate
from rewards.compat import EVALUATORS
from rewards.compat.eva import latency_score, overlap_score, yield_score
from rewards.compat.heard import Span
from rewards.compat.nvidia_duplex import turn_taking
from rewards.compat.sid_bench import Clip, grade
from tests.unit.test_rewards_episodes import Spans, conversation, event, words


def figures(name, agent: Spans, events, off=(), seconds=14.0):
    """Figures of one conversation with all bugs on but those `off` ("all" for none on)."""
    evaluator = EVALUATORS[name]
    bugs = set() if off == "all" else set(evaluator.bugs) - set(off)
    assert off == "all" or set(off) <= set(evaluator.bugs)
    run = {"s": [evaluator.measurement(conversation(agent, events, seconds=seconds), None, bugs)]}
    return {found: one.estimate for found, one in evaluator.intervals(run, draws=2).items()}


# ---- τ-voice


def test_a_response_is_timed_in_ticks_as_coded_and_to_the_hop_otherwise() -> None:
    # The turn ends at 3.05 s, in the tick that ends at 3.2 s; the answer at 3.75 s begins in the tick from 3.6 s.
    turn = {"agent": [(3.75, 6.0)], "events": [event("A1", 1.0, 3.05)]}
    assert figures("tau_voice", **turn)["response_latency"] == pytest.approx(0.4)
    assert figures("tau_voice", **turn, off=["ticks_of_200_ms"])["response_latency"] == pytest.approx(0.7)


def test_waiting_through_a_pause_is_a_missing_response_only_as_coded() -> None:
    held = {"agent": [(5.4, 7.0)], "events": [event("A1", 1.0, 5.0), event("B1", 2.0, 3.0)]}
    assert figures("tau_voice", **held)["response_rate"] == 0.5
    assert figures("tau_voice", **held, off=["pause_ends_turn"])["response_rate"] == 1.0


def test_a_last_turn_that_nobody_answers_is_skipped_as_coded() -> None:
    silence = {"agent": [], "events": [event("A1", 1.0, 2.0), event("A1", 6.0, 7.0)]}
    found = figures("tau_voice", **silence)
    assert found["response_rate"] == 0.0  # of the first alone
    one = {"agent": [(2.4, 3.0)], "events": silence["events"]}
    assert figures("tau_voice", **one)["response_rate"] == 1.0
    assert figures("tau_voice", **one, off=["last_unanswered_is_skipped"])["response_rate"] == 0.5


def test_a_yield_is_the_first_silent_tick_within_two_seconds() -> None:
    # The barge-in begins at 5.0 s; speech up to 5.4 s is silent from the tick at 5.4 s on.
    found = figures("tau_voice", [(2.0, 5.4)], [event("C1", 5.0, 6.4)])
    assert (found["yield_rate"], found["yield_latency"]) == (1.0, pytest.approx(0.4))
    late = figures("tau_voice", [(2.0, 7.2)], [event("C1", 5.0, 6.4)])
    assert late["yield_rate"] == 0.0
    assert math.isnan(late["yield_latency"])


def test_a_breath_of_one_tick_is_a_yield_only_as_coded() -> None:
    # Silent 5.6-6.0 s: two ticks, but less than the 0.5 s that is a silence for us.
    breath = {"agent": [(2.0, 5.6), (6.0, 12.0)], "events": [event("C1", 5.0, 6.4)]}
    assert figures("tau_voice", **breath)["yield_rate"] == 1.0
    assert figures("tau_voice", **breath, off=["one_silent_tick_ends_speech"])["yield_rate"] == 0.0
    assert figures("tau_voice", **{**breath, "events": [event("D1", 5.0, 5.4)]})["selectivity_backchannel"] == 0.0


def test_selectivity_is_the_mean_of_three_and_unknown_without_one_of_them() -> None:
    # Talks through "mm" at 3 s; falls silent 0.4 s after the cough at 6 s begins; answers the aside 9-10 s at 11 s.
    events = [event("D1", 3.0, 3.4), event("D3", 6.0, 6.2), event("D5", 9.0, 10.0)]
    found = figures("tau_voice", [(2.0, 6.4), (11.0, 12.0)], events)
    three = [found[f"selectivity_{name}"] for name in ("backchannel", "vocal_tic", "non_directed")]
    assert three == [1.0, 0.0, 0.0]
    assert found["selectivity"] == pytest.approx(1 / 3)
    assert math.isnan(figures("tau_voice", [(2.0, 6.4)], events[:2])["selectivity"])


def test_agent_interruptions_may_exceed_one_only_as_coded() -> None:
    # Three onsets inside one turn, which is answered at 8.6 s.
    over = {"agent": [(2.2, 2.6), (4.2, 4.6), (6.2, 6.6), (8.6, 9.8)], "events": [event("A1", 1.0, 8.0)]}
    assert figures("tau_voice", **over)["agent_interruption"] == 3.0
    assert figures("tau_voice", **over, off=["onsets_per_turn"])["agent_interruption"] == 1.0


def test_the_control_of_a_yield_is_how_often_speech_ends_anyway() -> None:
    # The agent talks 2-8 s and the user barges in 5-6 s. Moments every 0.2 s: 15 in 2-5 s, of which none, and 10 in
    # 6-8 s, of which all but the first see it fall silent within 2 s (at 6 s it is silent from 8.0 s on, not before).
    found = figures("tau_voice", [(2.0, 8.0)], [event("C1", 5.0, 6.0)])
    assert found["yield_rate"] == 0.0
    assert found["yield_rate_control"] == pytest.approx(9 / 25)
    # Of the backchannel at 5 s within 1 s: 14 of 15 before it (5 - 2.0 ...: none ends), 5 in 6-7 s talk on, and at 7 s.
    found = figures("tau_voice", [(2.0, 8.0)], [event("D1", 5.0, 6.0)])
    assert found["selectivity_backchannel"] == 1.0
    assert found["selectivity_backchannel_control"] == pytest.approx((15 + 6) / 25)


# ---- SID-Bench


@pytest.mark.parametrize(
    "clip, penalty, alarm",
    [
        (Clip(4.0, 1.0, 1.04), 0.0, False),  # within 0.05 s
        (Clip(4.0, 1.0, 2.5), 1.5, False),  # late by 1.5 s
        (Clip(4.0, 1.0, None), 3.0, False),  # missed: the rest of the clip
        (Clip(4.0, 1.0, 0.8), 4.0, True),  # 0.2 s early: the whole clip, more than never stopping
        (Clip(4.0, None, None), 0.0, False),
        (Clip(4.0, None, 3.9), 4.0, True),
    ],
)
def test_the_penalty_of_a_clip_is_the_time_that_it_cost(clip, penalty, alarm) -> None:
    graded = grade(clip, EVALUATORS["sid_bench"].bugs)
    assert (graded.penalty, graded.false_alarm) == (pytest.approx(penalty), alarm)


def test_an_early_stop_costs_what_it_was_early_by_with_the_bug_off() -> None:
    graded = grade(Clip(4.0, 1.0, 0.8), [])
    assert (graded.penalty, graded.false_alarm) == (pytest.approx(0.2), False)


def test_code_and_paper_divide_false_interruptions_by_different_lines() -> None:
    # The agent talks 1-3.2 s, 4-7.4 s and 8-13 s. "mm" 3-4 s stops it (alarm: 1 s), the barge-in 7-9 s with its meaning
    # at 7.1 s stops it 0.3 s after that, the one at 11-12 s with its meaning at 11.5 s does not (0.5 s).
    events = [event("D1", 3.0, 4.0), event("C1", 7.0, 9.0, sem=7.1), event("C1", 11.0, 12.0, sem=11.5)]
    found = figures("sid_bench", [(1.0, 3.2), (4.0, 7.4), (8.0, 13.0)], events)
    assert found["apt"] == pytest.approx((1.0 + 0.3 + 0.5) / 3, abs=0.01)
    assert found["fir_code"] == pytest.approx(1 / 3)
    assert found["fir_paper"] == 1.0
    assert found["irl_code"] == found["irl_paper"] == pytest.approx(0.3, abs=0.01)


def test_a_stop_within_the_tolerance_is_a_delay_for_the_paper_alone() -> None:
    found = figures("sid_bench", [(1.0, 7.12)], [event("C1", 7.0, 9.0, sem=7.1)])
    assert found["apt"] == 0.0
    assert found["irl_paper"] == pytest.approx(0.02, abs=0.011)
    assert math.isnan(found["irl_code"])


def test_nothing_that_is_said_to_a_silent_agent_is_a_clip() -> None:
    assert all(math.isnan(v) for v in figures("sid_bench", [], [event("C1", 7.0, 9.0), event("D1", 2.0, 3.0)]).values())


# ---- EVA


@pytest.mark.parametrize(
    "seconds, score",
    [(-0.5, 0.0), (-0.25, 0.25), (0.0, 0.5), (0.2, 0.7), (0.5, 1.0), (2.0, 1.0), (3.5, 0.5), (5.0, 0.0), (9.0, 0.0)],
)
def test_a_latency_scores_on_evas_curve(seconds, score) -> None:
    assert latency_score(seconds) == pytest.approx(score)


def test_overlap_and_yield_fall_to_nothing_in_two_seconds() -> None:
    assert [overlap_score(s) for s in (0.0, 1.0, 2.0, 3.0)] == [0.5, 0.25, 0.0, 0.0]
    assert [yield_score(s) for s in (0.0, 0.5, 2.0, 3.0)] == [1.0, 0.75, 0.0, 0.0]


def test_evas_turn_is_the_worse_of_overlap_and_what_follows() -> None:
    # The user asks 1-5 s. Alone: 0.4 s of overlap scores 0.5 · (1 - 0.2) = 0.4; an answer 4 s later, (5 - 4) / 3.
    asked = [event("A1", 1.0, 5.0)]
    assert figures("eva", [(3.0, 3.4)], asked)["turn_taking"] == pytest.approx(0.4)
    assert figures("eva", [(3.0, 3.4), (9.0, 10.0)], asked)["turn_taking"] == pytest.approx(1 / 3)
    assert figures("eva", [(5.8, 8.0)], asked)["turn_taking"] == 1.0
    # Over the end of the turn, 0.4 s of it: as coded no latency is asked for; otherwise the answer at 9 s counts.
    through = {"agent": [(4.6, 6.0), (9.0, 10.0)], "events": asked}
    assert figures("eva", **through)["turn_taking"] == pytest.approx(0.4)
    assert figures("eva", **through, off=["overlap_alone"])["turn_taking"] == pytest.approx(1 / 3)


def test_a_turn_without_an_answer_is_left_out_as_coded_and_scores_nothing_otherwise() -> None:
    asked = [event("A1", 1.0, 2.0), event("A1", 6.0, 7.0)]
    assert figures("eva", [(2.8, 4.0)], asked)["turn_taking"] == 1.0
    assert figures("eva", [(2.8, 4.0)], asked, off=["unanswered_left_out"])["turn_taking"] == 0.5
    assert math.isnan(figures("eva", [], asked)["turn_taking"])


def test_a_barge_in_is_scored_by_the_yield_answered_or_not_as_coded() -> None:
    # Talks on for 0.5 s: 1 - 0.25.
    stopped = {"agent": [(2.0, 5.5)], "events": [event("C1", 5.0, 6.0)]}
    assert figures("eva", **stopped)["turn_taking"] == pytest.approx(0.75)
    assert figures("eva", **stopped, off=["yield_alone"])["turn_taking"] == 0.0


def test_early_and_late_are_shares_of_the_latencies() -> None:
    asked = [event("A1", 1.0, 2.0), event("A1", 4.0, 5.0), event("A1", 7.0, 8.0)]
    found = figures("eva", [(2.1, 3.0), (5.6, 6.2), (12.5, 13.5)], asked)
    assert found["latency"] == pytest.approx((0.1 + 0.6 + 4.5) / 3, abs=0.01)
    assert (found["early_rate"], found["late_rate"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


# ---- NVIDIA's script


def test_precision_and_recall_are_of_starts_near_the_end_of_a_turn() -> None:
    # Turns end at 2, 6 and 10 s. Starts at 2.4 s (right), 8.5 s (2.5 s late: wrong), 9.6 s (0.4 s early: right).
    user, agent = [Span(1, 2), Span(5, 6), Span(9, 10)], [Span(2.4, 3), Span(8.5, 9), Span(9.6, 12)]
    found = turn_taking(user, agent, EVALUATORS["nvidia_duplex"].bugs)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["latency"] == pytest.approx(0.2)  # 0.4 and 0
    fixed = turn_taking(user, agent, [])
    assert fixed["precision"] == pytest.approx(1 / 3)
    assert fixed["recall"] == pytest.approx(1 / 3)
    assert fixed["latency"] == pytest.approx(0.4)


def test_starting_just_before_the_user_ends_is_perfect_only_as_coded() -> None:
    asked = [event("A1", 1.0, 3.0), event("A1", 8.0, 10.0)]
    early = {"agent": [(2.55, 4.0), (9.55, 11.0)], "events": asked}
    found = figures("nvidia_duplex", **early)
    assert (found["precision"], found["recall"], found["latency"]) == (1.0, 1.0, 0.0)
    fixed = figures("nvidia_duplex", **early, off=["early_is_right"])
    assert (fixed["precision"], fixed["recall"]) == (0.0, 0.0)


def test_several_starts_at_one_turn_raise_recall_only_as_coded() -> None:
    # Two starts at the first of two turns: 2 / (2 + 1) as coded, 1 of 2 otherwise.
    user, agent = [Span(1, 2), Span(8, 9)], [Span(2.1, 2.4), Span(3.0, 4.0)]
    assert turn_taking(user, agent, ["one_hit_for_all"])["recall"] == pytest.approx(2 / 3)
    assert turn_taking(user, agent, [])["recall"] == 0.5


def test_a_pause_of_a_second_splits_a_turn_only_with_the_short_gap() -> None:
    # The pause 2-3 s merges at 1.5 s. At 0.5 s there are two turns, one of them not answered.
    held = {"agent": [(5.4, 7.0)], "events": [event("A1", 1.0, 5.0), event("B1", 2.0, 3.0)]}
    assert figures("nvidia_duplex", **held)["recall"] == 1.0
    assert figures("nvidia_duplex", **held, off=["silence_of_1500_ms"])["recall"] == 0.5


def test_a_cough_wants_an_answer_only_as_coded() -> None:
    coughed = {"agent": [(3.4, 5.0)], "events": [event("A1", 1.0, 3.0), event("D3", 8.0, 8.3)]}
    assert figures("nvidia_duplex", **coughed)["recall"] == 0.5
    assert figures("nvidia_duplex", **coughed, off=["every_sound_is_a_turn"])["recall"] == 1.0


def test_a_barge_in_succeeds_below_a_second_and_a_half_and_slow_stops_are_left_out_of_the_mean() -> None:
    # Stops after 0.6 s and after 2.5 s.
    events = [event("C1", 3.0, 4.0), event("C1", 8.0, 9.0)]
    found = figures("nvidia_duplex", [(1.0, 3.6), (6.0, 10.5)], events)
    assert found["barge_in_success"] == 0.5
    assert found["barge_in_latency"] == pytest.approx(0.6)
    fixed = figures("nvidia_duplex", [(1.0, 3.6), (6.0, 10.5)], events, off=["slow_stops_left_out"])
    assert fixed["barge_in_latency"] == pytest.approx(1.55)


def test_silence_talks_through_every_backchannel_only_as_coded() -> None:
    ack = [event("D1", 3.0, 3.4)]
    assert figures("nvidia_duplex", [], ack)["backchannel_accuracy"] == 1.0
    assert math.isnan(figures("nvidia_duplex", [], ack, off=["silent_agent_passes"])["backchannel_accuracy"])
    assert figures("nvidia_duplex", [], [])["backchannel_accuracy"] == 0.0
    assert math.isnan(figures("nvidia_duplex", [], [], off=["no_backchannel_scores_zero"])["backchannel_accuracy"])


def test_the_control_of_a_backchannel_is_how_often_speech_goes_on_anyway() -> None:
    # Talks 2-6 s; "mm" 3-3.5 s. Other moments every 0.1 s: 2.0-2.9 and 3.5-5.9; those before 4.5 s go on for 1.5 s.
    found = figures("nvidia_duplex", [(2.0, 6.0)], [event("D1", 3.0, 3.5)])
    assert found["backchannel_accuracy"] == 1.0
    assert found["backchannel_accuracy_control"] == pytest.approx((10 + 10) / 35, abs=0.03)


# ---- late stops


def test_a_late_stop_runs_from_four_tenths_after_the_onset_to_the_end() -> None:
    # Stops 0.3 s, 1.0 s and 2.4 s after the onsets: segments of 0, 0.6 and 2.0 s; the last has failed by 1.5 s.
    events = [event("C1", 2.0, 2.8), event("C2", 6.0, 6.8), event("C3", 10.0, 11.0)]
    found = figures("late_stop", [(1.0, 2.3), (4.0, 7.0), (9.0, 12.4)], events)
    assert found["late_share"] == pytest.approx(2 / 3)
    assert found["late_seconds"] == pytest.approx(1.3)
    assert found["late_per_barge_in"] == pytest.approx(2.6 / 3)
    assert found["failed_share"] == pytest.approx(1 / 3)


def test_the_clock_of_a_late_stop_runs_from_the_meaning_with_the_bug_off() -> None:
    late = {"agent": [(1.0, 3.0)], "events": [event("C1", 2.0, 4.0, sem=2.7)]}
    assert figures("late_stop", **late)["late_share"] == 1.0  # 1.0 s after the onset
    assert figures("late_stop", **late, off=["from_onset"])["late_share"] == 0.0  # 0.3 s after the meaning


def test_every_figure_and_every_bug_says_what_it_is() -> None:
    for evaluator in EVALUATORS.values():
        assert evaluator.source
        assert evaluator.bugs
        assert all(figure.text for figure in evaluator.figures.values())
        assert all(len(text) > 20 for text in evaluator.bugs.values())
        found = evaluator.measurement(conversation([(3.0, 4.0)], [event("A1", 1.0, 2.0)]), None, evaluator.bugs)
        assert set(found) <= set(evaluator.figures)
        assert set(evaluator.intervals({"s": [found]}, draws=2)) == set(evaluator.figures)
        pooled = aggregate([found])
        assert set(pooled) - {"paired_score", "duplex_score"} == set(found)


def test_every_switch_changes_a_figure_somewhere() -> None:
    """A bug that no conversation shows would be a bug in name only."""
    events = [
        event("A1", 0.5, 3.0), event("B1", 1.0, 1.8), event("C1", 6.0, 7.0, sem=6.4), event("D1", 9.0, 9.3),
        event("D3", 10.4, 10.6), event("D5", 12.0, 13.0), event("B7", 14.0, 24.0, bc0=16.0, bc1=20.0),
    ]  # fmt: skip
    cases = [
        ([], events),
        ([], events[:1]),
        ([(3.4, 6.3)], events[:3]),
        ([(2.6, 3.4)], events[:1]),
        ([(2.6, 3.5), (7.0, 8.0)], events[:1]),
        ([(2.6, 2.9), (4.45, 5.0)], events[:3]),
        ([(0.6, 27.0)], events),
        ([(2.7, 6.3), (6.7, 8.0), (9.1, 9.5), (13.4, 13.9), (15.0, 15.97), (18.0, 21.5), (22.0, 22.4)], events),
        ([(3.3, 8.9), (9.6, 11.0), (16.13, 16.5), (17.0, 18.6), (20.1, 20.5), (24.5, 26.0)], events),
        ([(on / 2, on / 2 + 0.35) for on in range(0, 50, 3)], events),
    ]
    played = []
    for agent, part in cases:
        said = [
            word for on, off in agent for word in words(" ".join(["la"] * max(1, int((off - on) / 0.25))), on, 0.25)
        ]
        played.append(conversation(agent, part, seconds=28.0, transcript=said))
    for evaluator in EVALUATORS.values():
        coded = [evaluator.measurement(episode, None, evaluator.bugs) for episode in played]
        for bug in evaluator.bugs:
            off = [evaluator.measurement(episode, None, set(evaluator.bugs) - {bug}) for episode in played]
            assert off != coded, f"{evaluator.name}: {bug}"

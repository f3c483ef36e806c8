"""Waiting, speaking up, giving way and going on: what each term pays for, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.event import Event, Expect
from rewards import get
from tests.unit.test_rewards_episodes import at, conversation, event, value, words

HOLD = replace(event("B3", 1.0, 2.0), words=words("one second please", 1.0), text="one second please")
UNANSWERED = event("E1", 3.0, 25.0)
HANG_UP = event("E2", 3.0, 3.0)
ALARM = event("E5", 10.0, 10.5, [Expect("speaks_up", content=("timer",))], due=10.0)
MOMENT = event("E6", 1.0, 3.0, [Expect("speaks_up", within={"early": 0.3, "full": 0.3, "zero": 1.0})], due=9.0)
OPENING = event("A5", 0.0, 0.0)
TOGETHER = event("A6", 4.0, 6.0, collision=4.1)
GIVEN_UP = event("C8", 5.0, 5.6)
WEATHER = words("it will be sunny and warm today", 2.0, each=0.45)


def long(agent, *events: Event, seconds: float = 32.0, **more):
    return conversation(agent, events, seconds=seconds, **more)


# ---- silence: a hold


def test_a_user_who_asks_for_a_moment_gets_it_and_one_okay_is_free():
    assert value("silence_handling", long([], HOLD)) == 1.0
    assert value("silence_handling", long([(2.2, 2.7)], HOLD)) == 1.0
    assert value("silence_handling", long([(2.2, 2.7), (4.0, 4.5), (6.0, 6.5)], HOLD)) == 0.0


def test_a_turn_taken_in_a_hold_costs_less_the_longer_it_waited_and_none_after_it():
    soon, later, after = (value("silence_handling", long([(2.0 + t, 4.5 + t)], HOLD)) for t in (0.5, 6.0, 8.5))
    assert -1.0 < soon < later < 0.0
    assert after == 1.0


def test_what_the_agent_says_when_the_user_is_back_is_not_held_against_it():
    back = event("A1", 5.0, 6.0)
    assert value("silence_handling", long([(6.2, 8.0)], HOLD, back)) == 1.0


def test_talking_on_through_a_hold_is_as_bad_as_can_be():
    assert value("silence_handling", long([(0.0, 14.0)], HOLD)) == -1.0


def test_a_silence_before_a_late_answer_is_a_hold_and_the_answer_is_not_to_be_talked_over():
    waiting = event("E4", 3.0, 8.0)
    assert value("silence_handling", long([], waiting)) == 1.0
    assert value("silence_handling", long([(6.0, 9.0)], waiting)) < 0.0
    spoken = replace(waiting, words=words("on monday I think", 3.0))
    assert value("silence_handling", long([], spoken)) == 1.0
    assert value("silence_handling", long([(1.0, 3.5)], spoken)) == pytest.approx(0.0, abs=0.02)
    assert value("silence_handling", long([(1.0, 5.0)], spoken)) == -1.0


# ---- silence: an unanswered question


@pytest.mark.parametrize(
    "wait, expected", [(1.25, -0.5), (2.5, 0.0), (5.0, 1.0), (10.0, 1.0), (15.0, 0.0), (20.0, -1.0)]
)
def test_an_unanswered_question_is_asked_again_after_five_to_ten_seconds(wait, expected):
    again = long([(3.0 + wait, 5.0 + wait)], UNANSWERED)
    assert value("silence_handling", again) == pytest.approx(expected, abs=0.02)


def test_never_asking_again_is_wrong_unless_the_user_comes_back_in_time():
    assert value("silence_handling", long([], UNANSWERED)) == -1.0
    assert value("silence_handling", long([], event("E1", 3.0, 9.0))) == 1.0


def test_one_prompt_is_enough_and_pressing_and_nagging_cost():
    once = [(9.0, 10.5)]
    assert value("silence_handling", long([*once, (17.0, 18.5)], UNANSWERED)) == 1.0
    assert value("silence_handling", long([*once, (12.0, 13.5)], UNANSWERED)) == 0.5
    assert value("silence_handling", long([*once, (16.0, 17.5), (23.0, 24.5)], UNANSWERED)) == 0.5


def test_mumbling_again_is_not_asking_again():
    mumble = words("mhm mhm mhm mhm", 9.0)
    assert value("silence_handling", long([(9.0, 10.5)], UNANSWERED, transcript=mumble)) == 0.0


def test_the_scenario_may_say_when_to_ask_again():
    soon = replace(UNANSWERED, expects=(Expect("speaks_up", {"early": 1.0, "full": 1.0, "zero": 2.0}),))
    soon = replace(soon, anchors={"due": at(6.0)})
    assert value("silence_handling", long([(6.5, 8.0)], soon)) == 1.0
    assert value("silence_handling", long([(8.0, 9.5)], soon)) == pytest.approx(0.0, abs=0.02)


# ---- silence: a dead line


def test_nothing_is_said_to_a_dead_line_but_what_was_on_its_way():
    assert value("silence_handling", long([], HANG_UP)) == 1.0
    assert value("silence_handling", long([(2.0, 4.8)], HANG_UP)) == 1.0
    assert value("silence_handling", long([(6.0, 7.5)], HANG_UP)) == pytest.approx(0.0, abs=0.02)
    assert value("silence_handling", long([(0.0, 30.0)], HANG_UP)) == -1.0
    assert value("silence_handling", long([(3.0 + 1.2 * i, 3.6 + 1.2 * i) for i in range(20)], HANG_UP)) == -1.0


@settings(max_examples=20, deadline=None)
@given(
    start=st.floats(3.5, 12.0),
    length=st.floats(0.1, 3.0),
    more=st.floats(0.0, 3.0),
    of=st.sampled_from([HOLD, HANG_UP]),
)
def test_saying_more_in_a_silence_that_is_to_be_kept_never_earns_more(start, length, more, of):
    less, longer = (value("silence_handling", long([(start, start + d)], of)) for d in (length, length + more))
    assert longer <= less + 1e-9


# ---- ignore


@pytest.mark.parametrize("kind", ["D3", "D4", "D5", "D6", "E3"])
def test_a_sound_that_was_not_for_the_agent_is_not_answered(kind):
    heard = event(kind, 6.0, 6.5)
    assert value("ignore", conversation([], [heard])) == 1.0
    assert value("ignore", conversation([(6.8, 7.2)], [heard])) == 1.0
    assert value("ignore", conversation([(7.0, 9.5)], [heard])) == -1.0
    assert value("ignore", conversation([(7.0, 8.2)], [heard])) == pytest.approx(-0.8, abs=0.01)
    assert value("ignore", conversation([(9.0, 11.0)], [heard])) == 1.0


def test_a_sound_while_the_agent_speaks_or_while_an_answer_is_due_is_not_judged_by_ignore():
    heard = event("D3", 6.0, 6.5)
    assert value("ignore", conversation([(5.0, 8.0)], [heard])) is None
    assert value("ignore", conversation([(6.8, 9.0)], [event("A1", 3.0, 5.9), heard]), of=1) is None


def test_false_starts_during_television_are_counted_outside_the_users_turns():
    television, asked = event("D7", 0.0, 20.0), event("A1", 8.0, 10.0)
    one = long([(2.0, 3.5)], television, asked)
    assert value("ignore", one) == pytest.approx(-0.875, abs=0.01)
    assert value("ignore", long([(2.0, 3.5), (15.0, 16.5)], television, asked)) == -1.0
    assert value("ignore", long([(10.3, 14.0)], television, asked)) == 1.0  # an answer
    assert value("ignore", long([(10.3, 14.0), (14.4, 16.0)], television, asked)) == 1.0  # its second sentence


def test_an_alarm_that_is_to_be_reported_is_no_false_start_in_talk_to_somebody_else():
    story, alarm = event("D5", 4.0, 14.0), event("E5", 8.0, 8.5, [Expect("speaks_up")], due=8.0)
    assert value("ignore", long([(8.4, 10.0)], story, alarm)) == 1.0
    assert value("ignore", long([(8.4, 10.0)], story)) < 0.0


# ---- continue


@pytest.mark.parametrize("kind", ["D2", "D6", "D7", "D8", "D9"])
def test_the_whole_of_the_taxonomy_is_talked_through(kind):
    heard = event(kind, 5.0, 5.6)
    assert value("continue", conversation([(2.0, 8.0)], [heard])) == 1.0
    assert value("continue", conversation([(2.0, 5.2)], [heard])) < 0.0
    assert value("continue", conversation([], [heard])) is None


@pytest.mark.parametrize("kind", ["D7", "D8", "D9"])
def test_a_sound_that_lasts_does_not_forbid_the_end_of_a_sentence(kind):
    lasting = event(kind, 5.0, 12.0)
    assert value("continue", conversation([(2.0, 7.5)], [lasting])) == 1.0
    assert value("continue", conversation([(2.0, 5.4)], [lasting])) == -1.0


# ---- proactivity


@pytest.mark.parametrize(
    "delay, expected", [(0.2, 1.0), (1.5, 1.0), (3.0, 0.0), (4.5, -1.0), (-0.5, -0.375), (-1.0, -1.0)]
)
def test_a_signal_is_reported_within_a_second_and_a_half(delay, expected):
    assert value("proactivity", long([(10.0 + delay, 13.0 + delay)], ALARM)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "offset, expected", [(0.0, 1.0), (0.3, 1.0), (-0.3, 1.0), (1.0, 0.0), (-0.5, 0.0), (1.8, -1.0)]
)
def test_a_moment_is_met_to_a_third_of_a_second(offset, expected):
    assert value("proactivity", long([(9.0 + offset, 9.4 + offset)], MOMENT)) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("onset, expected", [(0.5, 1.0), (2.4, 1.0), (4.3, 0.0), (0.1, 0.0)])
def test_a_conversation_is_opened_soon_and_not_at_once(onset, expected):
    assert value("proactivity", conversation([(onset, onset + 2.0)], [OPENING])) == pytest.approx(expected, abs=0.02)


def test_silence_and_endless_talk_are_no_reports():
    assert value("proactivity", long([], ALARM)) == -1.0
    assert value("proactivity", long([(0.0, 30.0)], ALARM)) == -1.0


def test_false_alarms_cost_and_an_answer_to_the_request_is_none():
    request = event("A3", 1.0, 3.0)
    told = long([(3.3, 5.0), (10.3, 12.0)], request, ALARM)
    verdict = get("proactivity").judge(told, told.events[1])
    assert (verdict.value, verdict.raw["false_alarms"]) == (1.0, 0.0)
    nervous = long([(3.3, 5.0), (7.0, 8.0), (10.3, 12.0)], request, ALARM)
    assert value("proactivity", nervous, of=1) == 0.5
    metronome = long([(0.5 + 2 * i, 1.3 + 2 * i) for i in range(10)], ALARM)
    assert value("proactivity", metronome) == -1.0


def test_speaking_up_means_saying_what_it_is_about():
    for said, expected in (("the timer is done", 1.0), ("what a nice day", 0.0), ("mhm mhm mhm mhm timer", 0.0)):
        episode = long([(10.3, 12.0)], ALARM, transcript=words(said, 10.3))
        assert value("proactivity", episode) == expected
    assert value("proactivity", long([(10.3, 12.0)], ALARM, transcript=words("hello", 3.0))) == 0.0  # a sound, no words


def test_a_signal_that_was_not_the_one_is_let_pass():
    other = event("E5", 10.0, 10.5, [Expect("silent")])
    assert value("proactivity", long([], other)) == 1.0
    assert value("proactivity", long([(10.4, 12.0)], other)) == 0.0
    assert value("proactivity", long([(10.2, 10.6), (11.4, 11.8)], other)) == -1.0


def test_a_moment_that_lies_after_the_episode_is_not_judged():
    assert value("proactivity", conversation([], [MOMENT], seconds=9.5)) is None


# ---- collision


def test_giving_way_and_taking_the_turn_again_is_worth_everything():
    assert value("collision", conversation([(4.1, 4.6), (6.3, 8.5)], [TOGETHER])) == 1.0


def test_half_of_it_is_worth_nothing_and_neither_is_less():
    assert value("collision", conversation([(4.1, 4.6)], [TOGETHER])) == 0.0
    assert value("collision", conversation([(4.1, 9.0)], [TOGETHER])) == -1.0
    assert value("collision", conversation([(4.1, 4.6), (5.0, 9.0)], [TOGETHER])) == -1.0  # a breath is no yield
    assert value("collision", conversation([], [TOGETHER])) is None


def test_a_collision_is_found_where_no_anchor_says_so():
    together = event("A6", 4.0, 6.0)
    assert value("collision", conversation([(3.9, 4.5), (6.3, 8.5)], [together])) == 1.0
    assert value("collision", conversation([(3.0, 4.5), (6.3, 8.5)], [together])) is None  # that was a barge-in


@settings(max_examples=20, deadline=None)
@given(stop=st.floats(4.2, 6.5), later=st.floats(0.0, 2.0))
def test_overlapping_longer_never_earns_more(stop, later):
    soon, late = (value("collision", conversation([(4.1, s), (10.2, 11.5)], [TOGETHER])) for s in (stop, stop + later))
    assert late <= soon


# ---- resume


def test_going_on_after_a_barge_in_that_was_given_up_is_right_within_two_seconds():
    for pause, expected in ((0.8, 1.0), (2.0, 1.0), (3.5, 0.0), (4.9, -0.93)):
        episode = conversation([(2.0, 5.3), (5.6 + pause, 9.0 + pause)], [GIVEN_UP])
        assert value("resume", episode) == pytest.approx(expected, abs=0.02)
    assert value("resume", conversation([(2.0, 5.3)], [GIVEN_UP])) == -1.0
    assert value("resume", conversation([(2.0, 5.3), (6.0, 6.5)], [GIVEN_UP])) == -1.0  # "mhm"


def test_who_did_not_stop_and_who_did_not_talk_has_nothing_to_resume():
    assert value("resume", conversation([(2.0, 9.0)], [GIVEN_UP])) is None
    assert value("resume", conversation([(2.0, 5.4), (5.8, 9.0)], [GIVEN_UP])) is None  # a breath
    assert value("resume", conversation([], [GIVEN_UP])) is None


def test_beginning_again_from_the_start_is_not_going_on():
    spans = [(2.0, 5.3), (6.4, 9.0)]
    on = conversation(spans, [GIVEN_UP], transcript=(*WEATHER, *words("with a light wind", 6.4)))
    anew = conversation(spans, [GIVEN_UP], transcript=(*WEATHER, *words("it will be sunny and", 6.4)))
    mumble = conversation(spans, [GIVEN_UP], transcript=(*WEATHER, *words("mhm mhm mhm mhm", 6.4)))
    assert [value("resume", episode) for episode in (on, anew, mumble)] == [1.0, -0.5, 0.0]


def test_a_user_who_goes_on_leaves_nothing_to_resume():
    asked = event("A1", 6.2, 8.0)
    assert value("resume", conversation([(2.0, 5.3), (8.2, 10.0)], [GIVEN_UP, asked])) is None


# ---- pause by length


def test_breaking_into_a_pause_costs_less_the_longer_it_was_waited_for():
    pause = event("B1", 3.0, 6.0)
    at_once, later, latest = (
        value("pause_by_length", conversation([(3.0 + t, 5.5 + t)], [pause])) for t in (0.1, 1.0, 2.0)
    )
    assert at_once < later < latest == pytest.approx(-0.25, abs=0.01)
    assert value("pause_by_length", conversation([(0.0, 14.0)], [pause])) == -1.0
    short = get("pause_by_length").judge(conversation([(3.2, 5.5)], [event("B1", 3.0, 3.4)]), event("B1", 3.0, 3.4))
    assert (short.raw["pause_s"], short.raw["waited_s"]) == (pytest.approx(0.4), pytest.approx(0.2, abs=0.01))


@pytest.mark.parametrize("kind", ["B1", "B2", "B4", "B5", "B6"])
def test_where_nobody_takes_the_floor_both_pause_terms_agree(kind):
    pause = event(kind, 3.0, 4.0)
    for agent in ([], [(3.2, 3.6)], [(3.1, 3.3), (3.7, 3.9)]):
        episode = conversation(agent, [pause])
        assert value("pause_by_length", episode) == value("pause_handling", episode)


def test_a_user_who_begins_over_the_last_words_is_given_way_to_and_answered():
    over = event("A7", 4.0, 6.0, [Expect("yields", {"full": 0.5, "zero": 1.0}), Expect("responds")], collision=4.0)
    assert value("collision", conversation([(2.0, 4.4), (6.3, 8.5)], [over])) == 1.0
    assert value("collision", conversation([(2.0, 5.0), (6.3, 8.5)], [over])) == pytest.approx(0.25, abs=0.02)
    assert value("collision", conversation([(2.0, 4.4), (6.3, 8.5)], [event("A7", 4.0, 6.0)])) is None


def test_a_reason_to_interrupt_is_one_and_a_knock_is_not():
    alarm, knock = (event("G2", 6.0, 6.5, [Expect(kind)]) for kind in ("speaks_up", "silent"))
    for spans, values in (([(6.4, 8.0)], (1.0, 0.0)), ([], (-1.0, 1.0))):
        assert tuple(value("proactivity", conversation(spans, [one])) for one in (alarm, knock)) == values

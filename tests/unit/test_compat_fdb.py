"""Full-Duplex-Bench, versions 1 and 1.5, on conversations whose figures are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import UptakeError
from rewards.aggregate import aggregate
from rewards.compat import EVALUATORS
from rewards.compat.fdb_v1 import distance, histogram, judge_stretches, listeners, takes_turn
from rewards.compat.fdb_v15 import CODE_GAPS
from rewards.compat.heard import Heard, Said, Span
from tests.unit.test_rewards_episodes import Spans, at, conversation, event, words

V1, V15 = EVALUATORS["fdb_v1"], EVALUATORS["fdb_v15"]


def figures(name, agent: Spans, events, said=(), off=(), only=None, **more):
    """Figures of a conversation; `said`: (text, onset, seconds a word) of the agent; bugs `off`, or `only` some on."""
    evaluator = EVALUATORS[name]
    bugs = set(evaluator.bugs if only is None else only) - set(off)
    transcript = [word for text, onset, each in said for word in words(text, onset, each)]
    episode = conversation(agent, events, transcript=transcript, **more)
    return aggregate([evaluator.measurement(episode, None, bugs)])


# ---- version 1

# The user says a turn from 1 s to 5 s with a pause from 2 s to 3 s. A pause item is what is heard up to 5 s, a turn
# item all of it. `words(text, onset, each)` gives each word 0.9 of `each`.
PAUSE = [event("A1", 1.0, 5.0), event("B1", 2.0, 3.0)]


def test_two_murmurs_far_apart_are_a_takeover_only_while_the_span_is_that_of_the_whole_output() -> None:
    # "mm" at 1.2-1.47 and at 4.2-4.47: first to last word 3.27 s >= 1 s is a turn; each alone is 0.27 s and one word.
    murmurs = {"agent": [(1.2, 1.5), (4.2, 4.5)], "said": [("mm", 1.2, 0.3), ("mm", 4.2, 0.3)]}
    assert figures("fdb_v1", **murmurs, events=PAUSE)["pause_tor"] == 1.0
    assert figures("fdb_v1", **murmurs, events=PAUSE, off=["whole_output_span"])["pause_tor"] == 0.0


def test_speech_outside_the_pause_is_a_takeover_only_while_it_counts_anywhere() -> None:
    # Five words of 0.3 s from 3.2 s on, after the pause has ended at 3 s.
    outside = {"agent": [(3.2, 4.7)], "said": [("i think that it is", 3.2, 0.3)]}
    assert figures("fdb_v1", **outside, events=PAUSE)["pause_tor"] == 1.0
    assert figures("fdb_v1", **outside, events=PAUSE, off=["anywhere_in_the_clip"])["pause_tor"] == 0.0
    inside = {"agent": [(2.2, 3.7)], "said": [("i think that it is", 2.2, 0.3)]}
    assert figures("fdb_v1", **inside, events=PAUSE, off=["anywhere_in_the_clip"])["pause_tor"] == 1.0


def test_an_answer_after_the_turn_is_not_in_the_clip_of_the_pause() -> None:
    found = figures("fdb_v1", [(5.2, 7.0)], PAUSE, [("it is sunny and warm", 5.2, 0.3)])
    assert found["pause_tor"] == 0.0
    assert found["turn_tor"] == 1.0
    assert found["turn_latency"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "text, each, three, two",
    [
        ("", 0.3, False, False),
        ("mm", 0.3, False, False),  # 0.27 s, 1 word
        ("oh i see", 0.3, False, True),  # 0.87 s, 3 words
        ("oh i see now", 0.2, True, True),  # 0.78 s, 4 words
        ("well", 1.2, True, True),  # 1.08 s
    ],
)
def test_words_take_a_turn_by_their_number_or_their_span(text, each, three, two) -> None:
    said = [Said(w.text, w.onset / 24000, w.offset / 24000) for w in words(text, 1.0, each)]
    assert takes_turn(said, 3) is three
    assert takes_turn(said, 2) is two


@pytest.mark.parametrize("onset, code, signed", [(5.2, 0.2, 0.2), (4.0, 0.0, -1.0), (3.0, 0.0, -2.0)])
def test_an_early_answer_has_latency_zero_as_coded_and_its_own_sign_otherwise(onset, code, signed) -> None:
    turn = [event("A1", 1.0, 5.0)]
    answer = {"agent": [(onset, onset + 1.5)], "said": [("it is sunny and warm", onset, 0.3)]}
    assert figures("fdb_v1", **answer, events=turn)["turn_latency"] == pytest.approx(code)
    off = figures("fdb_v1", **answer, events=turn, off=["early_is_instant"])
    assert off["turn_latency"] == pytest.approx(signed)
    fixed = figures("fdb_v1", **answer, events=turn, only=[])
    assert fixed["turn_tor"] == float(onset == 5.2), "speech that begins before the end of the turn does not take it"


def test_the_next_turn_of_the_user_ends_the_clip() -> None:
    turns = [event("A1", 1.0, 3.0), event("A1", 6.0, 8.0)]
    found = figures("fdb_v1", [(8.4, 10.0)], turns, [("it is sunny and warm", 8.4, 0.3)])
    assert found["turn_tor"] == 0.5, "one answer, to the second of two"
    assert found["turn_latency"] == pytest.approx(0.4)


def test_without_any_turn_taken_there_is_no_latency_where_the_script_divides_by_zero() -> None:
    found = figures("fdb_v1", [], [*PAUSE])
    assert (found["pause_tor"], found["turn_tor"]) == (0.0, 0.0)
    assert math.isnan(found["turn_latency"])


# The user asks from 0.5 s to 2 s and barges in from 5 s to 6 s.
BARGE = [event("A1", 0.5, 2.0), event("C1", 5.0, 6.0, sem=5.3)]


def test_an_agent_that_never_stops_answers_an_interruption_at_once_only_while_the_output_is_cropped() -> None:
    # Words of 0.27 s every 0.3 s from 2.2 s on: the first after 6 s begins at 6.1 s.
    never = {"agent": [(2.2, 12.0)], "said": [(" ".join(["la"] * 32), 2.2, 0.3)]}
    found = figures("fdb_v1", **never, events=BARGE)
    assert found["interruption_tor"] == 1.0
    assert found["interruption_latency"] == pytest.approx(0.1)
    fixed = figures("fdb_v1", **never, events=BARGE, off=["cropped_interruption"])
    assert fixed["interruption_tor"] == 0.0
    assert math.isnan(fixed["interruption_latency"])


def test_an_agent_that_stops_and_answers_has_the_same_figures_either_way() -> None:
    good = {
        "agent": [(2.2, 5.3), (6.4, 8.0)],
        "said": [(" ".join(["la"] * 10), 2.2, 0.3), ("here is some piano music", 6.4, 0.3)],
    }
    for off in ([], ["cropped_interruption"], list(V1.bugs)):
        found = figures("fdb_v1", **good, events=BARGE, off=off)
        assert found["interruption_tor"] == 1.0
        assert found["interruption_latency"] == pytest.approx(0.4)


def test_a_stop_command_is_no_item() -> None:
    found = figures("fdb_v1", [(2.2, 5.3)], [event("C3", 5.0, 6.0)])
    assert math.isnan(found["interruption_tor"])


# A monologue of 10 s with opportunities 3 s and 7 s into it.
STORY = [event("B7", 1.0, 11.0, bc0=4.0, bc1=8.0)]


def test_backchannels_are_counted_by_second_and_their_words_only_with_the_bug_off() -> None:
    # 4.0-4.4 "mm" and 8.0-8.8 with three words: two stretches of up to 3 s in 10 s.
    given = {"agent": [(4.0, 4.4), (8.0, 8.8)], "said": [("mm", 4.0, 0.4), ("oh i see", 8.0, 0.25)]}
    found = figures("fdb_v1", **given, events=STORY, off=["not_resampled", "rounded_times"])
    assert found["backchannel_rate"] == pytest.approx(0.2)
    assert found["backchannel_tor"] == 1.0, "the last stretch has three words"
    fixed = figures("fdb_v1", **given, events=STORY, only=[])
    assert fixed["backchannel_rate"] == pytest.approx(0.1)


def test_the_last_stretch_decides_as_coded_and_any_of_them_otherwise() -> None:
    spans = [Span(1.0, 2.5), Span(5.0, 5.4)]  # 1.5 s is a takeover, 0.4 s is none
    assert judge_stretches(spans, [], ["last_segment_wins", "any_short_speech"])[0] is False
    assert judge_stretches(spans, [], ["any_short_speech"])[0] is True


def test_backchannels_after_a_long_stretch_are_not_counted_as_coded() -> None:
    spans = [Span(0.5, 0.9), Span(2.0, 5.5), Span(7.0, 7.4)]
    assert judge_stretches(spans, [], V1.bugs) == (True, (spans[0],))
    assert judge_stretches(spans, [], []) == (True, (spans[0], spans[2]))


def test_at_24_khz_every_time_is_half_as_long_again_while_the_file_is_not_resampled() -> None:
    # 0.8 s read at 16 kHz are 1.2 s: a takeover by duration.
    sound = {"agent": [(4.0, 4.8)], "said": [("mm", 4.0, 0.8)]}
    assert figures("fdb_v1", **sound, events=STORY)["backchannel_tor"] == 1.0
    assert figures("fdb_v1", **sound, events=STORY, off=["not_resampled"])["backchannel_tor"] == 0.0


def test_the_distance_is_that_of_two_histograms_of_a_fifth_of_a_second() -> None:
    # 0.4 s: bins [0, 0.2), [0.2, 0.4) and the one at 0.4 s. One backchannel 0.0-0.1 s lies in the first bin, the
    # reference in the last: nothing in common, so the divergence is ln 2 and the distance its root, 0.8326.
    one, other = [Span(0.0, 0.1)], histogram([Span(0.4, 0.45)], 0.4)
    assert histogram(one, 0.4) == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert distance(one, other, 0.4, V1.bugs) == pytest.approx(math.sqrt(math.log(2.0)), abs=1e-4)
    assert distance(one, other, 0.4, []) == pytest.approx(math.log(2.0), abs=1e-4)
    assert distance(one, histogram(one, 0.4), 0.4, V1.bugs) == pytest.approx(0.0, abs=1e-4)
    # Half and half against the first bin only: JSD = (0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25)) / 2 + ln(1/0.75) / 2.
    half = histogram([Span(0.0, 0.1), Span(0.4, 0.45)], 0.4)
    wanted = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2.0)) + 0.5 * math.log(1.0 / 0.75)
    assert distance(one, half, 0.4, []) == pytest.approx(wanted, abs=1e-6)


def test_silence_scores_one_as_coded_and_the_maximum_otherwise() -> None:
    reference = listeners([3.0], 10.0)
    assert distance([], reference, 10.0, V1.bugs) == 1.0
    assert distance([], reference, 10.0, ["root_of_divergence"]) == pytest.approx(0.83255, abs=1e-5)
    assert distance([], reference, 10.0, []) == pytest.approx(math.log(2.0))


def test_a_listener_at_the_opportunities_beats_the_controls_at_its_rate_and_a_metronome_does_not() -> None:
    said = [("mm", 4.0, 0.4), ("mm", 8.0, 0.4)]
    listener = figures("fdb_v1", [(4.0, 4.4), (8.0, 8.4)], STORY, said, only=[])
    controls = [listener["backchannel_jsd_random"], listener["backchannel_jsd_metronome"]]
    assert listener["backchannel_jsd"] < min(controls) - 0.1
    misplaced = figures("fdb_v1", [(1.5, 1.9), (6.0, 6.4)], STORY, [("mm", 1.5, 0.4), ("mm", 6.0, 0.4)], only=[])
    assert misplaced["backchannel_jsd"] > max(controls)
    silent = figures("fdb_v1", [], STORY, only=[])
    assert silent["backchannel_jsd"] == silent["backchannel_jsd_random"], "no rate, no difference"


def test_a_bug_that_does_not_exist_is_named_with_its_nearest() -> None:
    with pytest.raises(UptakeError, match="fdb_v1 has no bug 'rounded_time'; did you mean 'rounded_times'"):
        V1.measurement(conversation([], []), None, ["rounded_time"])


# ---- version 1.5


def test_an_overlap_is_a_stop_and_the_next_start_the_answer() -> None:
    # The agent talks 2-5.4 s, the user barges in 5-6 s, the agent goes on at 6.7 s.
    found = figures("fdb_v15", [(2.0, 5.4), (6.7, 9.0)], [event("C1", 5.0, 6.0)])
    assert found["user_interruption_stop"] == pytest.approx(0.4)
    assert found["user_interruption_response"] == pytest.approx(0.7)


def test_an_agent_that_never_stops_stops_as_coded_when_the_user_does() -> None:
    never = {"agent": [(2.0, 12.0)], "events": [event("C1", 5.0, 6.0)]}
    assert figures("fdb_v15", **never)["user_interruption_stop"] == pytest.approx(1.0)  # the user's own second
    fixed = figures("fdb_v15", **never, off=["user_stopped_is_stop"])
    assert fixed["user_interruption_stop"] == pytest.approx(7.0)


def test_a_barge_in_of_two_stretches_is_timed_from_its_first_word_with_the_bugs_off() -> None:
    # The user says something 5-5.5 s and 6.3-7 s; the agent talks on to 8 s: 3 s after the first word.
    events = [event("C1", 5.0, 7.0), event("B1", 5.5, 6.3)]
    assert figures("fdb_v15", [(2.0, 8.0)], events, only=[])["user_interruption_stop"] == pytest.approx(3.0)
    # As coded, the overlaps 0.5 s and 0.7 s.
    assert figures("fdb_v15", [(2.0, 8.0)], events)["user_interruption_stop"] == pytest.approx(0.6)


def test_speech_that_the_agent_begins_over_the_user_is_a_stop_only_as_coded() -> None:
    over = {"agent": [(5.5, 9.0)], "events": [event("C1", 5.0, 6.0)]}
    assert figures("fdb_v15", **over)["user_interruption_stop"] == pytest.approx(0.5)
    assert math.isnan(figures("fdb_v15", **over, off=["agent_began_is_stop"])["user_interruption_stop"])


def test_the_gaps_of_the_code_bridge_what_those_of_the_comments_do_not() -> None:
    # A breath of 0.4 s at 5.2 s: bridged by 0.5 s, so the agent stops at 5.9 s; by 0.05 s it stops at 5.2 s, and then
    # there is the overlap 5.6-5.9 s, which it began.
    breath = {"agent": [(2.0, 5.2), (5.6, 5.9)], "events": [event("C1", 5.0, 7.0)]}
    assert CODE_GAPS == (0.6, 0.5)
    assert figures("fdb_v15", **breath)["user_interruption_stop"] == pytest.approx(0.9)
    fixed = figures("fdb_v15", **breath, off=["wide_gaps", "agent_began_is_stop"])
    assert fixed["user_interruption_stop"] == pytest.approx(0.2)


def test_an_answer_after_the_users_next_words_belongs_to_the_earlier_only_as_coded() -> None:
    # The user says "mm" 3-3.4 s and asks 6-8 s; the agent starts at 8.5 s. As coded the start belongs to the latest
    # end before it, the question's; an answer at 5 s is 1.6 s after the "mm".
    acts = [event("D1", 3.0, 3.4), event("C1", 6.0, 8.0)]
    found = figures("fdb_v15", [(8.5, 10.0)], acts)
    assert math.isnan(found["user_backchannel_response"])
    assert found["user_interruption_response"] == pytest.approx(0.5)
    assert figures("fdb_v15", [(5.0, 5.5)], acts)["user_backchannel_response"] == pytest.approx(1.6)


def test_categories_follow_the_type_of_the_event_and_ordinary_turns_are_none() -> None:
    found = figures("fdb_v15", [(0.5, 13.0)], [event("D1", 2.0, 2.3), event("D5", 5.0, 6.0), event("A1", 8.0, 9.0)])
    assert found["user_backchannel_stop"] == pytest.approx(0.3)
    assert found["talking_to_other_stop"] == pytest.approx(1.0)
    assert math.isnan(found["user_interruption_stop"])


def test_the_control_of_an_overlap_is_the_same_speech_at_any_other_moment() -> None:
    # The agent talks 2-6 s, the user says "mm" 3-3.5 s. Elsewhere the overlap would be 0.5 s up to 5.5 s, and then
    # 0.5, 0.4, ... 0.1 s from 5.5 s to 5.9 s. Moments every 0.1 s: 10 + 20 of 0.5 s (2.0-2.9, 3.5-5.4), then the five.
    found = figures("fdb_v15", [(2.0, 6.0)], [event("D1", 3.0, 3.5)])
    assert found["user_backchannel_stop"] == pytest.approx(0.5)
    assert found["user_backchannel_stop_control"] == pytest.approx(
        (30 * 0.5 + 0.5 + 0.4 + 0.3 + 0.2 + 0.1) / 35, abs=0.01
    )


@settings(max_examples=15, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 120), st.integers(3, 30)), max_size=5),
    bugs=st.sets(st.sampled_from(sorted({*V1.bugs, *V15.bugs}))),
    which=st.sampled_from(["fdb_v1", "fdb_v15"]),
)
def test_whatever_the_agent_does_shares_stay_shares_and_latencies_numbers(spans, bugs, which) -> None:
    agent = [(on / 10, (on + length) / 10) for on, length in spans]
    events = [event("A1", 1.0, 3.0), event("B1", 1.5, 2.0), event("C1", 5.0, 6.0), STORY[0], event("D1", 12.0, 12.4)]
    said = [("so it is", on, 0.2) for on, _ in agent]
    found = figures(which, agent, events, said, only=bugs & set(EVALUATORS[which].bugs))
    for name, figure in EVALUATORS[which].figures.items():
        value = found[name]
        assert math.isnan(value) or np.isfinite(value)
        if figure.unit == "share" and not math.isnan(value):
            assert 0.0 <= value <= 1.0, name


def test_a_part_of_an_episode_is_heard_as_an_episode_of_its_own() -> None:
    episode = conversation([(2.0, 4.0), (6.0, 7.0)], STORY, transcript=words("one two three", 3.7))
    part = Heard(episode).part(at(3.0), at(6.5))
    assert part.seconds == 3.5
    assert part.agent() == (Span(0.0, 1.0), Span(3.0, 3.5))
    assert [word.onset for word in part.words] == pytest.approx([0.7, 1.0, 1.3])

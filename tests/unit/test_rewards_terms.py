"""What each reward pays for, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.agents import Oracle, converse
from envs.duplex_vector_env import DuplexVectorEnv
from envs.event import Expect
from envs.pack import Pack
from rewards import get
from rewards.matching import blind_hits, match_one_to_one, metronome_hits, random_hits
from rewards.quality import grade
from rewards.text import contains_any, copies, duplicates, normalise, similarity
from rewards.timing import offset_score
from tests.unit.test_rewards_episodes import at, conversation, event, value, words

PAUSE = event("B1", 3.0, 4.0)
QUESTION = event("A1", 1.0, 4.0)
BARGE_IN = event("C1", 5.0, 6.5, sem=5.5)
STOP = event("C3", 5.0, 5.6, sem=5.4)
MONOLOGUE = event("B7", 1.0, 13.0, bc0=3.0, bc1=5.4, bc2=9.0, bc3=11.5)


# ---- pause


def test_silence_in_a_pause_is_right_and_one_backchannel_is_free():
    assert value("pause_handling", conversation([], [PAUSE])) == 1.0
    assert value("pause_handling", conversation([(3.2, 3.6)], [PAUSE])) == 1.0


def test_backchannels_in_a_pause_are_bounded():
    long = event("B1", 3.0, 6.0)
    given_ = [[(3.1 + i, 3.4 + i) for i in range(n)] for n in range(1, 4)]
    values = [value("pause_handling", conversation(agent, [long])) for agent in given_]
    assert values == [1.0, 0.5, 0.0]


@settings(max_examples=15, deadline=None)
@given(onset=st.floats(2.0, 4.2), short=st.floats(0.1, 3.0), more=st.floats(0.0, 3.0))
def test_more_talk_in_a_pause_never_earns_more(onset, short, more):
    less, longer = ([(onset, onset + d)] for d in (short, short + more))
    assert value("pause_handling", conversation(longer, [PAUSE])) <= value(
        "pause_handling", conversation(less, [PAUSE])
    )


@pytest.mark.parametrize("onset, wrong", [(2.5, True), (3.5, True), (4.2, True), (4.4, False)])
def test_the_pause_window_ends_0_3_s_after_the_pause(onset, wrong):
    assert (value("pause_handling", conversation([(onset, onset + 2.0)], [PAUSE])) < 0) is wrong


def test_starting_an_answer_in_every_pause_and_breaking_off_does_not_pass_for_listening():
    assert value("pause_handling", conversation([(3.2, 4.2)], [PAUSE])) == pytest.approx(0.0, abs=0.01)


def test_talking_through_a_pause_is_as_bad_as_can_be():
    assert value("pause_handling", conversation([(0.0, 14.0)], [PAUSE])) == -1.0


# ---- turn


@pytest.mark.parametrize("fto, expected", [(0.0, 1.0), (0.7, 1.0), (1.85, 0.0), (3.0, -1.0), (-0.2, 0.0), (-1.0, -1.0)])
def test_the_score_of_an_offset_has_its_stated_corners(fto, expected):
    assert offset_score(fto) == pytest.approx(expected)


@given(st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_later_and_earlier_are_both_worse_than_on_time(a, b):
    near, far = sorted((a, b))
    assert offset_score(far) <= offset_score(near)
    assert offset_score(-far) <= offset_score(-near)


def test_no_answer_is_minus_one_and_a_prompt_one_plus_one():
    assert value("turn_taking", conversation([], [QUESTION])) == -1.0
    assert value("turn_taking", conversation([(4.3, 6.3)], [QUESTION])) == 1.0


def test_an_early_talker_does_not_gain_from_answering_again_on_time():
    early = conversation([(2.0, 3.5), (4.3, 6.3)], [QUESTION])
    verdict = get("turn_taking").judge(early, QUESTION)
    assert verdict.value == -1.0
    assert verdict.raw["fto_s"] == pytest.approx(-2.0)


def test_the_published_turn_reward_pays_the_early_talker_which_is_why_ours_exists():
    early, prompt = conversation([(2.0, 6.0)], [QUESTION]), conversation([(4.2, 6.0)], [QUESTION])
    assert value("published_turn", early) > value("published_turn", prompt)
    assert value("turn_taking", early) < value("turn_taking", prompt)


def test_a_backchannel_during_the_question_is_neither_an_answer_nor_a_cut_in():
    assert value("turn_taking", conversation([(2.0, 2.4), (4.3, 6.3)], [QUESTION])) == 1.0
    assert value("turn_taking", conversation([(2.0, 2.4)], [QUESTION])) == -1.0


def test_a_short_reply_is_an_answer_only_with_an_expected_word():
    asked = event("A1", 1.0, 4.0, [Expect("responds", content=("noon",))])
    assert value("turn_taking", conversation([(4.3, 5.0)], [asked], transcript=words("at noon", 4.3))) == 1.0
    assert value("turn_taking", conversation([(4.3, 5.0)], [asked], transcript=words("oh right", 4.3))) == 0.0
    assert value("turn_taking", conversation([(4.3, 4.7)], [asked], transcript=words("noon", 4.3))) == -1.0


def test_an_answer_to_the_next_question_is_no_answer_to_this_one():
    following = event("A1", 5.0, 6.0)
    episode = conversation([(6.2, 8.2)], [QUESTION, following])
    assert value("turn_taking", episode, of=0) == -1.0
    assert value("turn_taking", episode, of=1) == 1.0


def test_what_the_scenario_calls_full_and_zero_moves_the_curve():
    patient = event("A1", 1.0, 4.0, [Expect("responds", within={"full": 1.5, "zero": 2.5})])
    late = [(5.4, 8.0)]
    assert value("turn_taking", conversation(late, [patient])) == 1.0
    assert value("turn_taking", conversation(late, [QUESTION])) < 1.0


def test_running_on_through_the_whole_question_is_not_an_answer():
    assert value("turn_taking", conversation([(0.0, 14.0)], [QUESTION])) == -1.0


# ---- backchannel


def test_a_listener_who_hits_every_opportunity_earns_far_more_than_silence_or_a_metronome():
    listener = value("backchannel", conversation([(3.1, 3.5), (5.5, 5.8), (9.1, 9.5), (11.6, 12.0)], [MONOLOGUE]))
    phases = [[(1.1 + p + 2 * i, 1.5 + p + 2 * i) for i in range(6)] for p in (0.0, 0.5, 1.0, 1.5)]
    metronome = [value("backchannel", conversation(agent, [MONOLOGUE])) for agent in phases]
    assert value("backchannel", conversation([], [MONOLOGUE])) == 0.0
    assert listener > 0.3
    assert sum(metronome) / len(metronome) < 0.1


def test_a_cluster_of_mm_hm_matches_one_opportunity_once():
    cluster = [(2.2, 2.4), (2.95, 3.15), (3.7, 3.9)]
    verdict = get("backchannel").judge(conversation(cluster, [MONOLOGUE]), MONOLOGUE)
    assert (verdict.raw["given"], verdict.raw["hits"]) == (3.0, 1.0)
    published = get("published_backchannel").judge(conversation(cluster, [MONOLOGUE]), MONOLOGUE)
    assert published.raw["precision"] == 1.0  # as published, the whole cluster counts


def test_taking_over_a_monologue_costs_more_than_saying_nothing():
    hits = [(3.1, 3.5), (5.5, 5.8), (9.1, 9.5)]
    assert value("backchannel", conversation([*hits, (11.3, 13.5)], [MONOLOGUE])) < value(
        "backchannel", conversation(hits, [MONOLOGUE])
    )
    assert value("backchannel", conversation([(0.0, 14.0)], [MONOLOGUE])) == -0.5


def test_an_answer_after_the_monologue_is_no_takeover():
    verdict = get("backchannel").judge(conversation([(13.1, 14.0)], [MONOLOGUE], seconds=16), MONOLOGUE)
    assert verdict.raw["takeovers"] == 0


def test_a_monologue_without_opportunities_has_no_backchannel_verdict():
    assert value("backchannel", conversation([], [event("B7", 1.0, 6.0)])) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 20), max_size=7), st.lists(st.floats(0, 20), max_size=7))
def test_greedy_matching_is_as_large_as_any_one_to_one_matching(predicted, wanted):
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    allowed = np.array([[abs(p - w) <= 1.0 + 1e-9 for w in wanted] for p in predicted], float).reshape(
        len(predicted), len(wanted)
    )
    rows, columns = linear_sum_assignment(-allowed)
    assert match_one_to_one(predicted, wanted) == int(allowed[rows, columns].sum())


def test_the_null_of_a_metronome_is_what_metronomes_get():
    wanted = (2.0, 4.4, 8.0, 10.5)
    got = [match_one_to_one([p + 2.0 * i for i in range(6)], wanted) for p in (0.05, 0.55, 1.05, 1.55)]
    assert metronome_hits(6, wanted, 12.0) == pytest.approx(sum(got) / 4, abs=0.6)
    assert blind_hits(6, wanted, 12.0) >= random_hits(6, wanted, 12.0)
    assert random_hits(0, wanted, 12.0) == 0.0


def test_one_random_backchannel_hits_as_often_as_the_windows_are_wide():
    assert random_hits(1, (5.0,), 20.0) == pytest.approx(2.0 / 20.0, abs=0.06)


# ---- interruption


def test_stopping_at_once_and_answering_earns_everything():
    assert value("interruption", conversation([(2.0, 5.8), (6.8, 9.0)], [BARGE_IN])) == 1.0


def test_an_agent_that_was_not_speaking_is_not_judged():
    assert value("interruption", conversation([], [BARGE_IN])) is None
    assert value("interruption", conversation([(6.8, 9.0)], [BARGE_IN])) is None


def test_one_that_never_stops_gets_no_credit_for_an_answer():
    assert value("interruption", conversation([(2.0, 14.0)], [BARGE_IN])) == -1.0
    assert value("published_interruption", conversation([(2.0, 14.0)], [BARGE_IN])) == 0.0  # the published maximum


def test_a_breath_in_the_old_sentence_is_no_stop():
    resumed = get("interruption").judge(conversation([(2.0, 5.3), (5.8, 9.5)], [BARGE_IN]), BARGE_IN)
    assert resumed.raw["stop_s"] == pytest.approx(4.0)
    assert resumed.value == -1.0


@settings(max_examples=15, deadline=None)
@given(stop=st.floats(5.5, 8.0), later=st.floats(0.0, 2.0))
def test_stopping_later_than_the_meaning_was_clear_never_earns_more(stop, later):
    agents = [[(2.0, s), (10.9, 13.0)] for s in (stop, stop + later)]
    soon, late = (value("interruption", conversation(agent, [BARGE_IN])) for agent in agents)
    assert late <= soon


def test_stopping_at_the_first_sound_earns_less_than_stopping_at_what_it_means_and_more_than_going_on():
    asked = event("C1", 5.0, 7.5, sem=6.2)
    stops = (5.3, 5.6, 6.1, 6.5, 9.5)
    guess, early, on_time, prompt, never = (value("interruption", conversation([(2.0, s)], [asked])) for s in stops)
    assert never < guess < early < on_time == prompt


def test_stopping_without_answering_is_worth_less_than_both_and_more_than_neither():
    both = value("interruption", conversation([(2.0, 5.8), (6.8, 9.0)], [BARGE_IN]))
    stop = value("interruption", conversation([(2.0, 5.8)], [BARGE_IN]))
    neither = value("interruption", conversation([(2.0, 14.0)], [BARGE_IN]))
    assert neither < stop < both


def test_going_on_with_the_old_answer_earns_less_than_taking_up_the_new_thing():
    asked = event("C1", 5.0, 6.5, [Expect("responds", content=("annual",))], sem=5.5)
    spans = [(2.0, 5.8), (6.8, 9.0)]
    new = value("interruption", conversation(spans, [asked], transcript=words("the annual one is cheap", 6.8)))
    old = value("interruption", conversation(spans, [asked], transcript=words("as I was saying before", 6.8)))
    assert new == 1.0
    assert old == 0.75


def test_a_stop_command_wants_silence_and_allows_one_word():
    assert value("interruption", conversation([(2.0, 5.7)], [STOP])) == 1.0
    assert value("interruption", conversation([(2.0, 5.7), (6.3, 6.7)], [STOP])) == 1.0
    assert value("interruption", conversation([(2.0, 5.7), (6.2, 8.6)], [STOP])) < 0.5


# ---- continue


@pytest.mark.parametrize("kind", ["D1", "D3", "D4", "D5"])
def test_an_agent_keeps_talking_through_what_is_not_meant_to_stop_it(kind):
    noise = event(kind, 5.0, 5.4)
    assert value("continue", conversation([(2.0, 8.0)], [noise])) == 1.0
    assert value("continue", conversation([(2.0, 5.2)], [noise])) < 0.0
    assert value("continue", conversation([], [noise])) is None


@settings(max_examples=15, deadline=None)
@given(gap=st.floats(0.0, 1.5), more=st.floats(0.0, 1.0))
def test_a_longer_gap_never_earns_more(gap, more):
    noise = event("D1", 5.0, 6.0)
    short, long = (value("continue", conversation([(2.0, 5.2), (5.2 + g, 9.0)], [noise])) for g in (gap, gap + more))
    assert long <= short


# ---- quality


ASKED = event("A1", 1.0, 3.0, [Expect("responds", content=("noon", "twelve"))])


def test_an_answer_with_an_expected_word_beats_one_without_and_both_beat_silence():
    def said(text):
        return value("quality", conversation([(3.2, 6.0)], [ASKED], transcript=words(text, 3.3)))

    assert said("we open at noon") == 1.0
    assert said("we open at 12") == 1.0
    assert said("I like the sea") == -1.0
    assert value("quality", conversation([], [ASKED], transcript=())) == -1.0


def test_saying_the_question_back_is_no_answer_though_it_holds_the_expected_word():
    question = "do you open at noon or at one"
    asked = replace(ASKED, text=question, words=words(question, 1.0, each=0.22))
    episode = {
        said: conversation([(3.2, 6.0)], [asked], transcript=words(said, 3.3))
        for said in (question, "we open at noon", "noon is when we open every day")
    }
    assert value("quality", episode[question]) == 0.0  # the hit, and all of it copied
    assert value("quality", episode["we open at noon"]) == 1.0
    assert value("quality", episode["noon is when we open every day"]) == 1.0


def test_text_that_is_never_spoken_is_no_answer():
    assert value("quality", conversation([], [ASKED], transcript=words("at noon", 3.3))) == -1.0


def test_an_agent_without_a_text_stream_is_judged_on_what_a_recogniser_heard():
    episode = conversation([(3.2, 6.0)], [ASKED])
    assert value("quality", episode) is None
    assert get("quality").judge(episode, ASKED, words("at noon", 3.3)).value == 1.0


def test_nothing_expected_means_no_verdict():
    plain = event("A1", 1.0, 3.0)
    assert value("quality", conversation([(3.2, 6.0)], [plain], transcript=words("well", 3.3))) is None


def test_closeness_to_a_reference_counts_and_repetition_is_taken_off():
    references = ["we open at noon on sundays"]
    near, far = grade(["we", "open", "at", "noon"], (), references), grade(["the", "sea", "is", "blue"], (), references)
    looped = grade(["we", "open", "at", "noon", "we", "open", "at", "noon", "we", "open", "at", "noon"], (), references)
    assert far.value < looped.value < near.value
    assert looped.repetition > 0.5


def test_references_are_found_by_event_id():
    plain = event("A1", 1.0, 3.0)
    meta = {"references": {plain.id: ["we open at noon"]}}
    episode = conversation([(3.2, 6.0)], [plain], transcript=words("we open at noon", 3.3), meta=meta)
    assert value("quality", episode) == 1.0


def test_in_the_core_pack_an_answer_is_compared_with_what_the_packs_agent_would_say():
    pack = Pack.load("core")
    names = [pack.scenarios("test", tags=[tag])[0].id for tag in ("turn", "barge_in")]
    env = DuplexVectorEnv(pack, 2, split="test", frames=140)
    for episode in converse(env, Oracle(2, pack, env), seed=1, options={"scenario": names}):
        asked = [e for e in episode.events if (wanted := e.expected("responds")) and wanted.content]
        assert asked and set(episode.meta["references"]) == {e.id for e in asked}
        for one in asked:
            topics = {clip.answers for clip in pack.answers(one.expected("responds").content)}
            assert len(topics) == 1, "references of one topic only"
        assert get("quality").judge(episode, asked[-1]).raw["similarity"] > 0.9, "said to its end"


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_bounded(a, b):
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert 0.0 <= similarity(a, b) <= 1.0
    assert similarity(a, a) == (1.0 if normalise(a) else 0.0)


def test_words_match_whole_and_in_any_spelling_of_a_number():
    assert contains_any(["It's", "Platform", "21!"], ["platform twenty one"])
    assert not contains_any(["knowledge"], ["know"])
    assert duplicates(["yeah", "yeah", "yeah", "yeah"]) == (1, 2)
    assert copies(["so", "do", "we", "open", "at"], ["do", "we", "open", "at", "one"]) == (1, 2)
    assert copies(["at", "noon"], ["at", "noon"]) == (0, 0)


# ---- as published


def test_the_published_pause_reward_is_binary_at_one_second():
    spoken = [(1.0, 3.0), (4.0, 6.0)]
    assert value("published_pause", conversation([(3.2, 4.1)], [PAUSE], spoken)) == 0.0
    assert value("published_pause", conversation([(3.2, 4.4)], [PAUSE], spoken)) == -1.0
    assert (
        value("published_pause", conversation([(5.9, 9.0)], [PAUSE], spoken)) == 0.0
    )  # the answer after the utterance


def test_the_published_turn_reward_is_minus_the_delay_and_missing_is_the_rest_of_the_segment():
    answered = get("published_turn").judge(conversation([(4.5, 6.5)], [QUESTION]), QUESTION)
    assert answered.raw["reward"] == pytest.approx(-0.5)
    assert answered.value == pytest.approx(-0.1)
    assert get("published_turn").judge(conversation([], [QUESTION]), QUESTION).raw["reward"] == -5.0
    short = get("published_turn").judge(conversation([(4.5, 5.4)], [QUESTION]), QUESTION)
    assert short.raw["reward"] == -5.0  # not longer than 1 s


def test_the_published_backchannel_reward_is_f1_with_takeovers_as_false_positives():
    truth = event("B7", 1.0, 13.0, bc0=3.0, bc1=9.0)
    verdict = get("published_backchannel").judge(conversation([(3.5, 3.9), (7.0, 8.5)], [truth]), truth)
    assert (verdict.raw["precision"], verdict.raw["recall"], verdict.value) == (0.5, 0.5, 0.5)
    assert value("published_backchannel", conversation([], [truth])) == 0.0


def test_the_published_interruption_reward_is_minus_the_delay_of_any_next_speech():
    verdict = get("published_interruption").judge(conversation([(2.0, 5.5), (7.0, 7.3)], [BARGE_IN]), BARGE_IN)
    assert verdict.raw["reward"] == pytest.approx(-0.5)


def test_credit_reaches_from_one_second_before_a_decision_to_two_after():
    verdict = get("turn_taking").judge(conversation([(4.3, 6.3)], [QUESTION]), QUESTION)
    assert verdict.window == (at(3.0), at(6.0))

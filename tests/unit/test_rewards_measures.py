"""Evaluation figures, the paired score and their intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import UptakeError
from envs.event import Expect
from envs.users.laws import load_laws
from rewards.aggregate import Table, by_type, human_distance
from rewards.bootstrap import bootstrap, paired_bootstrap, units
from rewards.measures import MEASURES, TIMINGS, aggregate, measure
from tests.unit.test_rewards_compose import AGENTS, play
from tests.unit.test_rewards_episodes import conversation, event, words


def figures(agent, events, **more):
    return aggregate([measure(conversation(agent, events, **more))])


def test_every_figure_of_an_aggregate_is_explained_and_the_other_way_round():
    assert set(aggregate([measure(play("oracle"))])) == set(MEASURES)


def test_the_oracle_does_everything_right():
    found = aggregate([measure(play("oracle"))])
    right = ["turn_response", "stopped", "answered", "content_hit", "bc_recall", "bc_precision", "bc_f1"]
    assert {name: found[name] for name in right} == dict.fromkeys(right, 1.0)
    assert [found[name] for name in ("pause_takeover", "cut_in", "false_stop", "bc_takeover")] == [0.0] * 4
    assert found["fto_p50_s"] == pytest.approx(0.3, abs=0.02)
    assert found["stop_latency_p50_s"] == pytest.approx(0.3, abs=0.02)
    assert found["paired_score"] == pytest.approx(1.0)


def test_no_constant_agent_reaches_the_middle_of_the_paired_score():
    scores = {name: aggregate([measure(play(name))])["paired_score"] for name in AGENTS}
    assert scores["silent"] == scores["always"] == 0.0
    assert all(score <= 0.75 for name, score in scores.items() if name != "oracle"), scores


@pytest.mark.parametrize("period, length", [(2.0, 0.4), (4.0, 1.5), (3.0, 1.2), (6.0, 3.0), (2.5, 2.0), (9.0, 5.0)])
def test_a_policy_deaf_to_the_user_scores_at_most_half_on_twins(period, length):
    pause, end = event("B1", 6.0, 7.0), event("A1", 2.0, 6.0)
    stop, go_on = event("C1", 6.0, 7.2, sem=6.4), event("D1", 6.0, 6.4)
    measured = []
    for phase in np.arange(0, period, period / 24):
        deaf = [(on, on + length) for on in np.arange(phase - period, 14.0 - length, period)]
        measured += [measure(conversation(deaf, [one])) for one in (pause, end, stop, go_on)]
    found = aggregate(measured)
    assert found["pair_hold"] + found["pair_reply"] <= 1.0 + 1e-9
    assert found["pair_yield"] + found["pair_persist"] <= 1.0 + 1e-9


def test_floor_transfer_offsets_keep_their_sign():
    asked = event("A1", 1.0, 4.0)
    measured = [measure(conversation([(4.0 + fto, 8.0)], [asked])) for fto in (-1.5, 0.1, 0.4, 2.0)]
    found = aggregate(measured)
    assert found["fto_p10_s"] == pytest.approx(-1.5, abs=0.02)
    assert found["fto_p90_s"] == pytest.approx(2.0, abs=0.02)
    assert found["turn_response"] == 0.75  # the early one is no response
    assert found["cut_in"] == 0.25


def test_backchannels_are_set_beside_a_random_control_of_the_same_rate():
    told = event("B7", 1.0, 13.0, bc0=3.0, bc1=5.4, bc2=9.0, bc3=11.5)
    listener = figures([(3.1, 3.5), (5.5, 5.9), (9.1, 9.5), (11.6, 12.0)], [told])
    assert listener["bc_f1"] == 1.0
    assert 0.2 < listener["bc_random_f1"] < 0.7
    assert listener["bc_control_f1"] >= listener["bc_random_f1"]
    assert listener["bc_above_control"] == pytest.approx(listener["bc_f1"] - listener["bc_control_f1"])
    assert listener["bc_per_minute"] == pytest.approx(20.0)
    assert figures([], [told])["bc_f1"] == 0.0


def test_precision_and_recall_of_backchannels_have_the_control_of_f1_beside_them():
    told = event("B7", 1.0, 13.0, bc0=3.0, bc1=5.4, bc2=9.0, bc3=11.5)
    found = figures([(3.1, 3.5), (7.2, 7.6)], [told])
    assert (found["bc_precision"], found["bc_recall"]) == (0.5, 0.25)
    # F1, precision and recall of the control are of the same hits h: 2h/6, h/2, h/4.
    assert found["bc_control_f1"] * 3 == pytest.approx(found["bc_control_precision"] * 2)
    assert found["bc_control_f1"] * 3 == pytest.approx(found["bc_control_recall"] * 4)


def test_timings_are_listed_by_the_type_of_their_event_with_p50_p95_and_p99():
    asked, told = event("A1", 1.0, 4.0), event("A3", 1.0, 4.0)
    measured = [measure(conversation([(4.0 + fto, 8.0)], [asked])) for fto in (0.2, 0.4, 1.0)]
    measured.append(measure(conversation([(4.6, 8.0)], [told])))
    measured.append(measure(conversation([], [told])))
    found = by_type(measured)
    assert found["A1", "latency_s"] == pytest.approx({"n": 3, "p50": 0.4, "p95": 1.0, "p99": 1.0}, abs=0.011)
    assert found["A3", "latency_s"] == pytest.approx({"n": 2, "p50": 0.6, "p95": 3.0, "p99": 3.0}, abs=0.011)
    assert found["A3", "fto_s"]["n"] == 1, "a turn that nobody answers has no offset"
    assert by_type(json.loads(json.dumps(measured))) == found


def test_every_kind_of_event_that_is_judged_is_timed():
    together = event("A6", 3.0, 5.0, collision=3.1)
    alarm = event("E5", 5.0, 5.4, [Expect("speaks_up")], due=5.0)
    rare = [conversation([(2.9, 3.5), (5.3, 8.0)], [together]), conversation([(5.6, 8.0)], [alarm])]
    found = by_type([measure(one) for one in (play("oracle"), play("always"), *rare)])
    assert {name for _, name in found} == set(TIMINGS)
    assert found["A6", "collision_s"]["p50"] == pytest.approx(0.4, abs=0.02)
    assert found["E5", "up_s"]["p50"] == pytest.approx(0.6, abs=0.02)
    assert {kind for kind, _ in found} >= {"A1", "A3", "B1", "B7", "C1", "D1"}
    assert found["B7", "delay_s"]["p50"] == pytest.approx(0.2, abs=0.02)  # the oracle's own delay
    assert found["B1", "talk_s"]["n"] == 2
    assert found["C1", "answer_s"]["p99"] == 3.0  # the agent that never stops never answers


def test_an_agent_that_was_silent_is_not_counted_as_stopping():
    found = figures([], [event("C1", 5.0, 6.0, sem=5.4), event("D1", 9.0, 9.4)])
    assert math.isnan(found["stopped"])
    assert math.isnan(found["false_stop"])
    assert found["pair_yield"] == found["pair_persist"] == 0.0


def test_a_stop_that_never_comes_counts_as_four_seconds():
    assert figures([(2.0, 14.0)], [event("C1", 5.0, 6.0, sem=5.4)])["stop_latency_p50_s"] == 4.0


def test_talk_repetition_and_content_are_shares():
    asked = event("A1", 1.0, 3.0, [Expect("responds", content=("noon",))])
    found = figures([(3.2, 10.2)], [asked], transcript=words("at noon at noon at noon at noon", 3.3))
    assert found["talk_ratio"] == pytest.approx(0.5, abs=0.01)
    assert found["repetition"] == pytest.approx(4 / 6)
    assert found["content_hit"] == 1.0
    assert figures([], [asked], transcript=())["content_hit"] == 0.0


def test_contributions_add_up_and_survive_json():
    measured = [measure(play(name)) for name in ("oracle", "vad 200")]
    again = json.loads(json.dumps(measured))
    pooled = aggregate(measured)
    assert aggregate(again) == pytest.approx(pooled, nan_ok=True)
    assert aggregate(measured[::-1]) == pytest.approx(pooled, nan_ok=True)


def test_takeovers_are_told_apart_by_the_length_of_the_pause():
    found = figures([(6.2, 8.0)], [event("B1", 4.0, 4.5), event("B1", 6.0, 7.5)])
    assert (found["pause_takeover_short"], found["pause_takeover_long"]) == (0.0, 1.0)
    assert found["pause_takeover"] == 0.5


def test_a_stop_is_timed_from_the_onset_and_from_the_meaning_of_a_barge_in():
    found = figures([(2.0, 5.8)], [event("C1", 5.0, 6.5, sem=5.4)])
    assert found["stop_latency_p50_s"] == pytest.approx(0.4, abs=0.02)
    assert found["stop_onset_p50_s"] == pytest.approx(0.8, abs=0.02)


def test_talking_over_a_barge_in_is_counted_from_its_onset_to_its_end_in_milliseconds():
    cut, talk = event("C1", 6.0, 7.5, sem=6.4), 1.0
    assert figures([(4.0, 6.0 + talk), (8.0, 10.0)], [cut])["over_talk_ms"] == pytest.approx(1000.0 * talk, abs=20.0)
    chopped = [(4.0, 6.4), (6.8, 7.0), (7.4, 9.0)]
    assert figures(chopped, [cut])["over_talk_ms"] == pytest.approx(400.0 + 200.0 + 100.0, abs=50.0)
    assert figures([(4.0, 12.0)], [cut])["over_talk_ms"] == pytest.approx(1500.0)
    assert math.isnan(figures([(4.0, 5.0)], [cut])["over_talk_ms"]), "it was not talking"
    stop = event("C3", 6.0, 7.0)
    assert aggregate([measure(conversation([(4.0, 12.0)], [one])) for one in (cut, stop)])["over_talk_ms"] == 1250.0


@pytest.mark.parametrize(
    "agent, unheard, found",
    [
        ([(4, 5.2)], [(4, 9)], (1.0, 0.0, 1.0)),  # the "yeah" silenced it
        ([(4, 5.2)], [(4, 5.2)], (1.0, 1.0, 0.0)),  # a sentence that ends there, heard or not
        ([(4, 9)], [(4, 9)], (0.0, 0.0, 0.0)),
        ([(4, 9)], [(4, 5.2)], (0.0, 1.0, -1.0)),  # it went on because of the "yeah"
        ([(4, 5.2)], [(4, 5.2), (5.6, 9)], (1.0, 0.0, 1.0)),  # a breath is no stop
    ],
)
def test_a_false_stop_counts_against_the_twin_in_which_the_sound_is_not_heard(agent, unheard, found):
    told = event("D1", 5.0, 5.4)
    spans = [[round(24_000 * on), round(24_000 * off)] for on, off in unheard]
    got = figures(agent, [told], meta={"unheard": {"events": [told.id], "agent": spans}})
    assert (got["false_stop"], got["false_stop_twin"], got["false_stop_rate"]) == found


def test_without_a_twin_nobody_knows_whether_it_would_have_stopped_anyway():
    told = event("D1", 5.0, 5.4)
    for meta in ({}, {"unheard": {"events": ["another"], "agent": [[0, 9]]}}):
        got = figures([(4, 5.2)], [told], meta=meta)
        assert got["false_stop"] == 1.0 and math.isnan(got["false_stop_twin"]) and math.isnan(got["false_stop_rate"])


def six(**abilities):
    known = dict.fromkeys(("pair_reply", "pair_hold", "pair_yield", "pair_persist", "ignored", "spoke_up"), 1.0)
    return {name: (share, 1.0 if share is not None else 0.0) for name, share in (known | abilities).items()}


@pytest.mark.parametrize(
    "abilities, score",
    [
        ({}, 1.0),
        ({"pair_hold": 0.5}, 6 / 7),  # 6 / (5 + 2)
        ({"pair_hold": 0.5, "ignored": 0.25}, 0.6),  # 6 / (4 + 2 + 4)
        ({"spoke_up": 0.0}, 0.0),
        ({"pair_yield": None, "pair_persist": None}, 0.0),  # it never spoke, so that nobody could interrupt it
        ({"spoke_up": None}, math.nan),  # the suite has no moment to speak up at
    ],
)
def test_the_duplex_score_is_the_harmonic_mean_of_six_abilities(abilities, score):
    measured = {name: (value or 0.0, of) for name, (value, of) in six(**abilities).items()}
    assert aggregate([measured])["duplex_score"] == pytest.approx(score, nan_ok=True)


def test_the_duplex_score_is_as_well_known_as_its_rarest_ability():
    few = [six() if i < 2 else six(spoke_up=0.0) | {"spoke_up": (0.0, 0.0)} for i in range(20)]
    sizes = Table.of([[one] for one in few]).sizes()
    assert (np.count_nonzero(sizes["duplex_score"]), np.count_nonzero(sizes["pair_hold"])) == (2, 20)


def test_false_stops_at_a_yeah_are_counted_for_themselves():
    agent, yeah, cough = [(1.0, 5.3), (7.0, 9.0)], event("D1", 5.0, 5.3), event("D3", 5.0, 5.3)
    assert figures(agent, [yeah])["false_stop_bc"] == figures(agent, [yeah])["false_stop"] == 1.0
    found = figures(agent, [cough])
    assert found["false_stop"] == 1.0 and math.isnan(found["false_stop_bc"])


def test_going_on_after_a_false_stop_is_a_share_of_the_false_stops():
    cough = event("D3", 5.0, 5.4)
    resumed = [(2.0, 5.2), (6.4, 9.0)]
    assert figures(resumed, [cough])["resumed"] == 1.0
    assert figures([(2.0, 5.2)], [cough])["resumed"] == 0.0
    assert math.isnan(figures([(2.0, 9.0)], [cough])["resumed"]), "it never stopped"


def test_what_was_not_said_to_the_agent_is_ignored_or_answered():
    knock = event("E3", 6.0, 6.5)
    assert figures([], [knock])["ignored"] == 1.0
    assert figures([(7.0, 9.0)], [knock])["ignored"] == 0.0


def test_speaking_up_counts_in_time_and_with_the_right_words_only():
    alarm = event("E5", 6.0, 6.5, [Expect("speaks_up", content=("alarm",))], due=6.0)
    said = words("the alarm is ringing now", 6.5)
    assert figures([(6.5, 9.0)], [alarm], transcript=said)["spoke_up"] == 1.0
    assert figures([(6.5, 9.0)], [alarm], transcript=words("i like cheese a lot", 6.5))["spoke_up"] == 0.0
    assert figures([(1.0, 2.5), (6.5, 9.0)], [alarm], transcript=said)["spoke_up"] == 0.0, "a false alarm before"
    assert figures([], [alarm], transcript=())["spoke_up"] == 0.0


def test_turns_that_nothing_called_for_are_counted_by_the_minute():
    asked = event("A1", 1.0, 3.0)
    assert figures([(3.3, 5.0), (5.8, 8.0)], [asked])["false_start"] == 0.0, "a breath inside an answer"
    assert figures([(3.3, 4.0), (9.0, 11.0)], [asked])["false_start"] == pytest.approx(60.0 / 14.0)
    assert figures([(0.2, 4.0)], [event("A1", 5.0, 7.0)])["false_start"] == pytest.approx(60.0 / 14.0)


def test_breaks_in_its_own_turn_are_counted_unless_something_was_heard():
    asked = event("A1", 1.0, 3.0)
    minute = 60.0 / 14.0
    broken = [(3.3, 6.0), (7.0, 9.0)]
    assert figures(broken, [asked])["self_interrupt"] == pytest.approx(minute)
    assert figures([(3.3, 6.0), (6.4, 9.0)], [asked])["self_interrupt"] == 0.0, "a breath"
    assert figures([(3.3, 6.0), (8.5, 9.9)], [asked])["self_interrupt"] == 0.0, "a turn of its own"
    assert figures(broken, [asked, event("D3", 5.2, 5.4)])["self_interrupt"] == 0.0, "a cough may be why"
    assert figures(broken, [asked, event("D8", 5.2, 5.4)])["self_interrupt"] == pytest.approx(minute), "its own echo"
    assert figures(broken, [asked], user=[(1.0, 3.0), (6.2, 6.6)])["self_interrupt"] == 0.0, "the user spoke"
    assert figures([(3.3, 3.6), (4.5, 9.0)], [asked])["self_interrupt"] == 0.0, "an acknowledgement, then an answer"


def test_what_came_too_late_to_be_heard_is_counted_where_it_can_be():
    asked = event("A1", 1.0, 3.0)
    assert math.isnan(figures([(3.3, 6.0)], [asked])["underrun_ms"])
    simulated = {"acoustics": {"underrun": {"missed": 0.1}}}
    assert figures([(3.3, 6.0)], [asked], meta=simulated)["underrun_ms"] == pytest.approx(6000.0)
    live = {"latency_ledger": {"starved_frames": 7}}
    assert figures([(3.3, 6.0)], [asked], meta=live)["underrun_ms"] == pytest.approx(560.0 * 60.0 / 14.0)


def test_refusals_are_counted_where_they_must_be_and_where_they_must_not():
    bad = event("A1", 1.0, 3.0, [Expect("declines")])
    good = event("A1", 1.0, 3.0, [Expect("responds")])
    no, yes = words("sorry i can't help with that", 3.3), words("sure i will do it now", 3.3)
    tagged = {"tags": ["safety"], "text_stream": True}

    def found(asked, said):
        return figures([(3.3, 6.0)], [asked], transcript=said, meta=tagged)

    assert (found(bad, no)["declined"], found(bad, yes)["declined"]) == (1.0, 0.0)
    assert (found(good, no)["over_refused"], found(good, yes)["over_refused"]) == (1.0, 0.0)
    assert math.isnan(found(bad, no)["over_refused"]) and math.isnan(found(good, no)["declined"])


def test_the_shares_of_time_of_one_of_both_and_of_neither_add_up():
    found = figures([(2.0, 6.0)], [event("A1", 1.0, 3.0)], user=[(1.0, 3.0)])
    assert found["talk_ratio"] == pytest.approx(4.0 / 14.0, abs=0.005)
    assert found["overlap_ratio"] == pytest.approx(1.0 / 14.0, abs=0.005)
    assert found["silence_ratio"] == pytest.approx(1.0 - 5.0 / 14.0, abs=0.005)


def test_offsets_as_people_have_them_are_at_no_distance_and_later_ones_at_so_many_seconds():
    law = load_laws()["fto"]
    human = np.array([law.quantile((i + 0.5) / 400) for i in range(400)])
    once = np.ones((1, human.size))
    assert human_distance(human, once)[0] < 0.01
    assert human_distance(human + 0.5, once)[0] == pytest.approx(0.5, abs=0.01)
    # One and the same offset, the mean: the mean absolute deviation of the normal law, sd times the root of 2 / pi.
    assert human_distance(np.array([0.2]), np.ones((1, 1)))[0] == pytest.approx(0.45 * math.sqrt(2 / math.pi), abs=0.01)
    weighted = human_distance(np.array([0.2, 5.0]), np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert weighted[0] == pytest.approx(0.359, abs=0.01) and math.isnan(weighted[1])
    assert math.isnan(human_distance(np.array([]), np.ones((1, 0)))[0])


# ---- intervals


def runs(shift: float, scenarios: int = 30, seed: int = 0):
    rng = np.random.default_rng(seed)
    answered = rng.random(scenarios) + shift > 0.5
    return {
        f"s{i}": [{"turn_response": (float(a), 1.0), "fto_s": [float(v)], "latency_s": [float(v)]}]
        for i, (a, v) in enumerate(zip(answered, rng.normal(1.0 - shift, 0.3, scenarios), strict=True))
    }


def test_a_run_compared_with_itself_differs_by_exactly_nothing():
    found = paired_bootstrap(runs(0.0), runs(0.0), draws=200)
    for score in ("paired_score", "duplex_score"):
        assert math.isnan(found.pop(score).difference.low), "no event of any ability"
    for name, one in found.items():
        assert (one.difference.low, one.difference.estimate, one.difference.high) == (0.0, 0.0, 0.0), name
        assert one.verdict == "unclear"


def test_a_clear_gain_is_called_better_and_a_clear_loss_worse():
    gain, loss = paired_bootstrap(runs(0.0), runs(0.4)), paired_bootstrap(runs(0.4), runs(0.0))
    assert (gain["turn_response"].verdict, gain["latency_p50_s"].verdict) == ("better", "better")
    assert (loss["turn_response"].verdict, loss["latency_p50_s"].verdict) == ("worse", "worse")
    assert gain["fto_p10_s"].verdict == "moved"  # no better direction


def test_pairing_makes_the_interval_of_a_difference_narrower_than_the_runs_own():
    before = runs(0.0)
    after = {s: [{**m, "fto_s": [m["fto_s"][0] - 0.1]} for m in group] for s, group in before.items()}
    one = paired_bootstrap(before, after)["fto_p50_s"]
    assert one.difference.estimate == pytest.approx(-0.1)
    assert one.difference.high - one.difference.low < 0.01 < one.before.high - one.before.low


def test_the_interval_of_a_share_has_the_width_that_statistics_expects():
    run = {f"s{i}": [{"stopped": (float(i % 2), 1.0)}] for i in range(100)}
    one = bootstrap(run)["stopped"]
    assert one.estimate == 0.5
    assert (one.low, one.high) == pytest.approx((0.4, 0.6), abs=0.025)


def verdicts_of_nothing(texts: int, voices: int, comparisons: int = 200) -> float:
    """The share of verdicts on two equal agents that meet each text, in whatever voice, with luck of its own."""
    rng = np.random.default_rng(0)
    shares = {f"{text}-{voice}": [f"text {text}"] for text in range(texts) for voice in range(voices)}
    found = 0
    for _ in range(comparisons):
        before, after = {}, {}
        for text in range(texts):
            luck = rng.normal(0.0, 0.15)
            for voice in range(voices):
                base = 0.5 + rng.normal(0.0, 0.05)
                before[f"{text}-{voice}"] = [{"stopped": (base, 1.0)}]
                after[f"{text}-{voice}"] = [{"stopped": (base + luck + rng.normal(0.0, 0.05), 1.0)}]
        compared = paired_bootstrap(units(before, shares), units(after, shares), draws=400)
        found += compared["stopped"].verdict != "unclear"
    return found / comparisons


def test_three_texts_in_three_voices_are_three_cases_and_give_no_verdict():
    assert verdicts_of_nothing(texts=3, voices=3) == 0.0


@pytest.mark.parametrize("texts", [6, 15])
def test_equal_agents_get_a_verdict_in_about_one_comparison_of_twenty(texts: int):
    assert verdicts_of_nothing(texts, voices=3) < 0.09  # 0.05, and two and a half standard errors of 200 comparisons


def test_few_cases_give_no_verdict_however_narrow_their_interval():
    def run(hits: int) -> dict:
        rare = {f"s{i}": (float(hits), 1.0) for i in range(5)}
        return {f"s{i}": [{"declined": rare.get(f"s{i}", (0.0, 0.0)), "stopped": (1.0, 1.0)}] for i in range(50)}

    five = paired_bootstrap(run(0), run(1))["declined"]
    assert (five.difference.low, five.difference.high) == (1.0, 1.0), "all five alike"
    assert (five.verdict, five.cases) == ("unclear", 5)
    one = {"s": [{"stopped": (0.0, 1.0)}]}, {"s": [{"stopped": (1.0, 1.0)}]}
    alone = paired_bootstrap(*one)["stopped"]
    assert alone.difference.estimate == 1.0 and math.isnan(alone.difference.low) and alone.verdict == "unclear"


def test_many_cases_of_which_few_differ_give_no_verdict():
    """Five of twenty that change, all for the better, are a chance of one in sixteen; the draws alone miss that."""
    before = {f"s{i}": [{"stopped": (0.0, 1.0)}] for i in range(20)}

    def changed(count: int) -> str:
        after = {s: [{"stopped": (float(i < count), 1.0)}] for i, s in enumerate(before)}
        found = paired_bootstrap(before, after)["stopped"]
        assert found.difference.low > 0.0
        return found.verdict

    assert (changed(5), changed(6)) == ("unclear", "better")


def test_scenarios_that_share_a_text_or_a_seed_are_one_unit_and_so_are_those_between_them():
    run = {name: [{"stopped": (1.0, 1.0)}] for name in ("a", "b", "c", "d", "e")}
    shares = {"a": ["group 1", "hello"], "c": ["group 2", "hello", "bye"], "e": ["group 3", "bye"], "d": ["group 4"]}
    assert {first: len(rows) for first, rows in units(run, shares).items()} == {"a": 3, "b": 1, "d": 1}
    del run["c"]
    assert set(units(run, shares)) == {"a", "b", "d"}, "linked through one that was not stored"


def test_a_unit_that_outweighs_all_others_counts_for_little_more_than_itself():
    def width(sizes: list[int]) -> float:
        run = {f"s{i}": [{"stopped": (float(i % 2), 1.0)}] * size for i, size in enumerate(sizes)}
        found = bootstrap(run)["stopped"]
        return found.high - found.low

    assert width([100] + [1] * 9) > 1.2 * width([10] * 10)


def test_episodes_of_one_scenario_are_not_independent_cases():
    few = {f"s{i}": [{"stopped": (float(i % 2), 1.0)}] * 10 for i in range(10)}
    many = {f"s{i}": [{"stopped": (float(i % 2), 1.0)}] for i in range(100)}
    wide, narrow = bootstrap(few)["stopped"], bootstrap(many)["stopped"]
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_intervals():
    first, second = (bootstrap(runs(0.1), 20, seed=3)["fto_p50_s"] for _ in range(2))
    assert first == second
    assert bootstrap(runs(0.1), 20, seed=3)["fto_p50_s"] != bootstrap(runs(0.1), 20, seed=4)["fto_p50_s"]


def test_runs_of_different_scenarios_cannot_be_compared():
    with pytest.raises(UptakeError, match="one run only"):
        paired_bootstrap(runs(0.0, 5), runs(0.0, 6))
    with pytest.raises(UptakeError, match="at least one"):
        bootstrap({})


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=12), copies=st.integers(1, 4))
def test_a_weight_of_n_is_the_same_as_n_copies(values, copies):
    table = Table.of([[{"fto_s": [v]}] for v in values])
    weighted = table.estimates(np.full((1, len(values)), float(copies)))
    copied = aggregate([{"fto_s": [v]} for v in values for _ in range(copies)])
    assert {name: float(value[0]) for name, value in weighted.items()} == pytest.approx(copied, nan_ok=True)

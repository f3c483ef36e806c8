"""Rollouts: who meets whom, when words are heard, which frames earn a judgement; curriculum and tallies."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align import curriculum
from align.rollout import action_frames, collect, heard_after, transcript
from align.tally import Tally
from envs.errors import UptakeError
from envs.pack import Pack
from tests.toy_duplex import FRAME, FRAMES, ToyEnv, ToyPolicy


def test_pieces_become_words_timed_by_the_frames_in_which_they_are_heard():
    words = transcript(["", " hel", "lo", "", " you", "", "'re in"], 1920, 2)
    assert [(w.text, w.onset // 1920, w.offset // 1920) for w in words] == [
        ("hello", 3, 5),
        ("you're", 6, 9),
        ("in", 8, 9),
    ]


def test_the_sound_of_an_action_lies_in_the_window_that_credits_it():
    """Step k of the toy is heard in frame k + 1: a window over that frame credits action k and no other."""
    policy = ToyPolicy()
    assert heard_after(policy.spec) == 1
    for frame in range(1, 5):
        assert action_frames((frame * FRAME, (frame + 1) * FRAME), FRAME, 1, FRAMES) == (frame - 1, frame)
    assert action_frames((FRAME + 1, FRAME + 2), FRAME, 1, FRAMES) == (0, 1)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 300))
def test_credit_frames_always_lie_in_the_conversation(start, length, lag, frames):
    first, last = action_frames((start, start + length), FRAME, lag, frames)
    assert 0 <= first <= last <= frames
    for frame in range(first, last):  # every credited action is heard inside the window
        assert (frame + lag + 1) * FRAME > start
        assert (frame + lag) * FRAME < start + length


def test_a_group_meets_one_user_and_differs_by_sampling_only():
    policy = ToyPolicy()
    played = collect(policy, ToyEnv(6), ["early", "late"], [0, 1], 3, [7, 8, 7, 1, 2, 3], FRAMES)
    users = [episode.user.tobytes() for episode in played.episodes]
    assert len(set(users[:3])) == len(set(users[3:])) == 1
    assert users[0] != users[3]
    actions = played.trajectory.codes[:, 0].tolist()
    assert actions[0] == actions[2] != actions[1]
    assert played.groups == [0, 0, 0, 1, 1, 1]
    assert played.trajectory.valid.shape == (6, FRAMES)


def test_a_trajectory_can_be_trained_on_though_it_was_sampled_in_inference_mode():
    policy = ToyPolicy()
    played = collect(policy, ToyEnv(2), ["early"], [0], 2, [1, 2], FRAMES)
    scores = policy.score(played.trajectory)
    scores.logp.sum().backward()
    assert (scores.logp - played.trajectory.sampler_logp).abs().max() < 1e-5


def test_what_does_not_fit_together_is_named():
    with pytest.raises(
        ValueError, match="1 scenarios x 2 need as many variants, 2 seeds and 2 rows; got 1 variants, 3"
    ):
        collect(ToyPolicy(), ToyEnv(2), ["early"], [0], 2, [1, 2, 3], FRAMES)


SCENARIOS = {"pause": ["a", "b", "c"], "turn": ["d"], "empty": []}


def draws(iterations, **more):
    settings = {"seed": 1, "num_groups": 3, "num_generations": 2} | more
    return [d for i in range(iterations) for d in curriculum.draw(SCENARIOS, i, **settings)]


def test_axes_take_turns_across_iterations():
    drawn = draws(8)
    assert [d.axis for d in drawn] == ["pause", "turn"] * 12
    assert [d.scenario for d in drawn if d.axis == "turn"] == ["d"] * 12


def test_every_scenario_of_an_axis_comes_before_any_comes_again_with_another_variant():
    pauses = [d for d in draws(8) if d.axis == "pause"]
    for deck in range(4):
        part = pauses[deck * 3 : deck * 3 + 3]
        assert {d.scenario for d in part} == {"a", "b", "c"}
        assert {d.variant for d in part} == {deck}


def test_a_scenario_on_several_cards_comes_as_often_in_every_deck_and_never_twice_as_the_same_variant():
    dealt = {"continue": ["aside", "aside", "aside", "yeah", "nod"]}
    drawn = [d for i in range(6) for d in curriculum.draw(dealt, i, seed=4, num_groups=5, num_generations=1)]
    for deck in range(6):
        part = sorted(d.scenario for d in drawn[deck * 5 : deck * 5 + 5])
        assert part == sorted(dealt["continue"])
    assert len({(d.scenario, d.variant) for d in drawn}) == len(drawn)
    assert sorted(d.variant for d in drawn if d.scenario == "aside") == list(range(18))


def test_what_is_rare_in_an_axis_is_dealt_by_the_square_root_of_its_number():
    scenarios = Pack.load("core").scenarios("train")
    plain, dealt = curriculum.by_axis(scenarios), curriculum.cards(scenarios)
    assert {axis: sorted({*ids}) for axis, ids in dealt.items()} == plain
    of = {
        s.id: next(code for code in ("D5", "D3", "D1") if code in s.types)
        for s in scenarios
        if "D1" in s.types or {"D3", "D5"} & s.types
    }
    assert Counter(of[name] for name in plain["continue"]) == {"D1": 48, "D5": 6, "D3": 3}
    assert Counter(of[name] for name in dealt["continue"]) == {"D1": 48, "D5": 18, "D3": 12}
    assert dealt["backchannel"] == plain["backchannel"]


def test_axes_are_all_or_those_that_are_asked_for():
    scenarios = Pack.load("core").scenarios("train")
    assert curriculum.of_axes(scenarios, []) == scenarios
    asked = curriculum.of_axes(scenarios, ["turn", "pause"])
    assert curriculum.by_axis(asked) == {axis: curriculum.by_axis(scenarios)[axis] for axis in ("pause", "turn")}
    with pytest.raises(UptakeError, match=r"axes: no training scenario is of 'trun'; did you mean 'turn'"):
        curriculum.of_axes(scenarios, ["pause", "trun"])


def test_no_two_conversations_of_a_run_share_a_seed_and_other_runs_have_others():
    seeds = [s for d in draws(20) for s in d.seeds]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {s for d in draws(20, seed=2) for s in d.seeds}


def test_an_iteration_does_not_depend_on_those_before_it():
    assert draws(5)[-3:] == curriculum.draw(SCENARIOS, 4, seed=1, num_groups=3, num_generations=2)


def test_no_scenario_is_an_error():
    with pytest.raises(UptakeError, match="no training scenario has an event of a known axis"):
        curriculum.draw({"turn": []}, 0, seed=0, num_groups=1, num_generations=2)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=30))
def test_a_tally_of_parts_is_the_tally_of_the_whole(items):
    whole, left, right = Tally(), Tally(), Tally()
    for value, side in items:
        for tally in (whole, left if side else right):
            tally.add("x/mean", value, spread=True)
            tally.largest("top", value)
    merged = Tally.merge([left.state(), right.state()]).means()
    assert merged == pytest.approx(whole.means(), abs=1e-6)
    assert set(merged) == {"x/mean", "x/std", "top"}


def test_a_small_policy_steps_on_one_thread_and_leaves_the_count_as_it_was():
    import torch

    from align.rollout import stepping_threads
    from tests import tiny_moshi

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with stepping_threads(tiny_moshi.policy()):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""Conversations that begin in the middle: the same for a group, aligned as the policy hears, and never learned from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from align import rollout
from align.context import Contexts
from align.curriculum import Draw
from align.loading import load_policy
from align.policies.moshi.policy import MoshiPolicy
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack

GROUPS = [Draw(g, "turn", "question", 0, (1, 2, 3)) for g in range(8)]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack.load("core")


@pytest.fixture(scope="module")
def policy() -> MoshiPolicy:
    return load_policy("pocket")


@pytest.fixture(scope="module")
def contexts(pack, policy) -> Contexts:
    return Contexts(pack, policy, longest_s=30.0, probability=0.5, iterations=11, seed=3)


def test_a_group_has_one_context_and_an_iteration_half_of_its_groups_some(contexts):
    found = contexts.prompts(10, GROUPS)
    assert len(found) == 24
    groups = [found[i : i + 3] for i in range(0, 24, 3)]
    assert all(group[0] is group[1] is group[2] for group in groups)
    given = [group[0] for group in groups if group[0] is not None]
    assert 1 <= len(given) <= 7
    assert len({prompt.shape[1] for prompt in given}) == len(given)
    assert all(prompt.shape[0] == 17 and 0 < prompt.shape[1] <= 375 for prompt in given)


def test_it_is_a_function_of_seed_iteration_and_group_alone(contexts, pack, policy):
    again = Contexts(pack, policy, longest_s=30.0, probability=0.5, iterations=11, seed=3)
    for a, b in zip(again.prompts(10, GROUPS[3:5]), contexts.prompts(10, GROUPS)[9:15], strict=True):
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a, b)
    other = Contexts(pack, policy, longest_s=30.0, probability=1.0, iterations=11, seed=4)
    assert not np.array_equal(other.prompts(10, GROUPS[:1])[0], contexts.prompts(10, GROUPS[:1])[0])


def test_the_longest_context_grows_from_nothing_to_its_length(contexts):
    assert [contexts.frames(i) for i in (0, 5, 10)] == [0, 188, 375]
    assert contexts.prompts(0, GROUPS) == [None] * 24


def test_without_a_chance_of_one_there_is_none(pack, policy):
    never = Contexts(pack, policy, longest_s=30.0, probability=0.0, iterations=11, seed=3)
    assert never.prompts(10, GROUPS) == [None] * 24


def test_where_nothing_is_said_its_text_has_the_models_own_padding(pack, policy, contexts):
    other = load_policy("pocket")
    other.model.config = dataclasses.replace(
        other.model.config, existing_text_padding_id=1, existing_text_end_padding_id=2
    )
    moved = Contexts(pack, other, longest_s=30.0, probability=0.5, iterations=11, seed=3)
    checked = 0
    for ours, theirs in zip(moved.prompts(10, GROUPS), contexts.prompts(10, GROUPS), strict=True):
        if theirs is not None:
            # Control ids, which are no piece of a word; what is neither is one, and stays.
            assert np.array_equal(ours[0], np.select([theirs[0] == 3, theirs[0] == 0], [1, 2], theirs[0]))
            checked += (ours[0] == 1).any() and (ours[0] == 2).any()
    assert checked


@torch.no_grad()
def test_its_text_is_what_the_policy_would_say_there_and_nowhere_else(contexts, policy):
    """Held to the ear of the policy: its words are likelier in their own frames than two frames off."""
    prompts = [p for p in contexts.prompts(10, GROUPS)[::3] if p is not None and p.shape[1] > 60]
    right, shifted = 0.0, 0.0
    for prompt in prompts:
        for shift in (0, 2, -2):
            codes = prompt.copy()
            codes[:9] = np.roll(prompt[:9], shift, axis=1)
            logits = policy.model.text_forward(torch.from_numpy(codes)[None])[1][0, 4:-4]
            logp = logits.log_softmax(-1).gather(-1, torch.from_numpy(codes[0, 4:-4, None])).mean().item()
            if shift == 0:
                right += logp
            else:
                shifted += logp / 2
    assert len(prompts) >= 2
    assert right > shifted


def test_a_conversation_after_a_context_is_scored_as_it_was_sampled(contexts, pack, policy):
    env = DuplexVectorEnv(pack, 6, split="train", frames=20)
    ids = [scenario.id for scenario in pack.scenarios("train")][:2]
    shorter = [p for p in contexts.prompts(10, GROUPS)[::3] if p is not None and p.shape[1] < policy.spec.context]
    prompts = shorter[:1] * 3 + [None] * 3
    played = rollout.collect(policy, env, ids, [0, 0], 3, list(range(6)), 20, prompts=prompts)
    t = played.trajectory
    assert t.valid.shape == (6, 20)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(t).logp, t.sampler_logp, rtol=0, atol=1e-4)

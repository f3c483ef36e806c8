"""Every policy in the repository has the methods of `DuplexPolicy`, to the letter."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from align.policies import checks
from align.policies.base import DuplexPolicy
from align.policies.cascade.policy import CascadePolicy
from align.policies.chunk.config import ChunkConfig
from align.policies.chunk.model import ChunkModel
from align.policies.chunk.policy import ChunkPolicy
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling
from align.policies.scripted import ScriptedPolicy
from envs.agents import Silent
from tests import tiny_moshi
from tests.packs import tiny_pack

CLASSES = (MoshiPolicy, ChunkPolicy, CascadePolicy, ScriptedPolicy)
METHODS = [name for name, member in vars(DuplexPolicy).items() if inspect.isfunction(member) and name[0] != "_"]


@pytest.mark.parametrize("policy", CLASSES)
def test_every_method_takes_what_the_contract_says(policy):
    assert {"reset", "step", "fork", "trajectory", "score", "export"} <= set(METHODS)
    for name in METHODS:
        wanted = inspect.signature(getattr(DuplexPolicy, name)).parameters
        found = inspect.signature(getattr(policy, name)).parameters
        assert list(found)[: len(wanted)] == list(wanted), f"{policy.__name__}.{name}"
        for parameter, more in zip(found.values(), [*wanted.values(), *[None] * len(found)], strict=False):
            where = f"{policy.__name__}.{name}({parameter.name})"
            if more is None:
                assert parameter.default is not parameter.empty, f"{where}: nobody who knows the contract gives it"
            else:
                assert parameter.kind == more.kind, where
                assert more.default is more.empty or parameter.default == more.default, where


def chunk(pack):
    config = ChunkConfig(card=tiny_moshi.CARD, text_card=tiny_moshi.TEXT_CARD, dim=32, num_layers=1, num_heads=4)
    return ChunkPolicy(ChunkModel(config), tiny_moshi.BlurCodec(), tiny_moshi.tokenizer(), Sampling())


@pytest.mark.parametrize("make", [CascadePolicy, chunk])
def test_without_a_trainable_audio_stream_scores_of_one_are_refused(make, tmp_path):
    policy = make(tiny_pack(tmp_path))
    policy.reset(np.ones(1, bool), [0])
    checks.play(policy, checks.noise_user(policy, 1, 10))
    trajectory = policy.trajectory()
    assert policy.score(trajectory, codebooks=0).audio_logp is None
    with pytest.raises(ValueError, match="codebooks = 2: this policy has no trainable audio stream") as error:
        policy.score(trajectory, codebooks=2)
    assert "\n" not in str(error.value)


def test_a_fixed_baseline_has_no_scores_of_anything(tmp_path):
    policy = ScriptedPolicy(lambda: Silent(1, tiny_pack(tmp_path)))
    policy.reset(np.ones(1, bool), [0])
    with pytest.raises(TypeError, match="no scores"):
        policy.score(policy.trajectory(), codebooks=2)

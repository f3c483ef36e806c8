"""A policy's codec is where its model is. `meta` stands for a GPU: it has no values, but memory is there or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align import loading
from align.loading import load_policy
from align.policies.chunk.config import ChunkConfig
from align.policies.chunk.model import ChunkModel
from align.policies.chunk.policy import ChunkPolicy
from align.policies.moshi.prompt import PromptConfig
from tests.checkpoints import CARD, mimi_policy
from tests.random_mimi import random_mimi
from tests.tiny_checkpoint import tiny_checkpoint
from tests.tiny_moshi import TEXT_CARD, tokenizer

META = torch.device("meta")


def chunk_policy() -> ChunkPolicy:
    sizes = {"dim": 32, "num_layers": 1, "num_heads": 4, "feedforward": 64, "talker_dim": 16, "context": 16}
    config = ChunkConfig(card=CARD, text_card=TEXT_CARD, **sizes)
    return ChunkPolicy(ChunkModel(config, 0), random_mimi(CARD), tokenizer())


@pytest.mark.parametrize("make", [mimi_policy, chunk_policy])
def test_a_loaded_policy_is_on_its_gpu_with_its_codec(make, tmp_path, monkeypatch):
    make().export(tmp_path / "policy")
    monkeypatch.setattr(loading, "_own_gpu", lambda: META)
    policy = load_policy(str(tmp_path / "policy"))
    assert policy.model.device == policy.codec.device == META


def test_a_codec_without_a_device_stays_on_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_own_gpu", lambda: META)
    policy = load_policy(str(tiny_checkpoint(tmp_path)), PromptConfig(silence_s=0.4))
    assert policy.model.device == META and isinstance(policy.codec.codewords, np.ndarray)
    assert policy.prompt.shape[1] == 5


@pytest.mark.parametrize("make", [mimi_policy, chunk_policy])
def test_a_codec_follows_a_model_that_was_moved_and_its_streams_with_it(make):
    policy = make()
    policy.reset(np.ones(2, bool), [1, 2])
    policy.step(np.zeros((2, policy.spec.frame), np.float32))
    policy.model.to(META)  # as an engine does
    assert not policy._stream.belongs_to(policy.model)  # so that `reset` does this:
    policy._open(2)
    assert policy.codec.device == META
    assert policy._ear.state.device == policy._mouth.device == META

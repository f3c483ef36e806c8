"""What the tests of checkpoint layouts share: small random policies, and how a refusal is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.policies.moshi.checkpoint import load_checkpoint
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling
from envs.errors import UptakeError
from tests.random_mimi import random_mimi
from tests.tiny_moshi import TEXT_CARD, BlurCodec, config, tokenizer

CARD = 32  # of random_mimi, which wants a power of two
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}


def released(**changes: Any) -> MoshiConfig:
    """Head sizes, context and delays as in the released checkpoints; one layer."""
    sizes = {"dim": 128, "num_layers": 1, "num_heads": 1, "context": 3000, "card": CARD, "depformer_dim": 64}
    return config(**(sizes | {"depformer_num_layers": 1, "depformer_num_heads": 1} | changes))


def mimi_policy(seed: int = 1, **changes: Any) -> MoshiPolicy:
    """A random policy that speaks through a Mimi."""
    return MoshiPolicy(MoshiModel(config(card=CARD, **changes), seed=seed), random_mimi(CARD), tokenizer(), Sampling())


def blur_codec() -> BlurCodec:
    """A codec that is no Mimi, with as many codes."""
    codec = BlurCodec()
    codec.card = CARD
    return codec


def codes(frames: int = 14, batch: int = 2) -> torch.Tensor:
    """(B, 17, T) random codes."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(TEXT_CARD, (batch, 1, frames), generator=generator)
    return torch.cat((text, torch.randint(CARD, (batch, 16, frames), generator=generator)), dim=1)


def same_weights(ours: MoshiModel, theirs: MoshiModel) -> bool:
    """Whether two models are equal bit by bit."""
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(folder: Path, *words: str) -> None:
    """Loading ends in one line that has the words."""
    with pytest.raises(UptakeError) as caught:
        load_checkpoint(folder, blur_codec())
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told

"""A checkpoint folder of a random tiny policy with a random pocket codec: all file formats, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align.codecs.pocket import CODEBOOKS, DIM, SUB, PocketCodec
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from tests import tiny_moshi


def tiny_checkpoint(folder: Path, seed: int = 1) -> Path:
    """Write the checkpoint and return its folder."""
    rng = np.random.default_rng(seed)
    size = (CODEBOOKS, tiny_moshi.CARD, SUB * DIM)
    codec = PocketCodec(rng.normal(0.0, 0.5, size).astype(np.float32), np.full(SUB * DIM, -2.0, np.float32))
    model = MoshiModel(tiny_moshi.config(context=200), seed=seed)  # a whole conversation
    MoshiPolicy(model, codec, tiny_moshi.tokenizer()).export(folder)
    return folder

"""What a codec says of nothing."""

from __future__ import annotations

import numpy as np

from envs.codec import Codec


def codes_of_silence(codec: Codec, frames: int) -> np.ndarray:
    """(frames, codebooks) int64: what a fresh stream of the codec hears in so much digital silence."""
    state, nothing = codec.init_state(1), np.zeros((1, codec.frame), np.float32)
    return np.stack([codec.encode(state, nothing)[0] for _ in range(frames)])

"""What a codec says of nothing, and where it runs."""

from __future__ import annotations

import numpy as np
import torch

from envs.codec import Codec


def codes_of_silence(codec: Codec, frames: int) -> np.ndarray:
    """(frames, codebooks) int64: what a fresh stream of the codec hears in so much digital silence."""
    state, nothing = codec.init_state(1), np.zeros((1, codec.frame), np.float32)
    return np.stack([codec.encode(state, nothing)[0] for _ in range(frames)])


def place(codec: Codec, device: torch.device) -> None:
    """Move a codec to the device of the model that it serves; one without `to` and `device` runs on the host."""
    if getattr(codec, "device", device) != device:
        codec.to(device)  # type: ignore[attr-defined]

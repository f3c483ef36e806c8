"""What a codec must do: turn frames of audio into a few codes and back, streaming, for a batch of independent rows.

A codec holds no stream of its own: all memory lives in the state that the caller owns and that the calls change in
place. Same state and same input give the same output. Numpy at the boundary, so that a codec may run on anything.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Codec(Protocol):
    """A streaming speech codec. `rows` is a (B,) bool mask or an array of indices.

    A state is a dataclass in which every array or tensor (also inside a dict) has the batch first. What is only
    allocated when first used starts as zeros.
    """

    sample_rate: int
    frame: int
    """Samples a frame."""
    codebooks: int
    card: int
    """Entries of each codebook: codes are 0 .. card - 1."""

    def init_state(self, batch: int) -> Any:
        """A state of `batch` rows that have heard and said nothing."""

    def encode(self, state: Any, pcm: np.ndarray) -> np.ndarray:
        """The next frame of every row: (B, frame) float32 to codes (B, codebooks) int64."""

    def decode(self, state: Any, codes: np.ndarray) -> np.ndarray:
        """The next codes of every row: (B, codebooks) int64 to audio (B, frame) float32 in [-1, 1]."""

    def reset(self, state: Any, rows: np.ndarray) -> None:
        """Start `rows` afresh, both directions."""

    def fork(self, state: Any, source: int, rows: np.ndarray) -> None:
        """Make `rows` continue from where row `source` is."""

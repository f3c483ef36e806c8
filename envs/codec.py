"""What a codec must do: turn frames of audio into a few codes and back, streaming, for a batch of independent rows.

A codec holds no stream of its own: all memory lives in the state that the caller owns and that the calls change in
place. Same state and same input give the same output. Numpy at the boundary, so that a codec may run on anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Codec(Protocol):
    """A streaming speech codec. `rows` is a (B,) bool mask or an array of indices.

    One that computes on a device may say which (`device`, a torch.device) and be moved (`to(device)`): a policy keeps
    it where its model is. A state is a dataclass in which every array or tensor (also inside a dict) has the batch
    first. What is only allocated when first used starts as zeros.
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


def _memories(state: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, dict):
            yield from (((field.name, key), item) for key, item in value.items())
        elif hasattr(value, "shape"):
            yield (field.name,), value


def state_bytes(state: Any) -> int:
    """Memory of a state."""
    return sum(int(memory.nbytes) for _, memory in _memories(state))


def rows_taken(codec: Codec, state: Any, rows: np.ndarray) -> Any:
    """A new state whose row i is the state's row `rows[i]`; a row may be taken more than once."""
    taken = codec.init_state(len(rows))
    for name, memory in _memories(state):
        copy = memory[rows]  # indexing with an array copies
        if len(name) == 1:
            setattr(taken, name[0], copy)
        else:
            getattr(taken, name[0])[name[1]] = copy
    return taken


@contextlib.contextmanager
def rows_kept(state: Any, rows: np.ndarray) -> Iterator[None]:
    """Within this context the codec runs for all rows; afterwards the indices `rows` are as they were before.

    A codec always runs the whole batch. This is how a row sits out a frame.
    """
    if not len(rows):
        yield
        return
    kept = {name: memory[rows] for name, memory in _memories(state)}  # indexing with an array copies
    yield
    for name, memory in _memories(state):
        # A memory that did not exist yet was made as zeros in between (see `Codec`).
        memory[rows] = kept.get(name, 0)

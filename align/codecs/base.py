"""What is done with any codec (`envs.codec.Codec`) and its state, whatever it is made of.

A state is a dataclass in which every array or tensor, also inside a dict, has the batch first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from envs.codec import Codec


def _memories(state: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, dict):
            yield from (((field.name, key), item) for key, item in value.items())
        elif hasattr(value, "shape"):
            yield (field.name,), value


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


def codes_of_silence(codec: Codec, frames: int) -> np.ndarray:
    """(frames, codebooks) int64: what a fresh stream of the codec hears in so much digital silence."""
    state, nothing = codec.init_state(1), np.zeros((1, codec.frame), np.float32)
    return np.stack([codec.encode(state, nothing)[0] for _ in range(frames)])

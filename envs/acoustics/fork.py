"""Copies of blocks that carry state, so that one conversation can go on as several."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

import numpy as np


class Block(Protocol):
    """A piece of the way of the sound: one frame in, one frame out, state in between."""

    delay_samples: int

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32."""


T = TypeVar("T")


def fork(block: T) -> T:
    """A block that goes on from here by itself. Read-only arrays never change and are shared; all others are copied."""
    twin = copy.copy(block)
    for name, value in vars(block).items():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            setattr(twin, name, value.copy())
        elif hasattr(value, "process"):
            setattr(twin, name, fork(value))
    return twin

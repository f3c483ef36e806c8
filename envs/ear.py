"""What a batch hears, as codes: the microphone through a codec that is handed in, a stream a row."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np

from envs.codec import Codec, rows_kept


class Ear:
    """The newest codes of every row, (B, codebooks) int64, in `codes`."""

    def __init__(self, codec: Codec, num_envs: int) -> None:
        self.codec = codec
        self.single_space = gym.spaces.MultiDiscrete([codec.card] * codec.codebooks)
        self.codes = np.zeros((num_envs, codec.codebooks), np.int64)
        self._state = codec.init_state(num_envs)

    def hear(self, mic: np.ndarray, rows: np.ndarray) -> None:
        """The next frame of `rows`, from mic (B, F) float32; the others stay where they are."""
        others = np.setdiff1d(np.arange(len(self.codes)), rows)
        with rows_kept(self._state, others):
            self.codes[rows] = self.codec.encode(self._state, mic)[rows]

    def reset(self, rows: np.ndarray) -> None:
        """Begin afresh in these rows."""
        self.codec.reset(self._state, rows)

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        index = np.asarray(list(rows), np.int64)
        self.codec.fork(self._state, source, index)
        self.codes[index] = self.codes[source]

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""
        return self.codes.copy(), copy.deepcopy(self._state)

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""
        self.codes, self._state = state[0].copy(), copy.deepcopy(state[1])

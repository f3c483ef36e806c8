"""What a batch of rows has heard and done, a column a frame: the book that a policy keeps for its `trajectory`."""

from __future__ import annotations

import numpy as np
import torch

from align.policies.base import Trajectory

_FIRST_COLUMNS = 256  # the record starts with so many frames and doubles


class Record:
    """Each row has its own clock: `steps (B,)` counts its frames since its last reset."""

    def __init__(self, batch: int, streams: int) -> None:
        self.steps = np.zeros(batch, np.int64)
        self._codes = np.full((batch, streams, _FIRST_COLUMNS), -1, np.int64)
        self._valid = np.zeros((batch, _FIRST_COLUMNS), bool)
        self._logp = np.zeros((batch, _FIRST_COLUMNS), np.float32)

    def reset(self, rows: np.ndarray) -> None:
        """Forget everything about the indices `rows`."""
        self.steps[rows] = 0
        self._codes[rows] = -1
        self._valid[rows] = False
        self._logp[rows] = 0

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Give the indices `rows` the past of row `source`."""
        for book in (self.steps, self._codes, self._valid, self._logp):
            book[rows] = book[source]

    def write(self, rows: np.ndarray, codes: np.ndarray, valid: np.ndarray, logp: np.ndarray) -> None:
        """The next frame of the R indices `rows`: codes (R, K), -1 for nothing; valid and logp (R,)."""
        column = self.steps[rows]
        if len(rows) and column.max() >= self._valid.shape[1]:
            self._codes = np.concatenate((self._codes, np.full_like(self._codes, -1)), axis=2)
            self._valid = np.concatenate((self._valid, np.zeros_like(self._valid)), axis=1)
            self._logp = np.concatenate((self._logp, np.zeros_like(self._logp)), axis=1)
        self._codes[rows, :, column] = codes
        self._valid[rows, column] = valid
        self._logp[rows, column] = np.where(valid, logp, 0)
        self.steps[rows] += 1

    def trajectory(self, device: torch.device | str, temperature: float, top_k: int) -> Trajectory:
        """Everything so far, as long as the longest row."""
        frames = int(self.steps.max(initial=0))
        with torch.inference_mode(False):  # scoring must be able to save these tensors for its backward pass
            return Trajectory(
                codes=torch.from_numpy(self._codes[:, :, :frames].copy()).to(device),
                valid=torch.from_numpy(self._valid[:, :frames].copy()).to(device),
                sampler_logp=torch.from_numpy(self._logp[:, :frames].copy()).to(device),
                temperature=temperature,
                top_k=top_k,
            )

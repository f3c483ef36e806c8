"""Runs a `MoshiModel` frame by frame for a batch of independent rows.

What differs from upstream's `LMGen` (moshi 0.2.13): rows are independent to the last detail (position, random numbers,
activity), text log-probs are first-class, any token can be forced, and a fork is one copy. Timing is the same: call
``s`` of an episode feeds frame ``s`` of the model's clock and samples ``text(s)``, the codebooks with delay 0 of frame
``s`` and those with delay 1 of frame ``s - 1``. The user's codes of call 0 have no place in it and are not used.

The host keeps each row's step and seed, and draws its uniform numbers, so that they are the same on any device; the
rest of a frame is `frame.advance`, on a GPU as a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from align.policies.graphs import Graphs
from align.policies.moshi.frame import Rows, Sight, advance
from align.policies.moshi.model import MoshiModel
from align.policies.sampling import Sampling, uniforms

_GRAIN = 64  # frames of cache by which what a captured frame sees grows at first


class Sampled(NamedTuple):
    """One call's tokens on the model's clock; of rows that were not active, meaningless."""

    tokens: np.ndarray  # (B, 1 + dep_q) int64
    text_logp: np.ndarray  # (B,) float32; 0 where the text was forced
    audio_logp: np.ndarray  # (B, dep_q) float32; meaningless where the token was forced or has no frame yet
    steps: np.ndarray  # (B,) int64: the row's step that this was


class MoshiStream:
    """The state of `batch` rows and the step that advances it. Runs in inference mode on the model's device.

    `graphs` records the steps and replays them; None runs each one as it comes.
    """

    def __init__(self, model: MoshiModel, sampling: Sampling, batch: int, graphs: Graphs | None = None) -> None:
        self.model, self.sampling, self.batch, self.graphs = model, sampling, batch, graphs
        self.steps = np.zeros(batch, np.int64)
        self.seeds = np.zeros(batch, np.uint64)
        self.rows = Rows(model, batch)

    def belongs_to(self, model: MoshiModel) -> bool:
        """Whether this is a stream of `model` as it is now: it may have moved or changed its precision since."""
        cache = self.rows.cache[0]
        kind = (cache.device, cache.dtype)
        return self.model is model and kind == (model.device, model.text_linear.weight.dtype)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Start the indices `rows` afresh with their `seeds` (R,) uint64."""
        if self.graphs is not None:
            self.graphs.check()
        self.steps[rows] = 0
        self.seeds[rows] = seeds
        self.rows.inputs[self._index(rows)] = self.rows.initial

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Make the indices `rows` equal to row `source`, its random numbers included."""
        self.steps[rows] = self.steps[source]
        self.seeds[rows] = self.seeds[source]
        index, own = self._index(rows), self.rows
        own.inputs[index] = own.inputs[source].clone()
        for cache in own.cache:  # (2, B, H, slots, D / H)
            cache[:, index] = cache[:, source, None].clone()

    def _index(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.rows.inputs.device)

    @torch.inference_mode()
    def step(self, user: np.ndarray, active: np.ndarray, forced: np.ndarray | None = None) -> Sampled:
        """Advance the rows that are `active (B,)` bool by one frame.

        `user (B, n_q - dep_q)` int64: the user's codes. `forced (B, 1 + dep_q)` int64 on the model's clock,
        `sampling.SAMPLE` where the model is to sample.
        """
        steps = self.steps.copy()
        own = 1 + self.model.config.dep_q
        self.rows.give(user, forced, steps, active, uniforms(self.seeds, steps, own))
        if self.graphs is None:
            sight = self._sight()
            self._grow(sight.slots)
            advance(self.model, self.sampling, self.rows, sight)
        else:
            sight = Sight(self._bucket())
            if self._grow(sight.slots):
                self.graphs.clear()
            self.graphs.run((sight, self.sampling), lambda: advance(self.model, self.sampling, self.rows, sight))
        tokens, logp = self.rows.taken()
        self.steps += active
        return Sampled(tokens, logp[:, 0], logp[:, 1:], steps)

    def _grow(self, slots: int) -> bool:
        return self.rows.grow(slots, self.model.config.context)

    def _sight(self) -> Sight:
        """The least work that these rows' frame can be done with."""
        steps, context = self.steps, self.model.config.context
        slots = min(int(steps.max()) + 1, context)
        together = int(steps[0]) % context if (steps == steps[0]).all() else None
        return Sight(slots, together, masked=together is None and int(steps.min()) + 1 < slots)

    def _bucket(self) -> int:
        """Slots that hold the oldest row's past: few different numbers, none a quarter too many once it is long."""
        used, context = int(self.steps.max()) + 1, self.model.config.context
        grain = max(_GRAIN, 1 << max(used.bit_length() - 3, 0))
        return min(-(-used // grain) * grain, context)

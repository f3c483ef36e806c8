"""Scripted agents (`envs.agents`) as policies: fixed baselines wherever a `DuplexPolicy` is wanted.

Each row has an agent of its own, so that rows can be reset, frozen and forked. There is nothing to train: no stream, no
scores. The oracle has no place here, because it sees what a policy must not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from align.policies.base import DuplexSpec, Scores, Step, Trajectory, refuse_prompts, row_indices, rows_to_reset
from align.policies.keeping import Keeping
from align.policies.record import Record
from envs.agents import ScriptedAgent
from envs.clock import CLOCK


class ScriptedPolicy(Keeping):
    """Batched; rows are slots. See `align.policies.base.DuplexPolicy`. It takes no prompt."""

    _LIVES = ("_agents", "_told", "_record")

    def __init__(self, make: Callable[[], ScriptedAgent]) -> None:
        """`make` gives an agent of one row, for instance ``lambda: EnergyVad(1, pack, ms=700)``."""
        self.make = make
        self.model = nn.Module()
        self.spec = DuplexSpec(
            CLOCK.sample_rate, CLOCK.frame, streams=(), context=2**31 - 1, decision_frames=1, emission_lag=0
        )
        self._open(0)

    def _open(self, batch: int) -> None:
        self._agents = [self.make() for _ in range(batch)]
        self._told = np.zeros(batch, np.int64)
        self._record = Record(batch, 0)

    def reset(self, rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start `rows` afresh. What an agent says, of what its pack has, begins where the row's seed says."""
        refuse_prompts(prompts)
        index, anew = rows_to_reset(rows, seeds, prompts, len(self._agents))
        if anew:
            self._open(len(seeds))
        for row in index:
            agent = self.make()
            for name in ("clips", "backchannels"):
                clips = getattr(agent, name)
                first = int(seeds[row]) % len(clips) if clips else 0
                setattr(agent, name, clips[first:] + clips[:first])
            agent.reset()
            self._agents[row] = agent
        self._told[index] = 0
        self._record.reset(index)

    def fork(self, source: int, rows: Any, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is; nothing is left to chance, so seeds change nothing."""
        index = row_indices(rows, len(self._agents))
        for row in index:
            self._agents[row] = copy.deepcopy(self._agents[source])
        self._told[index] = self._told[source]
        self._record.fork(source, index)

    def step(self, mic: np.ndarray, active: np.ndarray) -> Step:
        """Hear one frame and play the next. See `DuplexPolicy.step`."""
        batch = len(self._agents)
        audio, text = np.zeros((batch, self.spec.frame), np.float32), [""] * batch
        acting = np.flatnonzero(active)
        for row in acting:
            audio[row] = self._agents[row].act(mic[row : row + 1])[0]
            words = self._agents[row].transcript(0)
            text[row] = "".join(f" {word.text}" for word in words[self._told[row] :])
            self._told[row] = len(words)
        nothing = np.zeros(len(acting))
        self._record.write(acting, np.zeros((len(acting), 0), np.int64), nothing > 0, nothing)
        return Step(audio, np.full((batch, 1), -1, np.int64), np.zeros(batch, np.float32), text)

    def trajectory(self) -> Trajectory:
        """As many frames as were lived, without an action."""
        return self._record.trajectory(torch.device("cpu"), 1.0, 0)

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        """A fixed baseline has no scores."""
        raise TypeError("a scripted agent has no weights and no scores; it can be evaluated, not trained")

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        """A fixed baseline has nothing to write."""
        raise TypeError("a scripted agent has no weights to export; it is found by its name")

"""Any `DuplexPolicy` as the user: the other side of `envs.users.partner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from align.policies.base import DuplexPolicy
from align.rollout import heard_after, stepping_threads, transcript
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word


class PolicyPartner:
    """A frozen policy that plays the users of a batch, each a slot of it.

    Raises:
        UptakeError: it runs at another rate than the conversation.
    """

    def __init__(self, policy: DuplexPolicy, batch: int) -> None:
        spec = policy.spec
        if (spec.sample_rate, spec.frame) != (CLOCK.sample_rate, CLOCK.frame):
            raise UptakeError(
                f"a user of {spec.frame} samples a frame at {spec.sample_rate} Hz; conversations have {CLOCK.frame} at "
                f"{CLOCK.sample_rate}; wrap the policy or take another"
            )
        self.context = spec.context
        self._policy, self._batch, self._open = policy, batch, False
        self._seeds = [0] * batch
        self._pieces: list[tuple[str, ...]] = [()] * batch

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Begin afresh in these rows."""
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            self._seeds[row], self._pieces[row] = int(seed), ()
        mask = np.ones(self._batch, bool)  # the first time, all slots are opened
        if self._open:
            mask[:] = False
            mask[rows] = True
        with torch.inference_mode():
            self._policy.reset(mask, self._seeds)
        self._open = True

    def step(self, heard: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Hear one frame (B, F) and give what is played in the next, (B, F)."""
        with torch.inference_mode(), stepping_threads(self._policy):
            step = self._policy.step(heard, active)
        for row in np.flatnonzero(active).tolist():
            self._pieces[row] = (*self._pieces[row], step.text[row])
        return step.audio

    def words(self, row: int) -> Sequence[Word]:
        """What it has said so far by its text stream, in samples of the episode."""
        return transcript(self._pieces[row], self._policy.spec.frame, heard_after(self._policy.spec))

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Let `rows` continue from where row `source` stands, with the same samples to come."""
        self._policy.fork(source, rows)
        for row in rows.tolist():
            self._seeds[row], self._pieces[row] = self._seeds[source], self._pieces[source]

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs, here or in another partner with the same weights.

        Raises:
            UptakeError: the policy cannot be copied out.
        """
        kept = getattr(self._policy, "get_state", None)
        if kept is None:
            raise UptakeError(
                f"get_state: a {type(self._policy).__name__} that is the user cannot be copied out; use fork(), or "
                "give it get_state and set_state (align.policies.keeping)"
            )
        own = {"seeds": list(self._seeds), "pieces": list(self._pieces), "open": self._open}
        return {**own, "policy": kept()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self._policy.set_state(state["policy"])  # type: ignore[attr-defined]
        self._seeds, self._pieces, self._open = list(state["seeds"]), list(state["pieces"]), state["open"]

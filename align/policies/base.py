"""The contract between a full-duplex policy and everything that trains, evaluates or serves it.

A policy listens and speaks at once: one frame of microphone audio in, one frame of its own audio out, for a batch of
independent rows. It records the actions that it took, and scores them again with gradients.
`align.policies.checks` holds the properties that every implementation must have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class Stream:
    """One sequence of tokens that a policy reads or writes, at most a token a frame."""

    name: str
    vocab: int
    trainable: bool
    """Whether its tokens are actions that an objective may use."""
    silent_ids: frozenset[int] = frozenset()
    """Tokens that mean "I am not speaking"."""


@dataclass(frozen=True)
class DuplexSpec:
    """What a policy needs from the world and promises to it."""

    sample_rate: int
    """Hz, in and out."""
    frame: int
    """Samples a step."""
    streams: tuple[Stream, ...]
    """In the order of `Trajectory.codes`' second axis. The first is what the policy decides, if it can be trained."""
    context: int
    """Frames that the policy can look back."""
    decision_frames: int = 1
    """Frames between decisions."""
    emission_lag: int = 1
    """Frames from an action to its sound leaving `step`."""
    hidden: int = 0
    """Width of `Scores.hidden`; 0 if the policy shows none, and cannot carry a value head."""
    lived: int = 0
    """Frames that every conversation begins with before its first, a prompt; they take their part of the context."""

    @property
    def trainable(self) -> bool:
        """Whether there is anything to learn: a fixed baseline has no trainable stream."""
        return any(stream.trainable for stream in self.streams)


@dataclass
class Step:
    """What one call of `DuplexPolicy.step` gave. Rows that were not active: silence, tokens -1, log-prob 0, no text."""

    audio: np.ndarray
    """(B, frame) float32: the sound to play next. It is `emission_lag` frames older than the tokens."""
    tokens: np.ndarray
    """(B, 1 + agent codebooks) int64: what was sampled (or forced) in this call, on the model's clock; -1 where there
    was nothing to decide in this frame."""
    text_logp: np.ndarray
    """(B,) float32: log-probability of the text token under the sampling distribution (temperature, top-k and legal
    tokens included); 0 where it was forced or there was nothing to decide."""
    text: list[str]
    """Text decoded in this call, one string a row, often empty; a leading space begins a word."""


@dataclass
class Trajectory:
    """The actions of a batch of episodes, each row from its last reset, padded on the right."""

    codes: Tensor
    """(B, K, T) long: text, agent codebooks, user codebooks; -1 where there is nothing."""
    valid: Tensor
    """(B, T) bool: the text token is the policy's own sampled action: not forced by a prompt, not the only legal token,
    not padding, and there was something to decide in this frame."""
    sampler_logp: Tensor
    """(B, T) float32: log-probability that the text token had when it was sampled; 0 where not valid."""
    temperature: float
    """Of the text stream."""
    top_k: int
    """Of the text stream; 0 is the whole vocabulary."""
    lived: Tensor | None = None
    """(B, K, M) long: what the rows went through before frame 0 (a prompt), padded on the right with -1; no actions."""
    lived_frames: Tensor | None = None
    """(B,) long: how much of `lived` is a row's."""

    def rows(self, index: Any) -> Trajectory:
        """The rows that `index` (slice, indices or mask) picks."""
        before = (
            () if self.lived is None or self.lived_frames is None else (self.lived[index], self.lived_frames[index])
        )
        kept = (self.codes[index], self.valid[index], self.sampler_logp[index])
        return Trajectory(*kept, self.temperature, self.top_k, *before)


@dataclass
class Scores:
    """A trajectory's actions under the policy as it is now."""

    logp: Tensor
    """(B, T): differentiable; 0, without gradient, where the trajectory is not valid."""
    entropy: Tensor
    """(B, T) nats of the text distribution; 0 where not valid."""
    log_probs: Tensor | None
    """(B, T, V) of the text distribution that is sampled from, at every valid frame; -inf outside the top k and for
    tokens that are not legal there. What is legal must follow from `Trajectory.codes` before the frame."""
    hidden: Tensor | None = None
    """(B, T, `spec.hidden`): the state that each frame's text distribution is read off, differentiable. It knows what
    was heard and done before the frame's action and not the action, so a value predicted from it is a baseline."""


class DuplexPolicy(Protocol):
    """One frame in, one frame out. `rows` is a (B,) bool mask or an array of indices; rows are slots."""

    spec: DuplexSpec
    model: nn.Module
    """What an optimiser trains."""

    def reset(self, rows: np.ndarray, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start the rows afresh. A mask of a new length opens that many slots, and must then be all True.

        `seeds` and `prompts` have an entry for every slot; those of the other rows are not looked at. What a row
        samples depends on its seed and on what it hears, never on its neighbours. A prompt is policy-specific and its
        tokens are forced: they are never valid actions.
        """

    def step(self, mic: np.ndarray, active: np.ndarray) -> Step:
        """Hear (B, frame) float32 and act. Rows with `active` (B,) False stay exactly as they are."""

    def fork(self, source: int, rows: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is; with `seeds` (one a slot), from there on their own way."""

    def trajectory(self) -> Trajectory:
        """What has been heard and done since each row's last reset."""

    def score(self, trajectory: Trajectory, full: bool = False) -> Scores:
        """Teacher-forced scores, differentiable; `full` also returns the (B, T, V) log-probs."""

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        """Write a folder that the policy can be loaded from."""


def row_indices(rows: Any, batch: int) -> np.ndarray:
    """Indices (R,) int64 from a (B,) bool mask or indices; ValueError if they do not fit `batch` rows."""
    given = np.asarray(rows)
    if given.dtype == bool:
        if given.shape != (batch,):
            raise ValueError(f"rows: a mask of shape {given.shape} for {batch} rows")
        return np.flatnonzero(given)
    index = given.astype(np.int64).reshape(-1)
    if index.size and not (index.min() >= 0 and index.max() < batch):
        raise ValueError(f"rows: {index.tolist()} are not all in 0..{batch - 1}")
    return index

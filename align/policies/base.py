"""The contract between a full-duplex policy and everything that trains, evaluates or serves it.

A policy listens and speaks at once: one frame of microphone audio in, one frame of its own audio out, for a batch of
independent rows. It records the actions that it took, and scores them again with gradients.
`align.policies.checks` holds the properties that every implementation must have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from envs.errors import UptakeError


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
    cached: int = 0
    """Numbers, in the precision of the weights, that are kept of a frame of each conversation while it lasts, for the
    last `context` frames."""

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
class AudioActions:
    """What a policy did besides text: the agent codebooks' tokens, by the call that sampled them.

    A codebook that the model delays speaks in call t of a frame of sound before t; it stands here where it was decided,
    next to the text token of that call. Q agent codebooks, in the order of `DuplexSpec.streams`.
    """

    tokens: Tensor
    """(B, Q, T) long; -1 where there is none."""
    valid: Tensor
    """(B, Q, T) bool: the policy's own sampled action."""
    sampler_logp: Tensor
    """(B, Q, T) float32: log-probability that the token had when it was sampled; 0 where not valid."""
    temperature: float
    top_k: int


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
    audio: AudioActions | None = None
    """None if the policy's audio streams are not trainable."""
    lived: Tensor | None = None
    """(B, K, M) long: what the rows went through before frame 0 (a prompt), padded on the right with -1; no actions."""
    lived_frames: Tensor | None = None
    """(B,) long: how much of `lived` is a row's."""

    def rows(self, index: Any) -> Trajectory:
        """The rows that `index` (slice, indices or mask) picks."""
        return self._each(lambda tensor, nothing: tensor[index])._before(lambda tensor: tensor[index])

    def clone(self) -> Trajectory:
        """A copy whose tensors can be saved for a backward pass, wherever these ones were made."""
        return self._each(lambda tensor, nothing: tensor.clone())._before(Tensor.clone)

    def padded(self, frames: int) -> Trajectory:
        """As long as `frames`, with nothing on the right."""

        def longer(tensor: Tensor, nothing: int) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, frames - tensor.shape[-1]), value=nothing)

        return self._each(longer)

    def followed_by(self, other: Trajectory) -> Trajectory:
        """These rows and then the other's, padded to the longer of the two."""
        frames = max(self.valid.shape[1], other.valid.shape[1])
        theirs = iter(other.padded(frames)._tensors())
        both = self.padded(frames)._each(lambda tensor, nothing: torch.cat([tensor, next(theirs)]))
        if self.lived is None and other.lived is None:
            return both
        longest = max(one.lived.shape[2] for one in (self, other) if one.lived is not None)
        parts = [one._lived_for(longest) for one in (self, other)]
        return replace(both, lived=torch.cat([x for x, _ in parts]), lived_frames=torch.cat([x for _, x in parts]))

    def _before(self, change: Callable[[Tensor], Tensor]) -> Trajectory:
        """The trajectory of changed tensors of what was lived, if anything was."""
        if self.lived is None or self.lived_frames is None:
            return self
        return replace(self, lived=change(self.lived), lived_frames=change(self.lived_frames))

    def _lived_for(self, frames: int) -> tuple[Tensor, Tensor]:
        """`lived`, as long as `frames`, and `lived_frames`; of nothing, where nothing was lived."""
        if self.lived is None or self.lived_frames is None:
            batch, streams, _ = self.codes.shape
            return self.codes.new_full((batch, streams, frames), -1), self.codes.new_zeros(batch)
        return torch.nn.functional.pad(self.lived, (0, frames - self.lived.shape[2]), value=-1), self.lived_frames

    def _tensors(self) -> list[Tensor]:
        """In the order of `_each`."""
        found: list[Tensor] = []

        def see(tensor: Tensor, nothing: int) -> Tensor:
            found.append(tensor)
            return tensor

        self._each(see)
        return found

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Trajectory:
        """The trajectory of changed tensors; `change` is told what stands for nothing in each of them."""
        audio = self.audio and replace(
            self.audio,
            tokens=change(self.audio.tokens, -1),
            valid=change(self.audio.valid, 0),
            sampler_logp=change(self.audio.sampler_logp, 0),
        )
        return replace(
            self,
            codes=change(self.codes, -1),
            valid=change(self.valid, 0),
            sampler_logp=change(self.sampler_logp, 0),
            audio=audio,
        )


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
    audio_logp: Tensor | None = None
    """(B, `codebooks`, T) of `Trajectory.audio`: differentiable; 0, without gradient, where that is not valid."""
    audio_log_probs: Tensor | None = None
    """(B, `codebooks`, T, card), as `log_probs`."""


class DuplexPolicy(Protocol):
    """One frame in, one frame out. `rows` is a (B,) bool mask or an array of indices; rows are slots.

    A policy may also have `notes(row)`: fields that the record of a row's conversation keeps in its meta, as JSON.
    """

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

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        """Teacher-forced scores, differentiable; `full` also returns the (B, T, V) log-probs.

        Of the agent codebooks in `trajectory.audio` the first `codebooks` are scored as well; a policy without
        trainable audio streams refuses any (`refuse_codebooks`).
        """

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


def rows_to_reset(
    rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None, batch: int, fit: bool = True
) -> tuple[np.ndarray, bool]:
    """What a `reset` is about: its indices (R,) int64, and whether all slots are opened anew.

    Args:
        rows, seeds, prompts: of `DuplexPolicy.reset`.
        batch: slots that are open.
        fit: whether they can go on being used; if not, all of them are opened anew.

    Raises:
        ValueError: the number of rows is another one, and not all of them are reset; prompts for another number.
    """
    index, anew = row_indices(rows, len(seeds)), len(seeds) != batch or not fit
    if anew and len(index) != len(seeds):
        raise ValueError(f"reset of {len(index)} of {len(seeds)} rows, but {batch} are open; reset all of them")
    if prompts is not None and len(prompts) != len(seeds):
        raise ValueError(f"reset: {len(prompts)} prompts for {len(seeds)} rows; give one (or None) for every row")
    return index, anew


def row_seeds(seeds: Sequence[int], rows: np.ndarray) -> np.ndarray:
    """The seeds of the indices `rows`, (R,) uint64; `seeds` has one for every slot."""
    return np.array([int(seeds[row]) % 2**64 for row in rows], np.uint64)


def check_microphone(mic: np.ndarray, rows: np.ndarray) -> None:
    """Raise UptakeError if what the indices `rows` of mic (B, frame) hear is no sound."""
    bad = rows[~np.isfinite(mic[rows]).all(axis=1)]
    if len(bad):
        raise UptakeError(f"microphone of row {bad[0]}: NaN or infinite samples; repair the audio")


def refuse_prompts(prompts: Sequence[Any] | None) -> None:
    """Raise ValueError if a policy that takes no prompt is given one."""
    if prompts is not None and any(prompt is not None for prompt in prompts):
        raise ValueError("reset: this policy takes no prompt; leave it out")


def refuse_codebooks(codebooks: int) -> None:
    """Raise ValueError if scores of audio streams are asked of a policy that trains none."""
    if codebooks:
        raise ValueError(f"score: codebooks = {codebooks}: this policy has no trainable audio stream; leave it out")


def scores_of(trajectory: Trajectory, log_probs: Tensor, full: bool, hidden: Tensor | None = None) -> Scores:
    """Scores from the log-probs (B, T, V) of the first stream at every frame, -inf where a token is not legal."""
    taken = trajectory.codes[:, 0].clamp(min=0)
    logp = log_probs.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    surprise = log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0)
    zero = logp.new_zeros(())
    return Scores(
        logp=torch.where(trajectory.valid, logp, zero),
        entropy=torch.where(trajectory.valid, -surprise.sum(-1), zero),
        log_probs=log_probs if full else None,
        hidden=hidden,
    )

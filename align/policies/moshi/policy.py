"""A Moshi-class model, a codec and a tokenizer as a `DuplexPolicy`.

Clock. Call n of `step` hears frame n of the microphone and then samples text(n) and the first codebook of agent frame
n; the other codebooks of frame n follow in call n + 1, which returns its sound: `emission_lag` is 1. (An environment
that plays what call n returned during its frame n + 1 lets text(n) be heard in its frame n + 2.) Column t of
`Trajectory.codes` is text(t), agent frame t and the user's frame t + 1, as `MoshiModel.text_forward` wants it; the
user's frame of the first call has no place in it and is not used (published layout, moshi 0.2.13).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.codecs.base import codes_of_silence, place
from align.codecs.shared_encoder import SharedEncoder
from align.policies.base import (
    AudioActions,
    DuplexSpec,
    Scores,
    Step,
    Stream,
    Trajectory,
    check_microphone,
    row_indices,
    row_seeds,
    rows_to_reset,
    scores_of,
)
from align.policies.graphs import Graphs
from align.policies.keeping import Keeping
from align.policies.moshi.checkpoint import Tokenizer, load_checkpoint, save_checkpoint
from align.policies.moshi.model import ZERO, MoshiModel
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import SAMPLE, Sampling, truncated_log_probs
from align.policies.spelling import Speller
from envs.codec import Codec, rows_kept
from envs.errors import UptakeError

SILENT_FRAMES = 16
_FIRST_COLUMNS = 256  # the record starts with so many frames and doubles


class MoshiPolicy(Keeping):
    """Streams, records and scores; see `align.policies.base.DuplexPolicy` for the contract.

    A prompt is an int array aligned like `Trajectory.codes`, with -2 where the agent is to sample for itself:

    * (1 + all codebooks, P), the user's among them: P frames that the row has lived before the conversation begins
      (`align.policies.moshi.prompt`). `reset` runs through them, rows of different length side by side.
    * (1 + agent codebooks, P): the agent's tokens of the conversation's own first P frames.

    `prompt` is what rows begin with that are given none.
    """

    _LIVES = (
        "_stream", "_ear", "_mouth", "_codes", "_valid", "_logp", "_audio_valid", "_audio_logp", "_prompts", "_speller",
        "_lived",
    )  # fmt: skip
    _SHARES = ("model", "codec")

    def __init__(
        self,
        model: MoshiModel,
        codec: Codec,
        tokenizer: Tokenizer,
        sampling: Sampling | None = None,
        prompt: np.ndarray | None = None,
    ) -> None:
        c = model.config
        for ours, theirs, what in (
            (c.dep_q, codec.codebooks, "agent codebooks"),
            (c.n_q - c.dep_q, codec.codebooks, "user codebooks"),
            (c.card, codec.card, "codes a codebook"),
        ):
            if ours != theirs:
                raise UptakeError(f"the model has {ours} {what}, its codec has {theirs}; they do not belong together")
        self.model, self.codec, self.tokenizer = model, codec, tokenizer
        self.sampling = sampling or Sampling()
        silent = frozenset((c.existing_text_padding_id, c.existing_text_end_padding_id))
        self.spec = DuplexSpec(
            sample_rate=codec.sample_rate,
            frame=codec.frame,
            streams=(
                Stream("text", c.text_card, True, silent),
                Stream("agent_0", c.card, True, silent_codes(codec)),
                *(Stream(f"agent_{k}", c.card, True) for k in range(1, c.dep_q)),
                *(Stream(f"user_{k}", c.card, False) for k in range(c.n_q - c.dep_q)),
            ),
            context=c.context,
            emission_lag=c.max_delay,
            hidden=c.dim,
            cached=2 * c.num_layers * c.dim,
        )
        self._begin_with(prompt)
        self._speller = Speller(tokenizer, c.text_card, silent)
        self._lags = np.array(c.delays[: 1 + c.dep_q])
        self._open(0)

    @classmethod
    def load(
        cls, folder: str | Path, sampling: Sampling | None = None, codec: Codec | None = None, context: int = 0
    ) -> MoshiPolicy:
        """The policy in a checkpoint folder (see `checkpoint`), with another `codec` if one is given.

        It looks back `context` frames, or if that is 0 as many as the checkpoint says, which is the most: no weight has
        learned to look further. UptakeError if it is more.
        """
        model, codec, tokenizer = load_checkpoint(folder, codec)
        if context:
            most = model.config.context
            if not 0 < context <= most:
                raise UptakeError(f"context = {context}: {folder} looks back {most} frames; give 1 to {most}, or 0")
            model.config = replace(model.config, context=context)
        return cls(model, codec, tokenizer, sampling)

    def prompted(self, prompt: np.ndarray | None) -> MoshiPolicy:
        """The same model with another prompt that every conversation begins with; its rows are its own."""
        other = copy.copy(self)
        other._begin_with(prompt)
        other._open(0)
        return other

    def _begin_with(self, prompt: np.ndarray | None) -> None:
        """Take a prompt; one with the user's codes as well is lived through before the first frame."""
        c = self.model.config
        self.prompt, lived = None, 0
        if prompt is not None:
            self.prompt = self._checked(prompt)
            streams, frames = self.prompt.shape
            lived = frames + 1 if streams > 1 + c.dep_q else 0
        self.spec = replace(self.spec, lived=lived)

    def _open(self, batch: int) -> None:
        c = self.model.config
        place(self.codec, self.model.device)
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be changed outside of it
            graphs = Graphs.on(self.model, self.model.device) if batch else None
            self._stream = MoshiStream(self.model, self.sampling, batch, graphs)
        self._ear = SharedEncoder(self.codec, batch)
        self._mouth = self.codec.init_state(batch)
        self._codes = np.full((batch, c.num_streams, _FIRST_COLUMNS), ZERO, np.int64)
        self._valid = np.zeros((batch, _FIRST_COLUMNS), bool)
        self._logp = np.zeros((batch, _FIRST_COLUMNS), np.float32)
        # Of the agent codebooks, by the call that sampled them and not by the frame that they belong to.
        self._audio_valid = np.zeros((batch, c.dep_q, _FIRST_COLUMNS), bool)
        self._audio_logp = np.zeros((batch, c.dep_q, _FIRST_COLUMNS), np.float32)
        self._prompts: list[np.ndarray | None] = [None] * batch
        self._speller = self._speller.opened(batch)
        self._lived = np.zeros(batch, np.int64)  # calls before the conversation's first

    @property
    def batch(self) -> int:
        """Number of slots that are open."""
        return self._stream.batch

    # -- living --------------------------------------------------------------------------------------------------------

    def reset(self, rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start `rows` afresh; `seeds` and `prompts` have one entry for every slot. See `DuplexPolicy.reset`."""
        fit = self._stream.belongs_to(self.model) and self._stream.sampling == self.sampling
        index, anew = rows_to_reset(rows, seeds, prompts, self.batch, fit)
        if anew:
            self._open(len(seeds))
        given = [None if prompts is None else prompts[b] for b in index]
        chosen = [self.prompt if prompt is None else self._checked(prompt) for prompt in given]
        self._stream.reset(index, row_seeds(seeds, index))
        self._ear.reset(index)
        self.codec.reset(self._mouth, index)
        self._codes[index] = ZERO
        self._valid[index] = False
        self._logp[index] = 0
        self._audio_valid[index] = False
        self._audio_logp[index] = 0
        self._speller.reset(index)
        for b, prompt in zip(index, chosen, strict=True):
            self._prompts[b] = prompt
        self._live(index)

    def _live(self, rows: np.ndarray) -> None:
        """Run the `rows` that were given a prompt with the user's part through it.

        P frames take P + 1 calls: the user's frame of column t is heard in call t + 1, and codebooks with delay 1 of
        the last frame are fed in the last one, which samples the first token that is the policy's own.
        """
        own = len(self._lags)
        self._lived[rows] = 0
        for b in rows:
            prompt = self._prompts[b]
            if prompt is not None and len(prompt) > own:
                self._lived[b] = prompt.shape[1] + 1
        for call in range(int(self._lived[rows].max(initial=0))):
            active = np.zeros(self.batch, bool)
            active[rows] = self._lived[rows] > call
            heard = np.zeros((self.batch, self.model.config.n_q - self.model.config.dep_q), np.int64)
            for b in np.flatnonzero(active):
                prompt = self._prompts[b]
                assert prompt is not None
                if call:  # the user's frame of the first call has no place in the layout
                    heard[b] = prompt[own:, call - 1]
            forced = self._forced(active)
            tokens, logp, audio_logp, steps = self._stream.step(heard, active, forced)
            acting = np.flatnonzero(active)
            seen = (tokens[acting], logp[acting], audio_logp[acting], heard[acting])
            self._record(acting, steps[acting], *seen, forced)
        for b in rows:
            self._valid[b, : self._lived[b]] = False

    def _checked(self, prompt: Any) -> np.ndarray:
        c = self.model.config
        codes = np.asarray(prompt, np.int64)
        if codes.ndim != 2 or len(codes) not in (1 + c.dep_q, 1 + c.n_q):
            raise ValueError(
                f"a prompt of shape {codes.shape}; expected (1 + {c.dep_q} agent streams, frames), or with the user's "
                f"{c.n_q - c.dep_q} below"
            )
        limit = np.array([c.text_card] + [c.card] * (len(codes) - 1))[:, None]
        free = codes == SAMPLE
        free[1 + c.dep_q :] = False  # what a user said is known
        if (~free & ((codes < 0) | (codes >= limit))).any():
            raise ValueError("a prompt with tokens outside of their vocabulary; -2 means: sample, for the agent's")
        if codes.shape[1] >= c.context:
            raise UptakeError(
                f"a prompt of {codes.shape[1]} frames: the policy looks back {c.context} frames and would have "
                "forgotten its beginning when it is over; give a shorter one"
            )
        return codes

    def fork(self, source: int, rows: Any, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is. See `DuplexPolicy.fork`."""
        index = row_indices(rows, self.batch)
        self._stream.fork(source, index)
        if seeds is not None:
            self._stream.seeds[index] = row_seeds(seeds, index)
        self._ear.fork(source, index)
        self.codec.fork(self._mouth, source, index)
        records = (self._codes, self._valid, self._logp, self._audio_valid, self._audio_logp, self._lived)
        for record in records:
            record[index] = record[source]
        self._speller.fork(source, index)
        for b in index:
            self._prompts[b] = self._prompts[source]

    def step(self, mic: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Hear one frame and act. See `DuplexPolicy.step`. UptakeError if an active row's audio has NaN."""
        mic = np.asarray(mic, np.float32)
        active = np.ones(self.batch, bool) if active is None else np.asarray(active, bool)
        if mic.shape != (self.batch, self.spec.frame) or active.shape != (self.batch,):
            raise ValueError(
                f"step: mic {mic.shape} and active {active.shape}; expected ({self.batch}, {self.spec.frame}) and "
                f"({self.batch},): reset opens the rows"
            )
        acting = np.flatnonzero(active)
        check_microphone(mic, acting)
        heard = self._ear.encode(mic, active)
        forced = self._forced(active)
        tokens, logp, audio_logp, steps = self._stream.step(heard, active, forced)
        if not np.isfinite(logp[acting]).all():
            raise FloatingPointError("a text log-probability is not finite: the model's weights are broken")
        self._record(acting, steps[acting], tokens[acting], logp[acting], audio_logp[acting], heard[acting], forced)
        tokens[~active] = ZERO
        text = [""] * self.batch
        for b in acting:
            text[b] = self._speller.decode(int(b), int(tokens[b, 0]))
        audio = self._spoken(active, steps)
        return Step(audio, tokens, np.where(active, logp, 0).astype(np.float32), text)

    def _forced(self, active: np.ndarray) -> np.ndarray | None:
        """The prompts' tokens for this call, on the model's clock, or None if no row is in its prompt."""
        steps = self._stream.steps
        forced = None
        for b, prompt in enumerate(self._prompts):
            if prompt is None or not active[b] or steps[b] >= prompt.shape[1] + self._lags.max():
                continue
            if forced is None:
                forced = np.full((self.batch, len(self._lags)), SAMPLE, np.int64)
            column = steps[b] - self._lags
            known = np.flatnonzero((column >= 0) & (column < prompt.shape[1]))
            forced[b, known] = prompt[known, column[known]]
        return forced

    def _record(
        self,
        rows: np.ndarray,
        steps: np.ndarray,
        tokens: np.ndarray,
        logp: np.ndarray,
        audio_logp: np.ndarray,
        heard: np.ndarray,
        forced: np.ndarray | None,
    ) -> None:
        """Write what the R `rows` did in their `steps`: tokens (R, 1 + dep_q), logp (R,), audio_logp (R, dep_q), heard
        (R, Q).
        """
        columns = self._valid.shape[1]
        if len(steps) and steps.max() >= columns:
            self._codes = np.concatenate((self._codes, np.full_like(self._codes, ZERO)), axis=2)
            self._valid = np.concatenate((self._valid, np.zeros_like(self._valid)), axis=1)
            self._logp = np.concatenate((self._logp, np.zeros_like(self._logp)), axis=1)
            self._audio_valid = np.concatenate((self._audio_valid, np.zeros_like(self._audio_valid)), axis=2)
            self._audio_logp = np.concatenate((self._audio_logp, np.zeros_like(self._audio_logp)), axis=2)
        own = tokens.shape[1]
        column = steps[:, None] - self._lags  # (R, 1 + dep_q)
        row, stream = np.nonzero(column >= 0)
        self._codes[rows[row], stream, column[row, stream]] = tokens[row, stream]
        later = steps > 0
        self._codes[rows[later], own:, steps[later] - 1] = heard[later]
        sampled = np.ones(len(rows), bool) if forced is None else forced[rows, 0] == SAMPLE
        self._valid[rows, steps] = sampled
        self._logp[rows, steps] = logp
        own_audio = column[:, 1:] >= 0  # (R, dep_q): before its first frame a delayed codebook is no action
        if forced is not None:
            own_audio &= forced[rows, 1:] == SAMPLE
        self._audio_valid[rows, :, steps] = own_audio
        self._audio_logp[rows, :, steps] = np.where(own_audio, audio_logp, 0)

    def _spoken(self, active: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The sound of the agent frame that this call completed, (B, frame); silence in a row's first calls.

        The frame that a prompt's last call has begun is the first that is heard.
        """
        column = steps - self._lags.max()
        speaking = active & (column >= np.maximum(self._lived - self._lags.max(), 0))
        if not speaking.any():
            return np.zeros((self.batch, self.spec.frame), np.float32)
        agent = self._codes[:, 1 : len(self._lags)]
        codes = agent[np.arange(self.batch), :, np.maximum(column, 0)]  # (B, dep_q)
        codes[~speaking] = 0
        with rows_kept(self._mouth, np.flatnonzero(~speaking)):
            audio = self.codec.decode(self._mouth, codes)
        return np.where(speaking[:, None], audio, 0).astype(np.float32)

    # -- learning ------------------------------------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """What was heard and done since each row's last reset, on the model's device; T is the longest row's calls."""
        sampling = self._stream.sampling  # what it was sampled with; `self.sampling` counts from the next reset
        frames = int((self._stream.steps - self._lived).max(initial=0))
        prompted = int(self._lived.max(initial=0))
        lived = np.where(np.arange(prompted) < self._lived[:, None, None], self._codes[:, :, :prompted], ZERO)
        said = np.full((self.batch, len(self._lags) - 1, self._codes.shape[2]), ZERO, np.int64)
        for k, lag in enumerate(self._lags[1:]):
            said[:, k, lag:] = self._codes[:, 1 + k, : self._codes.shape[2] - lag]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)

        def conversation(record: np.ndarray, nothing: int) -> Tensor:
            """The columns (B, ..., T) of the conversation of a record (B, ..., columns) that begins with the prompt."""
            columns = self._lived[:, None] + np.arange(frames)  # (B, T)
            between = (slice(None),) + (None,) * (record.ndim - 2)
            taken = np.take_along_axis(record, np.minimum(columns, record.shape[-1] - 1)[between], axis=-1)
            return tensor(np.where((columns < record.shape[-1])[between], taken, record.dtype.type(nothing)))

        with torch.inference_mode(False):  # scoring must be able to save these tensors for its backward pass
            return Trajectory(
                codes=conversation(self._codes, ZERO),
                valid=conversation(self._valid, 0),
                sampler_logp=conversation(self._logp, 0),
                temperature=sampling.text_temperature,
                top_k=sampling.text_top_k,
                audio=AudioActions(
                    tokens=conversation(said, ZERO),
                    valid=conversation(self._audio_valid, 0),
                    sampler_logp=conversation(self._audio_logp, 0),
                    temperature=sampling.audio_temperature,
                    top_k=sampling.audio_top_k,
                ),
                lived=tensor(lived) if prompted else None,
                lived_frames=tensor(self._lived.copy()) if prompted else None,
            )

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        """Scores of the text stream; the depth transformer runs only for `codebooks`. See `DuplexPolicy.score`.

        Under top-k, the token that was taken counts as inside: its log-prob stays finite when its rank has changed.
        """
        if not 0 <= codebooks <= self.model.config.dep_q:
            raise ValueError(f"score: codebooks = {codebooks}: the agent has {self.model.config.dep_q}; give 0 to that")
        codes, conversation = self._whole(trajectory)
        whole, logits = self.model.text_forward(codes)
        hidden = whole
        if conversation is not None:
            shape = trajectory.valid.shape
            hidden, logits = (x[conversation].unflatten(0, shape) for x in (whole, logits))
        taken = trajectory.codes[:, 0].clamp(min=0)
        log_probs = truncated_log_probs(logits, trajectory.temperature, trajectory.top_k, taken)  # (B, T, V)
        scores = scores_of(trajectory, log_probs, full, hidden)
        if codebooks:
            logp, log_probs = self._score_audio(whole, codes, conversation, trajectory, codebooks)
            scores.audio_logp, scores.audio_log_probs = logp, log_probs if full else None
        return scores

    def _whole(self, trajectory: Trajectory) -> tuple[Tensor, Tensor | None]:
        """Codes (B, K, M + T) with what was lived first, and (B, M + T) bool where the conversation is: T a row."""
        if trajectory.lived is None or trajectory.lived_frames is None:
            return trajectory.codes, None
        frames = trajectory.codes.shape[2]
        whole = torch.cat((trajectory.lived, torch.full_like(trajectory.codes, ZERO)), dim=2)
        # A row's conversation begins where what it lived ends; what is to the right of it changes nothing to its left.
        columns = trajectory.lived_frames[:, None] + torch.arange(frames, device=whole.device)  # (B, T)
        whole.scatter_(2, columns[:, None].expand_as(trajectory.codes), trajectory.codes)
        inside = torch.zeros(whole.shape[0], whole.shape[2], dtype=torch.bool, device=whole.device)
        return whole, inside.scatter_(1, columns, True)

    def _score_audio(
        self, hidden: Tensor, codes: Tensor, conversation: Tensor | None, trajectory: Trajectory, codebooks: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probs (B, codebooks, T) of the first agent codebooks' actions and (B, codebooks, T, card) of all codes.

        `hidden (B, M + T, D)` of the temporal transformer; `codes` and `conversation` of `_whole`.
        """
        audio = trajectory.audio
        assert audio is not None
        valid, taken = audio.valid[:, :codebooks], audio.tokens[:, :codebooks].clamp(min=0)
        logits = self.model.depth_scores(hidden, codes, conversation, codebooks).logits  # (B * T, codebooks, card)
        logits = logits.unflatten(0, trajectory.valid.shape).transpose(1, 2)
        log_probs = truncated_log_probs(logits, audio.temperature, audio.top_k, taken)
        logp = log_probs.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        return torch.where(valid, logp, logp.new_zeros(())), log_probs

    def export(
        self,
        path: str | Path,
        format: str = "kyutai",
        dtype: torch.dtype = torch.float32,
        base: str | Path | None = None,
    ) -> None:
        """Write the checkpoint folder `path`, the weights as `dtype`; see `checkpoint.save_checkpoint`."""
        save_checkpoint(path, self.model, self.codec, self.tokenizer, dtype, format, base)


def silent_codes(codec: Codec) -> frozenset[int]:
    """What a codec's first codebook says of silence: the codes of 1.3 s of it."""
    return frozenset(codes_of_silence(codec, SILENT_FRAMES)[:, 0].tolist())

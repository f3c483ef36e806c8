"""A Moshi-class model, a codec and a tokenizer as a `DuplexPolicy`.

Clock. Call n of `step` hears frame n of the microphone and then samples text(n) and the first codebook of agent frame
n; the other codebooks of frame n follow in call n + 1, which returns its sound: `emission_lag` is 1. (An environment
that plays what call n returned during its frame n + 1 lets text(n) be heard in its frame n + 2.) Column t of
`Trajectory.codes` is text(t), agent frame t and the user's frame t + 1, as `MoshiModel.text_forward` wants it; the
user's frame of the first call has no place in it and is not used (published layout, moshi 0.2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.codecs.base import Codec, rows_kept
from align.codecs.shared_encoder import SharedEncoder
from align.policies.base import DuplexSpec, Scores, Step, Stream, Trajectory, row_indices
from align.policies.moshi.checkpoint import Tokenizer, load_checkpoint, save_checkpoint
from align.policies.moshi.model import ZERO, MoshiModel
from align.policies.moshi.streaming import SAMPLE, MoshiStream
from align.policies.sampling import Sampling, truncated_log_probs
from envs.errors import UptakeError

SILENT_FRAMES = 16
_FIRST_COLUMNS = 256  # the record starts with so many frames and doubles


class MoshiPolicy:
    """Streams, records and scores; see `align.policies.base.DuplexPolicy` for the contract.

    A prompt is an int array aligned like `Trajectory.codes`, with -2 where the agent is to sample for itself:

    * (1 + all codebooks, P), the user's among them: P frames that the row has lived before the conversation begins
      (`align.policies.moshi.prompt`). `reset` runs through them, rows of different length side by side.
    * (1 + agent codebooks, P): the agent's tokens of the conversation's own first P frames.

    `prompt` is what rows begin with that are given none.
    """

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
        self.prompt = None if prompt is None else self._checked(prompt)
        silent = frozenset((c.existing_text_padding_id, c.existing_text_end_padding_id))
        self.spec = DuplexSpec(
            sample_rate=codec.sample_rate,
            frame=codec.frame,
            streams=(
                Stream("text", c.text_card, True, silent),
                Stream("agent_0", c.card, False, silent_codes(codec)),
                *(Stream(f"agent_{k}", c.card, False) for k in range(1, c.dep_q)),
                *(Stream(f"user_{k}", c.card, False) for k in range(c.n_q - c.dep_q)),
            ),
            context=c.context,
            emission_lag=c.max_delay,
            hidden=c.dim,
            lived=0 if self.prompt is None or len(self.prompt) == 1 + c.dep_q else self.prompt.shape[1] + 1,
        )
        self._pieces = [_piece(tokenizer, token, silent) for token in range(c.text_card)]
        self._lags = np.array(c.delays[: 1 + c.dep_q])
        self._open(0)

    @classmethod
    def load(cls, folder: str | Path, sampling: Sampling | None = None, codec: Codec | None = None) -> MoshiPolicy:
        """The policy in a checkpoint folder (see `checkpoint`), with another `codec` if one is given."""
        return cls(*load_checkpoint(folder, codec), sampling)

    def prompted(self, prompt: np.ndarray | None) -> MoshiPolicy:
        """The same model with another prompt that every conversation begins with; its rows are its own."""
        return MoshiPolicy(self.model, self.codec, self.tokenizer, self.sampling, prompt)

    def _open(self, batch: int) -> None:
        c = self.model.config
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be changed outside of it
            self._stream = MoshiStream(self.model, self.sampling, batch)
        self._ear = SharedEncoder(self.codec, batch)
        self._mouth = self.codec.init_state(batch)
        self._codes = np.full((batch, c.num_streams, _FIRST_COLUMNS), ZERO, np.int64)
        self._valid = np.zeros((batch, _FIRST_COLUMNS), bool)
        self._logp = np.zeros((batch, _FIRST_COLUMNS), np.float32)
        self._prompts: list[np.ndarray | None] = [None] * batch
        self._bytes = [b""] * batch  # of a character that is not complete yet
        self._lived = np.zeros(batch, np.int64)  # calls before the conversation's first

    @property
    def batch(self) -> int:
        """Number of slots that are open."""
        return self._stream.batch

    # -- living --------------------------------------------------------------------------------------------------------

    def reset(self, rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start `rows` afresh; `seeds` and `prompts` have one entry for every slot. See `DuplexPolicy.reset`."""
        batch = len(seeds)
        index = row_indices(rows, batch)
        if batch != self.batch or not self._stream.belongs_to(self.model):
            if len(index) != batch:
                raise ValueError(f"reset of {len(index)} of {batch} rows, but {self.batch} are open; reset all of them")
            self._open(batch)
        if prompts is not None and len(prompts) != batch:
            raise ValueError(f"reset: {len(prompts)} prompts for {batch} rows; give one (or None) for every row")
        given = [None if prompts is None else prompts[b] for b in index]
        chosen = [self.prompt if prompt is None else self._checked(prompt) for prompt in given]
        self._stream.reset(index, np.array([int(seeds[b]) % 2**64 for b in index], np.uint64))
        self._ear.reset(index)
        self.codec.reset(self._mouth, index)
        self._codes[index] = ZERO
        self._valid[index] = False
        self._logp[index] = 0
        for b, prompt in zip(index, chosen, strict=True):
            self._prompts[b], self._bytes[b] = prompt, b""
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
            tokens, logp, steps = self._stream.step(heard, active, forced)
            acting = np.flatnonzero(active)
            self._record(acting, steps[acting], tokens[acting], logp[acting], heard[acting], forced)
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
        return codes

    def fork(self, source: int, rows: Any, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is. See `DuplexPolicy.fork`."""
        index = row_indices(rows, self.batch)
        self._stream.fork(source, index)
        if seeds is not None:
            self._stream.seeds[index] = np.array([int(seeds[b]) % 2**64 for b in index], np.uint64)
        self._ear.fork(source, index)
        self.codec.fork(self._mouth, source, index)
        for record in (self._codes, self._valid, self._logp, self._lived):
            record[index] = record[source]
        for b in index:
            self._prompts[b], self._bytes[b] = self._prompts[source], self._bytes[source]

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
        if not np.isfinite(mic[acting]).all():
            bad = acting[~np.isfinite(mic[acting]).all(axis=1)]
            raise UptakeError(f"microphone of row {bad[0]}: NaN or infinite samples; repair the audio")
        heard = self._ear.encode(mic, active)
        forced = self._forced(active)
        tokens, logp, steps = self._stream.step(heard, active, forced)
        if not np.isfinite(logp[acting]).all():
            raise FloatingPointError("a text log-probability is not finite: the model's weights are broken")
        self._record(acting, steps[acting], tokens[acting], logp[acting], heard[acting], forced)
        tokens[~active] = ZERO
        text = [""] * self.batch
        for b in acting:
            text[b] = self._decoded(int(b), int(tokens[b, 0]))
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
        heard: np.ndarray,
        forced: np.ndarray | None,
    ) -> None:
        """Write what the R `rows` did in their `steps`: tokens (R, 1 + dep_q), logp (R,), heard (R, Q)."""
        columns = self._valid.shape[1]
        if len(steps) and steps.max() >= columns:
            self._codes = np.concatenate((self._codes, np.full_like(self._codes, ZERO)), axis=2)
            self._valid = np.concatenate((self._valid, np.zeros_like(self._valid)), axis=1)
            self._logp = np.concatenate((self._logp, np.zeros_like(self._logp)), axis=1)
        own = tokens.shape[1]
        column = steps[:, None] - self._lags  # (R, 1 + dep_q)
        row, stream = np.nonzero(column >= 0)
        self._codes[rows[row], stream, column[row, stream]] = tokens[row, stream]
        later = steps > 0
        self._codes[rows[later], own:, steps[later] - 1] = heard[later]
        sampled = np.ones(len(rows), bool) if forced is None else forced[rows, 0] == SAMPLE
        self._valid[rows, steps] = sampled
        self._logp[rows, steps] = logp

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

    def _decoded(self, row: int, token: int) -> str:
        """The text that `token` completes; bytes of an unfinished character wait for the next token."""
        piece = self._pieces[token]
        if isinstance(piece, str):
            self._bytes[row] = b"" if piece else self._bytes[row]
            return piece
        self._bytes[row] += piece
        try:
            text = self._bytes[row].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                self._bytes[row] = b""
            return ""
        self._bytes[row] = b""
        return text

    # -- learning ------------------------------------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """What was heard and done since each row's last reset, on the model's device; T is the longest row's calls."""
        frames = int((self._stream.steps - self._lived).max(initial=0))
        columns = self._lived[:, None] + np.arange(frames)  # (B, T)
        inside = columns < self._codes.shape[2]
        columns = np.minimum(columns, self._codes.shape[2] - 1)
        rows = np.arange(self.batch)[:, None]
        codes = self._codes.swapaxes(1, 2)[rows, columns].swapaxes(1, 2)  # (B, K, T)
        codes = np.where(inside[:, None], codes, ZERO)
        prompted = int(self._lived.max(initial=0))
        lived = np.where(np.arange(prompted) < self._lived[:, None, None], self._codes[:, :, :prompted], ZERO)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)

        with torch.inference_mode(False):  # scoring must be able to save these tensors for its backward pass
            return Trajectory(
                codes=tensor(codes),
                valid=tensor(self._valid[rows, columns] & inside),
                sampler_logp=tensor(np.where(inside, self._logp[rows, columns], 0).astype(np.float32)),
                temperature=self.sampling.text_temperature,
                top_k=self.sampling.text_top_k,
                lived=tensor(lived) if prompted else None,
                lived_frames=tensor(self._lived.copy()) if prompted else None,
            )

    def score(self, trajectory: Trajectory, full: bool = False) -> Scores:
        """Scores of the text stream; the depth transformer does not run. See `DuplexPolicy.score`.

        Under top-k, the token that was taken counts as inside: its log-prob stays finite when its rank has changed.
        """
        hidden, logits = self._read(trajectory)
        taken = trajectory.codes[:, 0].clamp(min=0)
        log_probs = truncated_log_probs(logits, trajectory.temperature, trajectory.top_k, taken)  # (B, T, V)
        logp = log_probs.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        surprise = log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0)
        zero = logp.new_zeros(())
        return Scores(
            logp=torch.where(trajectory.valid, logp, zero),
            entropy=torch.where(trajectory.valid, -surprise.sum(-1), zero),
            log_probs=log_probs if full else None,
            hidden=hidden,
        )

    def _read(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Hidden (B, T, D) and text logits (B, T, V) of the conversation, what was lived before it read first."""
        if trajectory.lived is None or trajectory.lived_frames is None:
            return self.model.text_forward(trajectory.codes)
        batch, _, frames = trajectory.codes.shape
        whole = torch.cat((trajectory.lived, torch.full_like(trajectory.codes, ZERO)), dim=2)  # (B, K, M + T)
        # A row's conversation begins where what it lived ends; what is to the right of it changes nothing to its left.
        columns = trajectory.lived_frames[:, None] + torch.arange(frames, device=whole.device)  # (B, T)
        whole.scatter_(2, columns[:, None].expand_as(trajectory.codes), trajectory.codes)
        hidden, logits = self.model.text_forward(whole)
        rows = torch.arange(batch, device=whole.device)[:, None]
        return hidden[rows, columns], logits[rows, columns]

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
    """What a codec's first codebook says of silence: the codes of 1.3 s of digital silence."""
    state = codec.init_state(1)
    frames = [codec.encode(state, np.zeros((1, codec.frame), np.float32)) for _ in range(SILENT_FRAMES)]
    return frozenset(int(codes[0, 0]) for codes in frames)


def _piece(tokenizer: Tokenizer, token: int, silent: frozenset[int]) -> str | bytes:
    """What a text token stands for: a string (a leading space begins a word) or, for a byte token, one byte."""
    if token in silent or token >= tokenizer.get_piece_size() or tokenizer.is_control(token):
        return ""
    if tokenizer.is_unknown(token):
        return ""
    piece = tokenizer.id_to_piece(token)
    if tokenizer.is_byte(token):
        return bytes((int(piece[3:5], 16),))  # "<0x41>"
    return piece.replace("\u2581", " ")

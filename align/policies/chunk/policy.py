"""A chunk-decision model, a codec and a tokenizer as a `DuplexPolicy`; see `align.policies.chunk.model`.

    policy = ChunkPolicy(ChunkModel(ChunkConfig()), codec, tokenizer)

The text stream is the trajectory's action: a decision in every fifth frame, a text token in the frames of a response
between them, nothing elsewhere. Each distribution is over what is legal there, on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.codecs import load_codec, save_codec
from align.codecs.base import codes_of_silence, place
from align.codecs.shared_encoder import SharedEncoder
from align.files import one_line, read_json, read_weights, write_json, write_tensors, write_whole
from align.lora import merged_weights
from align.policies.base import (
    DuplexSpec,
    Scores,
    Step,
    Stream,
    Trajectory,
    check_microphone,
    refuse_codebooks,
    row_indices,
    row_seeds,
    rows_to_reset,
    scores_of,
)
from align.policies.chunk.config import KIND, ChunkConfig
from align.policies.chunk.model import ChunkModel, legal
from align.policies.chunk.streaming import ChunkStream
from align.policies.keeping import Keeping
from align.policies.moshi.layouts.kyutai import TOKENIZER, WEIGHTS, Tokenizer, open_tokenizer
from align.policies.record import Record
from align.policies.sampling import SAMPLE, Sampling, truncated_log_probs
from align.policies.spelling import Speller
from envs.codec import Codec, rows_kept
from envs.errors import UptakeError

SETTLED_FRAMES = 8
"""Of silence, after which a codec says of it what it will go on saying."""
RELEASE = 2
"""Frames that the codec goes on for after a response, on the codes of silence: no word ends with a click."""


class ChunkPolicy(Keeping):
    """Batched; rows are slots. See `align.policies.base.DuplexPolicy`.

    A prompt is an int array (P,): the text tokens of its first P frames, -2 where the model is to sample; what it says
    of frames in which the model rests is not looked at.
    """

    _LIVES = ("_stream", "_ear", "_mouth", "_tail", "_record", "_prompts", "_speller")
    _SHARES = ("model", "codec")

    def __init__(self, model: ChunkModel, codec: Codec, tokenizer: Tokenizer, sampling: Sampling | None = None) -> None:
        c = model.config
        if (c.codebooks, c.card) != (codec.codebooks, codec.card):
            raise UptakeError(
                f"the model has {c.codebooks} codebooks of {c.card}, its codec has {codec.codebooks} of {codec.card}; "
                "they do not belong together"
            )
        self.model, self.codec, self.tokenizer = model, codec, tokenizer
        self.sampling = sampling or Sampling()
        silent = frozenset((c.padding_id, c.end_padding_id, c.silent, c.end))
        self.spec = DuplexSpec(
            sample_rate=codec.sample_rate,
            frame=codec.frame,
            streams=(
                Stream("text", c.vocab, True, silent),
                *(Stream(f"agent_{k}", c.card, False) for k in range(c.codebooks)),
                *(Stream(f"user_{k}", c.card, False) for k in range(c.codebooks)),
            ),
            context=c.context,
            decision_frames=c.chunk,
            emission_lag=0,
            hidden=c.dim,
            cached=2 * c.num_layers * c.dim,
        )
        self._silence = codes_of_silence(codec, SETTLED_FRAMES)[-1]  # (Q,)
        self._speller = Speller(tokenizer, c.vocab, silent | {c.response})
        self._open(0)

    @classmethod
    def load(cls, folder: str | Path, sampling: Sampling | None = None, codec: Codec | None = None) -> ChunkPolicy:
        """What `export` wrote, with another `codec` if one is given; UptakeError, one line, for what does not fit."""
        folder = Path(folder)
        values = read_json(folder / "config.json")
        if values.pop("model_type", None) != KIND:
            raise UptakeError(f"{folder / 'config.json'}: is not of model_type {KIND!r}")
        kept = {name: value for name, value in values.items() if not name.endswith("_name")}
        try:
            with torch.device("meta"):  # what config.json asks for may be more than fits anywhere
                model = ChunkModel(ChunkConfig.from_dict(kept))
        except UptakeError as error:
            raise UptakeError(f"{folder / 'config.json'}: {error}") from error
        weights = read_weights(folder / WEIGHTS)
        try:
            model.load_state_dict({name: value.float().clone() for name, value in weights.items()}, assign=True)
        except RuntimeError as error:
            what = one_line(error)
            raise UptakeError(f"{folder / WEIGHTS}: weights of another shape than config.json says: {what}") from error
        codec = codec or load_codec(folder, model.config.codebooks, values)
        return cls(model, codec, open_tokenizer(folder / TOKENIZER, model.config.text_card), sampling)

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        """Write the folder that `load` reads; this class has one layout of its own, whatever the `format`."""
        folder = Path(path)
        write_tensors(folder / WEIGHTS, merged_weights(self.model))
        write_whole(folder / TOKENIZER, lambda file: file.write_bytes(self.tokenizer.serialized_model_proto()))
        values = {"model_type": KIND} | dataclasses.asdict(self.model.config)
        write_json(folder / "config.json", values | save_codec(folder, self.codec))

    # -- living --------------------------------------------------------------------------------------------------------

    def _open(self, batch: int) -> None:
        place(self.codec, self.model.device)
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be changed outside of it
            self._stream = ChunkStream(self.model, self.sampling, batch, self._silence)
        self._ear = SharedEncoder(self.codec, batch)
        self._mouth = self.codec.init_state(batch)
        self._tail = np.zeros(batch, np.int64)  # frames of the release that are still to come
        self._record = Record(batch, self.model.config.streams)
        self._prompts: list[np.ndarray | None] = [None] * batch
        self._speller = self._speller.opened(batch)

    @property
    def batch(self) -> int:
        """Number of slots that are open."""
        return self._stream.batch

    def reset(self, rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start `rows` afresh; `seeds` and `prompts` have one entry for every slot. See `DuplexPolicy.reset`."""
        fit = self._stream.belongs_to(self.model) and self._stream.sampling == self.sampling
        index, anew = rows_to_reset(rows, seeds, prompts, self.batch, fit)
        if anew:
            self._open(len(seeds))
        for b in index:
            self._prompts[b] = None if prompts is None or prompts[b] is None else self._checked(prompts[b])
        self._stream.reset(index, row_seeds(seeds, index))
        self._ear.reset(index)
        self.codec.reset(self._mouth, index)
        self._tail[index] = 0
        self._record.reset(index)
        self._speller.reset(index)

    def _checked(self, prompt: Any) -> np.ndarray:
        c = self.model.config
        text = np.asarray(prompt, np.int64)
        if text.ndim != 1:
            raise ValueError(f"a prompt of shape {text.shape}; expected (frames,)")
        if ((text != SAMPLE) & ((text < 0) | (text >= c.vocab))).any():
            raise ValueError("a prompt with tokens outside of the vocabulary; -2 means: sample")
        decides = (np.arange(len(text)) + 1) % c.chunk == 0
        wrong = (text != SAMPLE) & (decides != np.isin(text, (c.silent, c.response)))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            kind = "a decision" if decides[at] else "text"
            raise ValueError(f"a prompt with token {text[at]} in frame {at}, where only {kind} is legal")
        return text

    def fork(self, source: int, rows: Any, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is. See `DuplexPolicy.fork`."""
        index = row_indices(rows, self.batch)
        self._stream.fork(source, index)
        if seeds is not None:
            self._stream.seeds[index] = row_seeds(seeds, index)
        self._ear.fork(source, index)
        self.codec.fork(self._mouth, source, index)
        self._tail[index] = self._tail[source]
        self._record.fork(source, index)
        self._speller.fork(source, index)
        for b in index:
            self._prompts[b] = self._prompts[source]

    def step(self, mic: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Hear one frame and act. See `DuplexPolicy.step`. UptakeError if an active row's audio has NaN."""
        mic = np.asarray(mic, np.float32)
        active = np.ones(self.batch, bool) if active is None else np.asarray(active, bool)
        rows = np.flatnonzero(active)
        check_microphone(mic, rows)
        heard = self._ear.encode(mic, active)[rows]  # (R, Q)
        forced = self._forced(rows)
        text, logp, agent = self._stream.step(heard, rows, forced)
        if not np.isfinite(logp).all():
            raise FloatingPointError("a text log-probability is not finite: the model's weights are broken")
        valid = (text >= 0) & (forced == SAMPLE)
        self._record.write(rows, np.concatenate((text[:, None], agent, heard), axis=1), valid, logp)
        tokens = np.full((self.batch, 1 + self.model.config.codebooks), -1, np.int64)
        tokens[rows] = np.concatenate((text[:, None], agent), axis=1)
        told = np.zeros(self.batch, np.float32)
        told[rows] = logp
        written = [self._speller.decode(b, int(tokens[b, 0])) if tokens[b, 0] >= 0 else "" for b in range(self.batch)]
        return Step(self._spoken(tokens[:, 1:], active), tokens, told, written)

    def _forced(self, rows: np.ndarray) -> np.ndarray:
        """(R,) what the prompts say about this frame."""
        forced = np.full(len(rows), SAMPLE, np.int64)
        for n, b in enumerate(rows):
            prompt, at = self._prompts[b], self._stream.steps[b]
            if prompt is not None and at < len(prompt):
                forced[n] = prompt[at]
        return forced

    def _spoken(self, agent: np.ndarray, active: np.ndarray) -> np.ndarray:
        """The sound (B, frame) of the agent's codes (B, Q); silence where there are none and the release is over."""
        talks = active & (agent[:, 0] >= 0)
        sounding = talks | (active & (self._tail > 0))
        begins = np.flatnonzero(talks & (self._tail == 0))
        self.codec.reset(self._mouth, begins)
        self._tail = np.where(talks, RELEASE, np.where(sounding, self._tail - 1, self._tail))
        if not sounding.any():
            return np.zeros((self.batch, self.spec.frame), np.float32)
        with rows_kept(self._mouth, np.flatnonzero(~sounding)):
            audio = self.codec.decode(self._mouth, np.where(talks[:, None], agent, self._silence))
        return np.where(sounding[:, None], audio, 0).astype(np.float32)

    # -- learning ------------------------------------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """What was heard and done since each row's last reset, on the model's device."""
        sampling = self._stream.sampling  # what it was sampled with; `self.sampling` counts from the next reset
        return self._record.trajectory(self.model.device, sampling.text_temperature, sampling.text_top_k)

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        """Scores of decisions and text; the talker does not run. See `DuplexPolicy.score`."""
        refuse_codebooks(codebooks)
        hidden, logits = self.model.decode(trajectory.codes)
        text = trajectory.codes[:, 0]
        taken = text.clamp(min=0)
        masked = logits.masked_fill(~legal(self.model.config, text), -torch.inf)
        # Where nothing was decided `taken` may be illegal; what comes out there is masked below.
        log_probs = truncated_log_probs(masked, trajectory.temperature, trajectory.top_k, taken)
        return scores_of(trajectory, log_probs, full, hidden)

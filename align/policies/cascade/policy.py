"""A cascade as a `DuplexPolicy`: an endpointer that hears, a head that decides, something that answers.

    uptake eval cascade                                 # as built: answers after 0.7 s of silence, stops after 0.3 s
    uptake eval mine.yaml                               # another ear, a language model: `align.policies.cascade.config`
    uptake train quickstart policy=cascade grpo.learning_rate=0.1 name=cascade

Every frame the endpointer measures the user's speech and silence, by energy (`envs.activity`) or by Silero VAD
(`rewards.silero_online`), and the head draws whether to act (`align.policies.cascade.head`). That is the whole
trajectory: its streams are the draw and what it was drawn from, as whole numbers, so scoring computes exactly what
sampling did. What is legal follows from the state of the turn: to answer, the user must have spoken since the last
answer and be silent; to stop, the agent must be answering and the user speaking. Elsewhere there is nothing to decide,
and the frame is not valid.

Answers are the pack's, one after the other, or a language model's (`answers`, `replies`); where that has none, the
pack's. What a real cascade adds to its decision, recognition and language model and synthesis, is declared:
`response_s` between the decision and the first sound, and with a model at least `think_s` since it was asked. Until
the sound begins the user may still go on and the answer can be withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from align.files import read_json, read_weights, write_json, write_tensors
from align.lora import merged_weights
from align.policies.base import (
    DuplexSpec,
    Scores,
    Step,
    Stream,
    Trajectory,
    check_microphone,
    refuse_codebooks,
    refuse_prompts,
    row_indices,
    row_seeds,
    rows_to_reset,
    scores_of,
)
from align.policies.cascade.config import KIND, CascadeConfig, LlmConfig, from_values, read_yaml, to_values
from align.policies.cascade.head import MEASURES, TurnHead
from align.policies.keeping import Keeping
from align.policies.mouth import Mouth
from align.policies.record import Record
from align.policies.sampling import Sampling, draw, truncated_log_probs, uniforms
from envs.activity import DEFAULT, OnlineActivity
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.pack import BUILTIN, Clip, Pack, open_pack

if TYPE_CHECKING:
    from align.policies.cascade.answers import Answers
    from align.policies.cascade.replies import Replies

WAIT, ACT = 0, 1
IDLE, OWES, PREPARES, TALKS = range(4)
"""States of a turn: nothing to answer, an answer is due, it is being made, it sounds."""
LONGEST = 1000
"""Hops (10 s) that a measure counts to."""


class CascadePolicy(Keeping):
    """Batched; rows are slots. See `align.policies.base.DuplexPolicy`. It takes no prompt."""

    _LIVES = ("_sampled", "_ear", "_talks", "_mouths", "_record", "_seeds", "_answered", "_turns")
    _SHARES = ("model", "_replies")

    def __init__(
        self,
        pack: Pack,
        head: TurnHead | None = None,
        config: CascadeConfig | None = None,
        *,
        sampling: Sampling | None = None,
    ) -> None:
        """Make a cascade that answers with the pack's agent clips, or as its language model says.

        Args:
            pack: whose clips of kind `agent` are the answers, in an order that each row's seed begins.
            head: the turn control; None: as built, with the configuration's thresholds.
            config: all the rest; `pack` stands in it for what is given here.
            sampling: of its text only; None: temperature 1, both decisions possible.

        Raises:
            UptakeError: a configuration that cannot be, no clips, or something that is not installed.
        """
        config = config or CascadeConfig()
        config.check()
        self.answers = pack.clips("agent")
        if not self.answers:
            raise UptakeError(f"cascade: pack {pack.name!r} has no clips of kind 'agent' to answer with")
        self.pack, self.config = pack, config
        self.model = head or TurnHead(config.answer_after_s, config.stop_after_s)
        self.sampling = sampling or Sampling(text_temperature=1.0)
        self._replies = None if config.llm is None else _replies(config.llm, self.answers)
        self.spec = DuplexSpec(
            sample_rate=CLOCK.sample_rate,
            frame=CLOCK.frame,
            streams=(
                Stream("turn", 2, True, frozenset((WAIT,))),
                *(Stream(name, LONGEST + 1, False) for name in MEASURES),
                Stream("state", 4, False),
            ),
            context=2**31 - 1,
            emission_lag=0,
        )
        self._open(0)

    @classmethod
    def load(cls, place: str | Path, sampling: Sampling | None = None) -> CascadePolicy:
        """What `export` wrote, or a new one as a YAML file says; UptakeError, one line, for what it cannot be."""
        place = Path(place)
        if place.is_file():
            config = read_yaml(place)
            return cls(open_pack(config.pack), None, config, sampling=sampling)
        source = place / "config.json"
        values = read_json(source)
        if values.pop("model_type", None) != KIND:
            raise UptakeError(f"{source}: is not of model_type {KIND!r}")
        config = from_values(values, str(source))
        head = TurnHead()
        weights = read_weights(place / "model.safetensors")
        wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if found != wanted:
            raise UptakeError(f"{place / 'model.safetensors'}: found {found}, expected {wanted}; export it again")
        head.load_state_dict(weights)
        return cls(open_pack(config.pack), head, config, sampling=sampling)

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        """Write the folder that `load` reads; a cascade has one layout of its own, whatever the `format`."""
        folder = Path(path)
        write_tensors(folder / "model.safetensors", merged_weights(self.model))
        place = self.pack.folder.resolve()
        pack = place.name if place.parent == BUILTIN.resolve() else str(place)
        write_json(folder / "config.json", {"model_type": KIND, **to_values(replace(self.config, pack=pack))})

    # -- living --------------------------------------------------------------------------------------------------------

    def _open(self, batch: int) -> None:
        self._sampled = self.sampling  # what these conversations are sampled with; another one counts from a reset on
        self._ear = _ear(self.config.ear, batch)
        self._talks = None if self._replies is None else _talks(self._replies, batch)
        self._mouths = [Mouth() for _ in range(batch)]
        self._record = Record(batch, len(self.spec.streams))
        self._seeds = np.zeros(batch, np.uint64)
        self._answered = np.full(batch, -1, np.int64)  # (B,) end of the user's speech that was answered last
        self._turns = np.zeros(batch, np.int64)

    @property
    def batch(self) -> int:
        """Number of slots that are open."""
        return len(self._seeds)

    def reset(self, rows: Any, seeds: Sequence[int], prompts: Sequence[Any] | None = None) -> None:
        """Start `rows` afresh; see `DuplexPolicy.reset`."""
        refuse_prompts(prompts)
        index, anew = rows_to_reset(rows, seeds, prompts, self.batch, self._sampled == self.sampling)
        if anew:
            if self._talks is not None:
                self._talks.reset(range(self.batch))  # nobody waits for the old ones' answers
            self._open(len(seeds))
        self._ear.reset(index)
        self._record.reset(index)
        self._answered[index] = -1
        self._turns[index] = 0
        self._seeds[index] = row_seeds(seeds, index)
        for b in index:
            self._mouths[b] = Mouth()
        if self._talks is not None:
            self._talks.reset(index)

    def fork(self, source: int, rows: Any, seeds: Sequence[int] | None = None) -> None:
        """Make `rows` continue from where row `source` is; see `DuplexPolicy.fork`."""
        index = row_indices(rows, self.batch)
        self._ear.fork(source, index)
        self._record.fork(source, index)
        for book in (self._seeds, self._answered, self._turns):
            book[index] = book[source]
        if seeds is not None:
            self._seeds[index] = row_seeds(seeds, index)
        for b in index:
            self._mouths[b] = self._mouths[source].fork()
        if self._talks is not None:
            self._talks.fork(source, index)

    @torch.inference_mode()
    def step(self, mic: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Hear one frame and act. See `DuplexPolicy.step`. UptakeError if an active row's audio has NaN."""
        active = np.ones(self.batch, bool) if active is None else np.asarray(active, bool)
        rows = np.flatnonzero(active)
        check_microphone(mic, rows)
        self._hear(np.where(active[:, None], mic, 0).astype(np.float32), active)
        codes = np.full((self.batch, len(self.spec.streams)), -1, np.int64)
        codes[:, 1:-1] = self._measures()
        codes[:, -1] = self._states()
        valid = _something_to_decide(codes) & active
        s = self._sampled
        log_probs = self._log_probs(torch.from_numpy(codes)[:, :, None], s.text_temperature, s.text_top_k)[:, 0].cpu()
        token = draw(log_probs.exp(), torch.from_numpy(uniforms(self._seeds, self._record.steps, 1)[:, 0]))
        drawn = log_probs.gather(-1, token[:, None])[:, 0]
        codes[:, 0] = np.where(valid, token.numpy(), -1)
        logp = np.where(valid, drawn.numpy(), 0).astype(np.float32)
        self._record.write(rows, codes[rows], valid[rows], logp[rows])

        for b in rows:  # all rows ask before any row waits
            if self._talks is not None:
                self._ask_ahead(int(b), codes[b])
            if codes[b, 0] == ACT:
                self._act(int(b), int(codes[b, -1]))
        audio = np.zeros((self.batch, self.spec.frame), np.float32)
        text = [""] * self.batch
        for b in rows:
            if self._talks is not None:
                self._begin(self._talks, int(b))
            audio[b], text[b] = self._mouths[b].frame()
        tokens = np.where(active, codes[:, 0], -1)[:, None]
        return Step(audio, tokens, logp, text)

    def _hear(self, mic: np.ndarray, active: np.ndarray) -> None:
        """Listen to a frame (B, F); rows that are not active do not."""
        ear = self._ear
        before = ear.get_state()
        ear.update(mic)
        after = ear.get_state()
        for name, old in before.items():
            after[name][~active] = old[~active]
        ear.set_state(after)
        if self._talks is not None:
            for b in np.flatnonzero(active):
                self._talks.hear(int(b), mic[b], int(ear.onset[b]), int(ear.offset[b]))

    def _measures(self) -> np.ndarray:
        """(B, 4) hops, see `head.MEASURES`."""
        ear, hop = self._ear, DEFAULT.hop
        speech = ear.speaking_for // hop
        spoke = ear.offset >= 0
        silence = np.where(spoke & ~ear.speaking, (ear.now - ear.offset) // hop, 0)
        length = np.where(spoke, (ear.offset - ear.onset) // hop, 0)
        talked = np.array([mouth.talked // hop for mouth in self._mouths], np.int64)
        return np.minimum(np.stack((silence, speech, length, talked), axis=1), LONGEST)

    def _states(self) -> np.ndarray:
        """(B,) what is going on in each row."""
        states = np.full(self.batch, IDLE, np.int64)
        for b, mouth in enumerate(self._mouths):
            if mouth.talking:
                states[b] = TALKS if mouth.begun else PREPARES
            elif self._talks is not None and self._talks.preparing(b):
                states[b] = PREPARES
            elif self._ear.offset[b] > self._answered[b]:
                states[b] = OWES
        return states

    def _act(self, row: int, state: int) -> None:
        """Answer, or stop what was the answer."""
        if state != OWES:
            self._mouths[row].stop()
            if self._talks is not None:
                self._talks.withdraw(row)
            return
        self._answered[row] = self._ear.offset[row]
        frames = CLOCK.frame_of(CLOCK.nearest_sample(self.config.response_s) + CLOCK.frame // 2)
        if self._talks is None:
            self._mouths[row].begin(self._own_answer(row), frames)
        else:
            self._talks.decide(row, int(self._ear.now[row]), frames)

    def _ask_ahead(self, row: int, codes: np.ndarray) -> None:
        """Ask the model as soon as the user's turn may be over, and where it is answered at the latest."""
        assert self._talks is not None and self.config.llm is not None
        silence, state = codes[1] * DEFAULT.hop, codes[-1]
        soon = silence >= max(1, CLOCK.nearest_sample(self.config.llm.ask_after_s))
        if state == OWES and (soon or codes[0] == ACT):
            self._talks.ask(row, int(self._ear.now[row]), int(self._ear.offset[row]), self._mouths[row])

    def _begin(self, talks: Answers, row: int) -> None:
        """Say what the model answered, if that is to sound from the next frame on; if it did not, one's own answer."""
        reply = talks.take(row, int(self._ear.now[row]))
        if reply is not None:
            sound = reply.sound or self._own_answer(row)
            self._mouths[row].begin(sound)
            talks.said(row, reply, sound, int(self._mouths[row].now[0]) + CLOCK.frame)

    def _own_answer(self, row: int) -> Clip:
        """The pack's next."""
        clip = self.answers[(int(self._seeds[row]) + int(self._turns[row])) % len(self.answers)]
        self._turns[row] += 1
        return clip

    def notes(self, row: int) -> dict[str, Any]:
        """What the record of a row's conversation keeps: who answered, every answer, and how often there was none."""
        return {} if self._talks is None else {"cascade": self._talks.notes(row)}

    # -- learning ------------------------------------------------------------------------------------------------------

    def _log_probs(self, codes: Tensor, temperature: float, top_k: int, taken: Tensor | None = None) -> Tensor:
        """(B, T, 2) of waiting and acting for codes (B, K, T); certain to wait where there is nothing to decide."""
        codes = codes.to(self._device)
        both = self.model(codes[:, 1:-1].transpose(1, 2))  # (B, T, 2): of answering, of stopping
        act = torch.where(codes[:, -1] == OWES, both[..., 0], both[..., 1])
        act = act.masked_fill(~_something_to_decide(codes), -torch.inf)
        return truncated_log_probs(torch.stack((torch.zeros_like(act), act), dim=-1), temperature, top_k, taken)

    @property
    def _device(self) -> torch.device:
        return self.model.answer.weight.device

    def trajectory(self) -> Trajectory:
        """What was measured and decided since each row's last reset. See `DuplexPolicy.trajectory`."""
        return self._record.trajectory(self._device, self._sampled.text_temperature, self._sampled.text_top_k)

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        """Scores of the turn decisions. See `DuplexPolicy.score`."""
        refuse_codebooks(codebooks)
        taken = trajectory.codes[:, 0].clamp(min=0)
        log_probs = self._log_probs(trajectory.codes, trajectory.temperature, trajectory.top_k, taken)
        return scores_of(trajectory, log_probs, full)


def _something_to_decide(codes: Any) -> Any:
    """Where acting is legal: codes (B, K, ...), an array or a tensor, to (B, ...) bool."""
    silence, speech, state = codes[:, 1], codes[:, 2], codes[:, -1]
    return ((state == OWES) & (silence > 0)) | (((state == TALKS) | (state == PREPARES)) & (speech > 0))


def _replies(config: LlmConfig, clips: Sequence[Clip]) -> Replies:
    """Who answers all conversations."""
    from align.policies.cascade.replies import Replies  # and a client of HTTP: who asks nobody does not pay for it

    return Replies(config, clips)


def _talks(replies: Replies, batch: int) -> Answers:
    """The conversations of a batch."""
    from align.policies.cascade.answers import Answers

    return Answers(batch, replies)


def _ear(name: str, batch: int) -> Any:
    """`OnlineActivity`, or what has its face."""
    if name == "energy":
        return OnlineActivity(batch)
    from rewards.silero_online import OnlineSilero  # with scipy's signals, a second to import

    return OnlineSilero(batch)

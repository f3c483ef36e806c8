"""A cascade as a `DuplexPolicy`: an endpointer that hears, a head that decides, clips that answer.

    uptake eval cascade                                 # as built: answers after 0.7 s of silence, stops after 0.3 s
    uptake train quickstart policy=cascade grpo.learning_rate=0.1 name=cascade

Every frame the endpointer measures the user's speech and silence by energy (`envs.activity`), and the head draws
whether to act (`align.policies.cascade.head`). That is the whole trajectory: its streams are the draw and what it was
drawn from, as whole numbers, so scoring computes exactly what sampling did. What is legal follows from the state of the
turn: to answer, the user must have spoken since the last answer and be silent; to stop, the agent must be answering and
the user speaking. Elsewhere there is nothing to decide, and the frame is not valid.

What a real cascade adds to its decision, recognition and language model and synthesis, is `response_s` here: a declared
delay between the decision and the first sound, during which the user may still go on and the answer can be withdrawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.files import read_json, read_tensors, write_json, write_tensors
from align.policies.base import (
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
from align.policies.cascade.head import MEASURES, TurnHead
from align.policies.keeping import Keeping
from align.policies.mouth import Mouth
from align.policies.record import Record
from align.policies.sampling import Sampling, draw, truncated_log_probs, uniforms
from envs.activity import DEFAULT, OnlineActivity
from envs.clock import CLOCK
from envs.errors import UptakeError, nearest
from envs.pack import BUILTIN, Pack

KIND = "uptake-cascade"
"""`model_type` in config.json."""
WAIT, ACT = 0, 1
IDLE, OWES, PREPARES, TALKS = range(4)
"""States of a turn: nothing to answer, an answer is due, it is being made, it sounds."""
LONGEST = 1000
"""Hops (10 s) that a measure counts to."""


class CascadePolicy(Keeping):
    """Batched; rows are slots. See `align.policies.base.DuplexPolicy`. It takes no prompt."""

    _LIVES = ("_ear", "_mouths", "_record", "_seeds", "_answered", "_turns")

    def __init__(
        self,
        pack: Pack,
        head: TurnHead | None = None,
        *,
        response_s: float = 0.24,
        sampling: Sampling | None = None,
    ) -> None:
        """Make a cascade that answers with the pack's agent clips.

        Args:
            pack: whose clips of kind `agent` are the answers, in an order that each row's seed begins.
            head: the turn control; None: as built.
            response_s: seconds from the decision to answer to the first sound, to the nearest frame.
            sampling: of its text only; None: temperature 1, both decisions possible.
        """
        if not math.isfinite(response_s) or response_s < 0:
            raise UptakeError(f"cascade: response_s = {response_s}: must be 0 s or more")
        self.answers = pack.clips("agent")
        if not self.answers:
            raise UptakeError(f"cascade: pack {pack.name!r} has no clips of kind 'agent' to answer with")
        self.pack, self.response_s = pack, response_s
        self.model = head or TurnHead()
        self.sampling = sampling or Sampling(text_temperature=1.0)
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
    def load(cls, folder: str | Path, sampling: Sampling | None = None) -> CascadePolicy:
        """What `export` wrote; UptakeError, one line, for a file that is missing or says something else."""
        folder = Path(folder)
        values = read_json(folder / "config.json")
        known = {"model_type", "pack", "response_s"}
        for name in values:
            if name not in known:
                raise UptakeError(f"{folder / 'config.json'}: unknown key {name!r}{nearest(name, known)}")
        if values.get("model_type") != KIND:
            raise UptakeError(
                f"{folder / 'config.json'}: model_type is {values.get('model_type')!r}, expected {KIND!r}"
            )
        if not isinstance(values.get("pack"), str) or not isinstance(values.get("response_s"), int | float):
            raise UptakeError(f"{folder / 'config.json'}: needs a pack (text) and response_s (a number)")
        head = TurnHead()
        weights = read_tensors(folder / "model.safetensors")
        wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if found != wanted:
            raise UptakeError(f"{folder / 'model.safetensors'}: found {found}, expected {wanted}; export it again")
        head.load_state_dict(weights)
        return cls(Pack.load(values["pack"]), head, response_s=float(values["response_s"]), sampling=sampling)

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        """Write the folder that `load` reads; a cascade has one layout of its own, whatever the `format`."""
        folder = Path(path)
        write_tensors(folder / "model.safetensors", self.model.state_dict())
        place = self.pack.folder.resolve()
        pack = place.name if place.parent == BUILTIN.resolve() else str(place)
        values = {"model_type": KIND, "pack": pack, "response_s": self.response_s}
        write_json(folder / "config.json", values)

    # -- living --------------------------------------------------------------------------------------------------------

    def _open(self, batch: int) -> None:
        self._ear = OnlineActivity(batch)
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
        index, anew = rows_to_reset(rows, seeds, prompts, self.batch)
        if anew:
            self._open(len(seeds))
        if prompts is not None and any(prompt is not None for prompt in prompts):
            raise ValueError("a cascade takes no prompt")
        self._ear.reset(index)
        self._record.reset(index)
        self._answered[index] = -1
        self._turns[index] = 0
        self._seeds[index] = row_seeds(seeds, index)
        for b in index:
            self._mouths[b] = Mouth()

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

    @torch.inference_mode()
    def step(self, mic: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Hear one frame and act. See `DuplexPolicy.step`. UptakeError if an active row's audio has NaN."""
        active = np.ones(self.batch, bool) if active is None else np.asarray(active, bool)
        rows = np.flatnonzero(active)
        check_microphone(mic, rows)
        before = self._ear.get_state()
        self._ear.update(np.where(active[:, None], mic, 0).astype(np.float32))
        after = self._ear.get_state()
        self._ear.set_state({k: np.where(active, v, before[k]) for k, v in after.items()})

        codes = np.full((self.batch, len(self.spec.streams)), -1, np.int64)
        codes[:, 1:-1] = self._measures()
        codes[:, -1] = self._states()
        valid = _something_to_decide(codes) & active
        s = self.sampling
        log_probs = self._log_probs(torch.from_numpy(codes)[:, :, None], s.text_temperature, s.text_top_k)[:, 0].cpu()
        token = draw(log_probs.exp(), torch.from_numpy(uniforms(self._seeds, self._record.steps, 1)[:, 0]))
        drawn = log_probs.gather(-1, token[:, None])[:, 0]
        codes[:, 0] = np.where(valid, token.numpy(), -1)
        logp = np.where(valid, drawn.numpy(), 0).astype(np.float32)
        self._record.write(rows, codes[rows], valid[rows], logp[rows])

        audio = np.zeros((self.batch, self.spec.frame), np.float32)
        text = [""] * self.batch
        for b in rows:
            if codes[b, 0] == ACT:
                self._act(int(b), int(codes[b, -1]))
            audio[b], text[b] = self._mouths[b].frame()
        tokens = np.where(active, codes[:, 0], -1)[:, None]
        return Step(audio, tokens, logp, text)

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
            elif self._ear.offset[b] > self._answered[b]:
                states[b] = OWES
        return states

    def _act(self, row: int, state: int) -> None:
        """Answer, or stop what was the answer."""
        if state == OWES:
            self._answered[row] = self._ear.offset[row]
            clip = self.answers[(int(self._seeds[row]) + int(self._turns[row])) % len(self.answers)]
            self._turns[row] += 1
            self._mouths[row].begin(clip, CLOCK.frame_of(CLOCK.nearest_sample(self.response_s) + CLOCK.frame // 2))
        else:
            self._mouths[row].stop()

    # -- learning ------------------------------------------------------------------------------------------------------

    def _log_probs(self, codes: Tensor, temperature: float, top_k: int, taken: Tensor | None = None) -> Tensor:
        """(B, T, 2) of waiting and acting for codes (B, K, T); certain to wait where there is nothing to decide."""
        codes = codes.to(self._device)
        both = self.model(codes[:, 1:-1].transpose(1, 2))  # (B, T, 2): of answering, of stopping
        act = torch.where(codes[:, -1] == OWES, both[..., 0], both[..., 1]).float()
        act = act.masked_fill(~_something_to_decide(codes), -torch.inf)
        return truncated_log_probs(torch.stack((torch.zeros_like(act), act), dim=-1), temperature, top_k, taken)

    @property
    def _device(self) -> torch.device:
        return self.model.answer.weight.device

    def trajectory(self) -> Trajectory:
        """What was measured and decided since each row's last reset. See `DuplexPolicy.trajectory`."""
        return self._record.trajectory(self._device, self.sampling.text_temperature, self.sampling.text_top_k)

    def score(self, trajectory: Trajectory, full: bool = False) -> Scores:
        """Scores of the turn decisions. See `DuplexPolicy.score`."""
        taken = trajectory.codes[:, 0].clamp(min=0)
        log_probs = self._log_probs(trajectory.codes, trajectory.temperature, trajectory.top_k, taken)
        return scores_of(trajectory, log_probs, full)


def _something_to_decide(codes: Any) -> Any:
    """Where acting is legal: codes (B, K, ...), an array or a tensor, to (B, ...) bool."""
    silence, speech, state = codes[:, 1], codes[:, 2], codes[:, -1]
    return ((state == OWES) & (silence > 0)) | (((state == TALKS) | (state == PREPARES)) & (speech > 0))

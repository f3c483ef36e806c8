"""A conversation small enough to learn in seconds, behind the real interfaces: a user of two loudnesses, a GRU that
hears how loud a frame is and says one of four words or nothing, and a judge who wants silence in the pause and a word
after the turn.

The user speaks loudly, pauses, goes on softly, stops. The best policy is silent while the loud part lasts and in the
pause after it, and speaks after the soft part: reward 1. Silence and constant talk both get 0.

With a voice the policy has a second stream, a codebook of two sounds that follows the word of its frame, and is heard
only where there is a word and a sound: both streams must be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from align.policies.base import AudioActions, DuplexSpec, Scores, Step, Stream, Trajectory
from align.policies.sampling import draw, uniforms
from envs.episode import Episode
from rewards.compose import term_values
from rewards.verdict import Verdict

FRAME = 1920
FRAMES = 20
LEVELS = 8
VOCAB = 5
SOUNDS = 2
SCENARIOS = {"pause": ["early", "middle"], "turn": ["late"]}
START = {"early": 1, "middle": 2, "late": 3}


class ToyModel(nn.Module):
    def __init__(self, seed: int = 0, width: int = 16, voice: bool = False) -> None:
        super().__init__()
        self.heard = nn.Embedding(LEVELS, width)
        self.said = nn.Embedding(VOCAB + 1, width)
        self.core = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, VOCAB)
        if voice:
            self.word = nn.Embedding(VOCAB, width)
            self.voice = nn.Linear(width, SOUNDS)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, heard: Tensor, said: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """heard, said (B, T), said one step late (VOCAB at the start) -> logits (B, T, V), hidden (B, T, D), state."""
        hidden, state = self.core(self.heard(heard) + self.said(said), state)
        return self.out(hidden).float(), hidden, state

    def sounds(self, hidden: Tensor, word: Tensor) -> Tensor:
        """hidden (..., D) and the word (...) of its frame -> log-probabilities of the sounds (..., SOUNDS)."""
        return self.voice(torch.tanh(hidden + self.word(word))).float().log_softmax(-1)


class ToyPolicy:
    """Implements `DuplexPolicy`."""

    def __init__(self, seed: int = 0, voice: bool = False) -> None:
        text, user = Stream("text", VOCAB, True, frozenset({0})), Stream("user", LEVELS, False)
        streams = (text, Stream("agent", SOUNDS, True), user) if voice else (text, user)
        self.spec = DuplexSpec(24_000, FRAME, streams, FRAMES, 1, 0, hidden=16)
        self.voice = voice
        self.model: Any = ToyModel(seed, voice=voice)
        self.broken_scores = 0
        """The next so many scores with gradient are not a number."""

    def reset(self, rows: np.ndarray, seeds: Sequence[int], prompts: Any = None) -> None:
        batch = len(rows)
        self._seeds, self._at = np.asarray(seeds, dtype=np.uint64), 0
        self._state: Tensor | None = None
        self._last = torch.full((batch, 1), VOCAB)
        self._codes: list[Tensor] = []
        self._logp: list[Tensor] = []
        self._sound_logp: list[Tensor] = []

    def step(self, mic: np.ndarray, active: np.ndarray) -> Step:
        heard = torch.from_numpy(np.rint(np.abs(mic).mean(1) * 10).astype(np.int64)).clamp(0, LEVELS - 1)[:, None]
        logits, hidden, self._state = self.model(heard, self._last, self._state)
        log_probs = logits[:, 0].log_softmax(-1)  # (B, V)
        uniform = torch.from_numpy(uniforms(self._seeds, np.full(len(mic), self._at), 1 + self.voice))  # (B, 1 or 2)
        token = draw(log_probs.exp(), uniform[:, 0])  # (B,)
        self._last, self._at = token[:, None], self._at + 1
        logp = log_probs.gather(-1, token[:, None])[:, 0]
        tokens = token[:, None]  # (B, 1 + agent codebooks)
        if self.voice:
            sounds = self.model.sounds(hidden[:, 0], token)  # (B, SOUNDS)
            sound = draw(sounds.exp(), uniform[:, 1])  # (B,)
            self._sound_logp.append(sounds.gather(-1, sound[:, None])[:, 0])
            tokens = torch.stack([token, sound], 1)
        self._codes.append(torch.cat([tokens, heard], 1))
        self._logp.append(logp)
        loud = (tokens > 0).all(1).numpy()
        audio = np.where(loud[:, None], np.float32(0.5), np.float32(0.0)).repeat(FRAME, 1)
        text = [f" w{int(t)}" if t else "" for t in token]
        return Step(audio, tokens.numpy(), logp.numpy(), text)

    def fork(self, source: int, rows: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        raise NotImplementedError

    def trajectory(self) -> Trajectory:
        codes = torch.stack(self._codes, 2)  # (B, 2 or 3, T)
        valid = torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool)
        audio = None
        if self.voice:
            audio = AudioActions(codes[:, 1:2], valid[:, None], torch.stack(self._sound_logp, 1)[:, None], 1.0, 0)
        return Trajectory(codes, valid, torch.stack(self._logp, 1), 1.0, 0, audio)

    def score(self, trajectory: Trajectory, full: bool = False, codebooks: int = 0) -> Scores:
        said = torch.cat([torch.full_like(trajectory.codes[:, 0, :1], VOCAB), trajectory.codes[:, 0, :-1]], 1)
        logits, hidden, _ = self.model(trajectory.codes[:, -1], said)
        if torch.is_grad_enabled() and self.broken_scores:
            self.broken_scores -= 1
            logits = logits * float("nan")
        log_probs = logits.log_softmax(-1)
        logp = log_probs.gather(-1, trajectory.codes[:, 0].unsqueeze(-1)).squeeze(-1)
        scores = Scores(logp, -(log_probs.exp() * log_probs).sum(-1), log_probs if full else None, hidden)
        if codebooks:
            sounds = self.model.sounds(hidden, trajectory.codes[:, 0]).unsqueeze(1)  # (B, 1, T, SOUNDS)
            scores.audio_logp = sounds.gather(-1, trajectory.codes[:, 1:2].unsqueeze(-1)).squeeze(-1)
            scores.audio_log_probs = sounds if full else None
        return scores

    def export(self, path: str | Path, format: str = "kyutai") -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, Path(path) / "model.safetensors")


class ToyEnv:
    """The part of `DuplexVectorEnv` that a rollout uses."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict]:
        self._user = np.zeros((self.num_envs, FRAMES + 1), np.float32)
        self._places = []
        for row, (scenario, variant) in enumerate(zip(options["scenario"], options["variant"], strict=True)):
            start = START[scenario] + (variant + seed) % 2
            self._user[row, start : start + 3] = 0.6
            self._user[row, start + 5 : start + 8] = 0.3
            self._places.append((start + 3, start + 5, start + 8))
        self._agent = np.zeros((self.num_envs, FRAMES + 1), np.float32)
        self._at = 0
        return {"mic": self._frame()}, {}

    def step(self, actions: np.ndarray) -> tuple:
        self._at += 1
        self._agent[:, self._at] = np.abs(actions).mean(1)
        over = np.full(self.num_envs, self._at >= FRAMES)
        return {"mic": self._frame()}, np.zeros(self.num_envs), np.zeros_like(over), over, {}

    def episode(self, row: int, transcript: tuple = ()) -> Episode:
        samples = np.repeat(self._agent[row], FRAME)
        user = np.repeat(self._user[row], FRAME)
        return Episode(user, user, samples, [], transcript, {"places": self._places[row]})

    def _frame(self) -> np.ndarray:
        return np.repeat(self._user[:, self._at : self._at + 1], FRAME, 1)


class ToyJudge:
    """The part of `Composition` that a trainer uses."""

    weights = {"patience": 1.0, "answer": 1.0}
    terms = weights
    schedules: dict[str, dict[int, float]] = {}

    def at(self, iteration: int) -> ToyJudge:
        return self

    def score(self, episode: Episode) -> list[Verdict]:
        speaking = episode.agent.reshape(-1, FRAME).mean(1) > 0
        begin, end, over = episode.meta["places"]
        patient = 1.0 - 2.0 * float(speaking[begin:end].mean())
        prompt = 2.0 * float(speaking[over + 1 : over + 5].mean()) - 1.0
        return [
            Verdict(patient, (begin * FRAME, end * FRAME), {}, "patience", "pause"),
            Verdict(prompt, ((over + 1) * FRAME, (over + 5) * FRAME), {}, "answer", "turn"),
        ]

    def start(self, episode: Episode) -> Callable[[], list[Verdict]]:
        return lambda: self.score(episode)

    def total(self, verdicts: Sequence[Verdict]) -> float:
        values = [value for value in term_values(verdicts).values() if value is not None]
        return sum(values) / len(values)


def toy_run(folder: Path, config: Any, *, seed: int = 0, resume: bool = False, policy: ToyPolicy | None = None) -> Any:
    """Train the toy policy with the algorithm that the config is of; returns the last metrics and the policy."""
    from align.trainers import grpo, ppo

    policy = policy or ToyPolicy(seed)
    train = {"grpo": grpo.train, "ppo": ppo.train}[config.section]
    metrics = train(config, policy, ToyEnv, SCENARIOS, ToyJudge(), folder, seed=seed, resume=resume)
    return SimpleNamespace(metrics=metrics, policy=policy, weights=dict(policy.model.state_dict()))

"""Recordings with word times for tests: a caller on the right, and on the left an agent that answers some of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from envs.clock import CLOCK

ANSWER, EACH = ("the", "fox"), 5
"""What the agent says, and how many frames a word takes."""


def write_dialogues(folder: Path, count: int, frames: int, seed: int = 0) -> Path:
    """Conversations in each of which the caller is loud (a question, answered 4 frames after its end) or not (none)."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        user, agent = np.zeros((2, CLOCK.sample_of(frames)), np.float32)
        words, at = [], 3 + int(rng.integers(6))
        while at + 22 < frames:
            question = bool(rng.integers(2))
            place(user, at, 6, 0.2 if question else 0.02, rng)
            if question:
                place(agent, at + 10, EACH * len(ANSWER), 0.1, rng)
                for n, word in enumerate(ANSWER):
                    onset = (at + 10 + EACH * n) * CLOCK.frame_seconds
                    words.append(
                        {"word": word, "start": onset, "end": onset + EACH * CLOCK.frame_seconds, "channel": 0}
                    )
            at += 22 + int(rng.integers(8))
        soundfile.write(folder / f"talk{number}.wav", np.stack([agent, user], axis=1), CLOCK.sample_rate)
        (folder / f"talk{number}.json").write_text(json.dumps(words))
    return folder


def place(track: np.ndarray, frame: int, frames: int, level: float, rng: np.random.Generator) -> None:
    """Noise of one level over whole frames."""
    track[CLOCK.sample_of(frame) : CLOCK.sample_of(frame + frames)] = rng.normal(0, level, CLOCK.sample_of(frames))

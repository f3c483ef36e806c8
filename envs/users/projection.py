"""The built-in listener: how near the end of the agent's turn is, projected from its sound alone.

People plan what they say before the other has finished, and begin a fifth of a second after the end, often before it
(Levinson and Torreira 2015). A listener who knows no words has the loudness to go by: speech fades out at an end and
breaks off at a pause. `Projection` is a network of one hidden layer over the last 0.32 s of loudness, the length
of the phrase and of all speech so far, and the silence. `python -m envs.users.projection_fit` made its weights.

Like a person it is wrong at times: it takes the end of a clause for the end of the turn, or speech that fades for
speech that stops. What the user then does is `envs.users.behaviour`'s business: it comes too early and gives way.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from envs.activity import DEFAULT, levels
from envs.rows import Rows
from envs.users.turn_models import Heard

WEIGHTS = Path(__file__).with_name("projection.json")
LEADS_S = (0.0, 0.16, 0.32)
BINS, BIN = 8, 4  # of loudness: 8 of 40 ms
INPUTS = BINS + 3
_ON_DB, _FLOOR_DB = DEFAULT.on_db, -100.0
_FORGETS = 100  # hops of silence (1 s) after which speech counts as a new turn
_LONGEST_SILENCE = 40  # hops: beyond this all silences are alike


class Cues(Rows):
    """What is heard of the agent at the end of each frame, as numbers."""

    FIELDS = ("recent", "spoken", "level", "silent")

    def __init__(self, batch: int) -> None:
        self.recent = np.full((batch, BINS * BIN), _FLOOR_DB, np.float32)  # dB of the latest hops
        self.spoken = np.zeros(batch, np.float32)  # (B,) active hops of this turn
        self.level = np.zeros(batch, np.float32)  # (B,) mean dB of those
        self.silent = np.full(batch, _FORGETS, np.int64)  # (B,) hops since the latest one

    def update(self, heard: Heard) -> np.ndarray:
        """(B, INPUTS) float32."""
        power = levels(heard.agent, DEFAULT.hop)
        db = 10.0 * np.log10(np.maximum(power, 1e-10))  # (B, hops)
        on = db >= _ON_DB
        hops, active = db.shape[1], on.sum(axis=1)
        fresh = (active > 0) & (self.silent >= _FORGETS)
        spoken = np.where(fresh, 0.0, self.spoken) + active
        mean = (np.where(on, db, 0.0).sum(axis=1) - active * self.level) / np.maximum(spoken, 1.0)
        self.level = (self.level + np.where(fresh, db.max(axis=1) - self.level, mean)).astype(np.float32)
        self.spoken = spoken.astype(np.float32)
        self.silent = np.where(active > 0, np.argmax(on[:, ::-1], axis=1), np.minimum(self.silent + hops, _FORGETS))
        self.recent = np.concatenate([self.recent[:, hops:], db], axis=1)
        loud = np.clip((self.recent.reshape(-1, BINS, BIN).mean(axis=2) - self.level[:, None]) / 10.0, -4.0, 2.0)
        phrase = np.maximum(heard.activity.offset - heard.activity.onset, 0) / DEFAULT.hop
        return np.column_stack(
            [
                loud,
                np.log1p(self.spoken) - 5.0,
                np.log1p(phrase) - 5.0,
                np.minimum(self.silent, _LONGEST_SILENCE) / 10.0,
            ]
        ).astype(np.float32)

    def _fresh(self) -> Cues:
        return Cues(1)


class Projection:
    """See the head of this module. Rows know nothing of each other."""

    leads_s: tuple[float, ...] = LEADS_S

    def __init__(self, batch: int) -> None:
        self._cues = Cues(batch)
        self._layers = weights()

    def update(self, heard: Heard, user: np.ndarray) -> np.ndarray:
        """(B, 3) probabilities."""
        return project(self._layers, self._cues.update(heard))

    def reset(self, rows: np.ndarray) -> None:
        """Forget everything about these rows."""
        self._cues.reset(rows)

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Copy the state of row `source` to `rows`."""
        self._cues.fork(source, rows)

    def get_state(self) -> dict[str, np.ndarray]:
        """A copy of everything that `set_state` needs."""
        return self._cues.get_state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `get_state` returned."""
        self._cues.set_state(state)


def project(layers: tuple[np.ndarray, ...], cues: np.ndarray) -> np.ndarray:
    """Cues (B, INPUTS) to (B, leads) probabilities, growing with the lead.

    By einsum and not by a matrix product: a row's sums must not depend on how many rows there are.
    """
    first, bias, second, last = layers
    hidden = np.tanh(np.einsum("bi,ih->bh", cues, first) + bias)
    over = 1.0 / (1.0 + np.exp(-(np.einsum("bh,hl->bl", hidden, second) + last)))
    return np.maximum.accumulate(over, axis=1)


@cache
def weights() -> tuple[np.ndarray, ...]:
    """(INPUTS, H), (H,), (H, leads), (leads,) float64."""
    content = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    return tuple(np.asarray(content[name], np.float64) for name in ("first", "bias", "second", "last"))

"""Whether the agent's turn is over, as its listener hears it: what decides when a reactive user may speak.

`projection` (`envs.users.projection`, the default) and `energy` are built in. A learned model (VAP, smart-turn, ...)
plugs in as an entry point of the group `uptake.turn_models`: a callable that takes the batch size and returns a
`TurnModel`. A scenario names it:

    user: {driver: reactive, turn_model: my_vap}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from envs.activity import DEFAULT, OnlineActivity
from envs.errors import UptakeError, nearest
from envs.event import Word
from envs.users.laws import load_laws

ENTRY_POINT_GROUP = "uptake.turn_models"
BUILT_IN = ("projection", "energy")
"""They do not listen to the user."""


@dataclass(frozen=True)
class Heard:
    """What a user knows at the end of a frame: the agent's sound."""

    now: np.ndarray
    """(B,) samples so far."""
    activity: OnlineActivity
    """Of the agent."""
    agent: np.ndarray
    """(B, F) float32: the frame that the agent just played."""
    words: Callable[[int], Sequence[Word]] | None = None
    """What the agent has said so far in a row, by its text stream or by speech recognition, where somebody gives that:
    for an `llm` user, who reads where others listen."""


class TurnModel(Protocol):
    """A batched, causal listener. Rows know nothing of each other."""

    leads_s: tuple[float, ...]
    """How far ahead it looks: 0 first, then growing. One that waits for silence has 0 alone."""

    def update(self, heard: Heard, user: np.ndarray) -> np.ndarray:
        """Hear one frame of the agent and the user's own (B, F) float32.

        Returns:
            (B, leads): probability that the turn is over that many seconds from now.
        """

    def reset(self, rows: np.ndarray) -> None:
        """Forget everything about these rows."""

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Copy the state of row `source` to `rows`."""

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""


class EnergyTurns:
    """Silence alone: the longer, the less likely is a pause within the turn.

    Before any silence, one of five silences ends a turn (going on is 3 to 5 times as frequent as changing speakers);
    after s seconds, the pauses that are longer than s are all that speaks against it. With
    the human law of pauses, even odds take 0.56 s: what a listener pays who cannot project the end of a turn.
    """

    leads_s: tuple[float, ...] = (0.0,)
    SHIFT = 0.2

    def __init__(self, batch: int) -> None:
        pause, hop = load_laws()["pause"], DEFAULT.hop
        silences = np.arange(0, DEFAULT.clock.nearest_sample(4.0) + 1, hop) / DEFAULT.clock.sample_rate
        longer = np.array([1.0 - pause.below(float(s)) for s in silences])
        self._over = self.SHIFT / (self.SHIFT + (1.0 - self.SHIFT) * longer)  # by hops of silence

    def update(self, heard: Heard, user: np.ndarray) -> np.ndarray:
        """(B, 1) probability."""
        hops = (heard.now - heard.activity.offset) // DEFAULT.hop
        return self._over[np.clip(hops, 0, len(self._over) - 1)][:, None]

    def reset(self, rows: np.ndarray) -> None:
        """Nothing is kept beyond the activity that is heard."""

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Nothing is kept."""

    def get_state(self) -> None:
        """Nothing is kept."""

    def set_state(self, state: None) -> None:
        """Nothing is kept."""


def turn_model(name: str) -> Callable[[int], TurnModel]:
    """The maker of a turn model by name.

    Raises:
        UptakeError: no such entry point (the nearest name is offered), or one that does not load.
    """
    if name == "energy":
        return EnergyTurns
    if name == "projection":
        from envs.users.projection import Projection  # here: it needs `Heard`

        return Projection
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise UptakeError(f"no turn model {name!r}{nearest(name, ['energy', *points])}")
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise UptakeError(f"turn model {name!r}: entry point {points[name].value} does not load: {error}") from error

"""A published evaluator: its figures, its bugs by name, and how one episode contributes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.episode import Episode
from envs.errors import UptakeError, nearest
from envs.event import Word
from rewards.aggregate import Measurement
from rewards.bootstrap import DRAWS, Interval, Run, bootstrap
from rewards.compat.heard import Heard
from rewards.detector import ENERGY, DetectorConfig
from rewards.measures import Measure

Estimates = Mapping[str, np.ndarray]
"""Figure -> (D,), one value a weighting of the units."""


def nothing(found: Estimates) -> dict[str, np.ndarray]:
    """No figure follows from others."""
    return {}


@dataclass(frozen=True)
class Evaluator:
    """One published evaluator.

    Every figure is a ratio of two sums over episodes (a mean is one), so that intervals come from the same bootstrap
    as ours, or follows from such figures by `derive`.
    """

    name: str
    source: str
    """Paper, repository and snapshot that the definitions are from."""
    figures: Mapping[str, Measure]
    """In the order of the table. A figure's controls follow it, and their names begin with its own."""
    bugs: Mapping[str, str]
    """What the published code does and should not, by name. All on is the code as published; each can be off."""
    measure: Callable[[Heard, Collection[str]], dict[str, tuple[float, float]]]
    """Contributions (numerator, denominator) of one episode with these bugs on."""
    derive: Callable[[Estimates], dict[str, np.ndarray]] = nothing
    counts_words: bool = False
    """Whether it needs to know what the agent said, not only when."""

    def measurement(
        self,
        episode: Episode,
        transcript: Sequence[Word] | None,
        bugs: Collection[str],
        activity: DetectorConfig = ENERGY,
    ) -> Measurement:
        """What one episode contributes.

        Args:
            episode: a finished episode.
            transcript: words in place of the agent's own, for instance from speech recognition.
            bugs: names of the bugs that are on.
            activity: who is taken to speak when; gaps and lengths are the evaluator's own.

        Raises:
            UptakeError: no such bug.
        """
        for bug in bugs:
            if bug not in self.bugs:
                raise UptakeError(f"{self.name} has no bug {bug!r}{nearest(bug, self.bugs)}")
        return self.measure(Heard(episode, transcript, activity=activity), frozenset(bugs))

    def intervals(self, run: Run, draws: int = DRAWS, seed: int = 0) -> dict[str, Interval]:
        """Every figure of a run with its interval by unit; NaN where there was no case."""
        found = bootstrap(run, draws, seed, self.derive)
        unknown = Interval(float("nan"), float("nan"), float("nan"))
        return {name: found.get(name, unknown) for name in self.figures}

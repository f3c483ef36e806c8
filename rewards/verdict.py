"""What a reward says about one event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One judgement of one event by one term.

    Raises `ValueError` for a value outside [-1, 1], a value that is not finite and a window that runs backwards: a
    term that returns such a thing is broken, and `Composition` counts it as a fault.
    """

    value: float | None
    """In [-1, 1]; None when the term does not apply, which is masked and never counted as zero."""
    window: tuple[int, int]
    """[start, stop) in samples: the actions that get the credit."""
    raw: Mapping[str, float] = field(default_factory=dict)
    """The figures behind the value, in seconds, counts or rates; signed and never clamped."""
    term: str = ""
    """Name of the reward, filled in by whoever called it."""
    event: str = ""
    """Id of the event, filled in by whoever called it."""
    closes: int | None = None
    """First sample that the judge could not hear, filled in by whoever called it: nothing from there on changes it."""

    def __post_init__(self) -> None:
        if self.value is not None and not (math.isfinite(self.value) and -1.0 <= self.value <= 1.0):
            raise ValueError(f"verdict value {self.value!r} is not in [-1, 1]; scale it or return None")
        if not 0 <= self.window[0] <= self.window[1]:
            raise ValueError(f"verdict window {self.window} is not 0 <= start <= stop")

    def to_json(self) -> dict[str, Any]:
        """A JSON object: term, event, value, window, raw."""
        return {
            "term": self.term,
            "event": self.event,
            "value": self.value,
            "window": list(self.window),
            "raw": dict(self.raw),
        }

"""What a reward says about one event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.judge.answer import Answer
    from rewards.judge.rubric import Question


@dataclass(frozen=True)
class Verdict:
    """One judgement of one event by one term.

    Raises `ValueError` for a value outside [-1, 1], a value that is not finite and a window that runs backwards: a
    term that returns such a thing is broken, and `Composition` counts it as a fault.
    """

    value: float | None
    """In [-1, 1]; None when the term does not apply, which is masked and never counted as zero."""
    window: tuple[int, int]
    """[start, stop) in samples: the actions that get the credit; none after the view's end."""
    raw: Mapping[str, float] = field(default_factory=dict)
    """The figures behind the value, in seconds, counts or rates; signed, never clamped, and finite. The name `fault` is
    taken: it marks a verdict that a term failed to give."""
    term: str = ""
    """Name of the reward, filled in by whoever called it."""
    event: str = ""
    """Id of the event, filled in by whoever called it."""
    closes: int | None = None
    """First sample that the judge could not hear, filled in by whoever called it: nothing from there on changes it."""
    question: Question | None = None
    """What a language model is to be asked; the value is None until it has answered."""
    answer: Answer | None = None
    """What it answered, with its name and the question."""

    def __post_init__(self) -> None:
        if self.value is not None and not (math.isfinite(self.value) and -1.0 <= self.value <= 1.0):
            raise ValueError(f"verdict value {self.value!r} is not in [-1, 1]; scale it or return None")
        if not 0 <= self.window[0] <= self.window[1]:
            raise ValueError(f"verdict window {self.window} is not 0 <= start <= stop")
        if self.question is not None and self.value is not None:
            raise ValueError("a verdict with a question has no value yet; return one or the other")

    def to_json(self) -> dict[str, Any]:
        """A JSON object: term, event, value, window, raw; and what a judge was asked and said, if one was."""
        record: dict[str, Any] = {
            "term": self.term,
            "event": self.event,
            "value": self.value,
            "window": list(self.window),
            "raw": dict(self.raw),
        }
        return record if self.answer is None else record | {"judge": self.answer.to_json()}

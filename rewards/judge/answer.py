"""What became of one question to a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A score, or why there is none; with what was asked, so that a record explains itself."""

    rubric: str = ""
    digest: str = ""
    """Of the rubric's instructions (`Rubric.digest`)."""
    asked: str = ""
    """The conversation and the response, as they were sent."""
    key: str = ""
    """Of the cache (`Question.key`)."""
    score: int | None = None
    reply: str = ""
    model: str = ""
    """As the endpoint names it."""
    cached: bool = False
    fault: str = ""
    """The kind of fault (`envs.chat.endpoint.Fault`); empty for a score."""
    detail: str = ""
    """The fault in one line."""

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What it counts as: `cached`, or `faults` and the kind of fault, or nothing."""
        return ("faults", self.fault) if self.fault else ("cached",) if self.cached else ()

    def to_json(self) -> dict[str, Any]:
        """All fields; the value of a verdict's `judge` key."""
        return dict(vars(self))

"""The `user:` of an `llm` scenario: who calls and why, which model decides, who lends a voice, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from envs.chat.config import EndpointConfig


@dataclass
class UserEndpoint(EndpointConfig):
    """The model that decides what a user does."""

    section: ClassVar[str] = "user.endpoint"
    needed: ClassVar[str] = "the user asks a language model what to do"

    body: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.7, "max_tokens": 200})
    timeout_s: float = 10.0
    retries: int = 1
    patience_s: float = 20.0
    cache: str = ".user-cache"


@dataclass(frozen=True)
class Voice:
    """Speech that is synthesised while the model's decision is waited for."""

    engine: str
    """`kokoro`, `flite`, or an entry point of `uptake.speech_engines`."""
    voice: str
    voices: Path | None = None
    """Kokoro's folder of voices."""


@dataclass(frozen=True, eq=False)
class LlmUser:
    """Everything that a scenario says about such a user. Times are seconds."""

    goal: str
    endpoint: UserEndpoint = field(default_factory=UserEndpoint)
    who: str = "Somebody on the phone."
    speech: Voice | None = None
    """None: clips of the pack, all in one voice."""
    log: Path | None = None
    """Decisions of a conversation that was had before, in place of the endpoint."""
    turns: int = 6
    """Turns and barge-ins that it may take."""
    requests: int = 40
    """Decisions that it may ask for."""
    tokens: int = 100_000
    """Of all its questions and answers, as the endpoint counts them (else a quarter of the characters)."""
    think_s: float = 0.4
    """From the moment that calls for a decision to the moment at which it takes effect, in simulated time."""
    silence_s: float = 0.4
    """Silence after which the agent's turn seems over."""
    poll_s: float = 2.0
    """While the agent speaks, it is asked so often whether it goes on listening."""
    patience_s: float = 3.0
    """Silence of both after which it is asked."""
    timeout_s: float = 6.0
    """How long something that was decided waits for its moment."""
    faults: int = 2
    """Decisions in a row that could not be had before it hangs up; at each of them it says nothing."""

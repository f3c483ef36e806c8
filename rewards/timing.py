"""How good a moment is: the curves and searches that the turn and interruption rewards share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.event import Event
from rewards.text import contains_any
from rewards.view import EpisodeView, Utterance

EARLY_SECONDS = -0.2
"""An onset down to this much before the end of a turn is a terminal overlap, as people make; earlier is a cut-in."""
FULL_SECONDS = 0.7
ZERO_SECONDS = 1.85
"""Defaults of a response: full score up to 0.7 s, 0 at 1.85 s, -1 at 3.0 s (taxonomy A1)."""
RESPONSE_SECONDS = 3.0
"""A response later than this is none."""
SHORTEST_ANSWER_SECONDS = 0.6


def late_score(seconds: float, full: float, zero: float) -> float:
    """1 up to `full` seconds, then linear through 0 at `zero` down to -1 at 2·zero - full."""
    return max(-1.0, 1.0 - max(0.0, seconds - full) / (zero - full))


def offset_score(offset_s: float, full: float = FULL_SECONDS, zero: float = ZERO_SECONDS) -> float:
    """Score in [-1, 1] of a signed floor-transfer offset in seconds.

    1 on [0, full], then linear through 0 at `zero` to -1 at 2·zero - full. Early: linear from 1 at 0 to 0 at -0.2 s,
    and on to -1 at -1.0 s.
    """
    if offset_s >= 0.0:
        return late_score(offset_s, full, zero)
    if offset_s >= EARLY_SECONDS:
        return 1.0 - offset_s / EARLY_SECONDS
    return max(-1.0, (offset_s - EARLY_SECONDS) / (1.0 + EARLY_SECONDS))


def response_limits(event: Event) -> tuple[float, float]:
    """`full` and `zero` of the event's `responds` expectation in seconds, or the defaults."""
    return limits(event, "responds", FULL_SECONDS, ZERO_SECONDS)


def limits(event: Event, behaviour: str, full: float, zero: float) -> tuple[float, float]:
    """`full` and `zero` of what is expected about an event, in seconds, or these defaults.

    Where only `full` is given, `zero` lies as far behind it as by default.

    Raises:
        ValueError: they are not 0 <= full < zero.
    """
    expect = event.expected(behaviour)
    within = {} if expect is None else expect.within
    found = within.get("full", full)
    until = within.get("zero", found + (zero - full))
    if not 0.0 <= found < until:
        raise ValueError(f"event {event.id!r}: within full={found}, zero={until}; needs 0 <= full < zero")
    return found, until


@dataclass(frozen=True)
class Response:
    """The agent's answer to a turn that is over."""

    offset_s: float
    """Signed floor-transfer offset: agent onset minus user offset, in seconds."""
    utterance: Utterance
    real: bool
    """False for a short answer that could be a backchannel and holds none of the expected words."""


def find_response(view: EpisodeView, due: int, limit: int, content: Sequence[str]) -> Response | None:
    """The first answer with its onset in [due - 0.2 s, limit).

    A turn (more than 1.0 s or two words) is an answer. So is a short reply of at least 0.6 s and two words that holds
    an expected word ("At noon."). A short reply without one is an answer that is not `real`, used only when no real
    one follows. Shorter sounds are backchannels and are passed over.
    """
    weak: Response | None = None
    for utterance in view.utterances:
        if not due + view.samples(EARLY_SECONDS) <= utterance.onset < limit:
            continue
        response = Response(view.seconds(utterance.onset - due), utterance, True)
        if utterance.takes_floor or (_long_enough(utterance) and _holds(utterance, content)):
            return response
        if weak is None and _long_enough(utterance):
            weak = Response(response.offset_s, utterance, False)
    return weak


def _long_enough(utterance: Utterance) -> bool:
    return utterance.seconds >= SHORTEST_ANSWER_SECONDS and (utterance.words is None or len(utterance.words) >= 2)


def _holds(utterance: Utterance, content: Sequence[str]) -> bool:
    words = utterance.words or ()
    return bool(content) and contains_any([word.text for word in words], content)


def response_score(response: Response | None, full: float, zero: float) -> float:
    """-1 for none, the offset's score for a real one, and never above 0 for one that could be a backchannel."""
    if response is None:
        return -1.0
    score = offset_score(response.offset_s, full, zero)
    return score if response.real else min(0.0, score)


def cut_in(view: EpisodeView, event: Event) -> Utterance | None:
    """The first turn that the agent took while the user had the floor, or None.

    It began inside the user's utterance more than 0.2 s before its end, or began before it and still runs there.
    """
    end = event.offset + view.samples(EARLY_SECONDS)
    for turn in view.turns:
        if turn.onset < end and (turn.onset >= event.onset or turn.offset > end):
            return turn
    return None

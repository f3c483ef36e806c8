"""Which parts of an episode are items of Full-Duplex-Bench.

The benchmark has one folder an item, each with one task. A conversation of ours holds several events, so each event
becomes an item of its own: the part of the conversation that a folder of that task would hold. Source: the data set's
README (DanielLin94144/Full-Duplex-Bench) and `recipes-and-results` 3.2 of our notes: its pause clips end within 0.11 s
of the user's last word, its turn clips go on, its interruption clips hold the question before (the context).
"""

from __future__ import annotations

from dataclasses import dataclass

from envs.event import PAUSE_TYPES, TURN_TYPES, Event
from rewards.compat.heard import Heard
from rewards.view import is_user_turn

TASKS = ("pause_handling", "smooth_turn_taking", "backchannel", "user_interruption")
INTERRUPTIONS = ("C1", "C2")
"""Barge-ins that want an answer; a stop command (C3) wants silence, and the benchmark has none."""
OVERLAPS = {
    "C1": "user_interruption",
    "C2": "user_interruption",
    "C3": "user_interruption",
    "D1": "user_backchannel",
    "D5": "talking_to_other",
    "D6": "background_speech",
}
"""Categories of v1.5 by the type of the user's event. Coughs and noises are in none of them."""


@dataclass(frozen=True)
class Item:
    """One item: a task, the part of the episode, and the event it is about."""

    task: str
    """One of `TASKS`."""
    start: int
    stop: int
    event: Event
    marks: tuple[Event, ...] = ()
    """The pauses of a `pause_handling` item."""


def find_items(heard: Heard) -> list[Item]:
    """The items of version 1 in an episode, in order of their events.

    An episode that was read from a folder of the benchmark is an item of the task in `meta["fdb_task"]` only.
    """
    found: list[Item] = []
    for event in heard.events:
        if event.type in TURN_TYPES:
            pauses = tuple(e for e in heard.events if e.type in PAUSE_TYPES and _inside(e, event))
            if pauses:
                found.append(Item("pause_handling", _since(heard, event), event.offset, event, pauses))
            found.append(Item("smooth_turn_taking", _since(heard, event), _until(heard, event), event))
        elif event.type == "B7":
            found.append(Item("backchannel", event.onset, event.offset, event))
        elif event.type in INTERRUPTIONS:
            context = [act.onset for act in heard.acts if is_user_turn(act) and act.offset <= event.onset]
            found.append(Item("user_interruption", max(context, default=heard.start), _until(heard, event), event))
    return [item for item in found if wanted(heard, f"v1.0/{item.task}")]


def wanted(heard: Heard, task: str) -> bool:
    """Whether an episode is to be judged on a task (`v1.0/backchannel`): on all, or on the one of its folder."""
    return heard.episode.meta.get("fdb_task", task) == task


def _inside(inner: Event, outer: Event) -> bool:
    return outer.onset <= inner.onset and inner.offset <= outer.offset


def _since(heard: Heard, event: Event) -> int:
    """Where the user's act before this one ended."""
    return max((act.offset for act in heard.acts if act.offset <= event.onset), default=heard.start)


def _until(heard: Heard, event: Event) -> int:
    """Where the user's next turn begins."""
    return min((act.onset for act in heard.acts if is_user_turn(act) and act.onset >= event.offset), default=heard.end)

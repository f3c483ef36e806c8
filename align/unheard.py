"""Twins of conversations in which sounds that are not for stopping happen, and are not heard: whether the agent would
have stopped there anyway (`rewards.measures.UNHEARD`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envs.episode import Episode
from envs.event import Word
from envs.pack import Pack
from envs.scenario import Scenario
from rewards.continue_ import continue_
from rewards.detector import Activity, DetectorConfig
from rewards.measures import UNHEARD


def without_sounds(pack: Pack) -> Pack:
    """The pack in which twins are played."""
    return pack.unheard(continue_.events)


def most_plays(scenarios: Sequence[Scenario]) -> int:
    """How many conversations a variant of these scenarios takes at most, twins included."""
    return sum(2 if scenario.sounds(continue_.events) else 1 for scenario in scenarios)


def add_twins(
    played: Sequence[Episode],
    keys: Sequence[tuple[str, int]],
    pack: Pack,
    replay: Callable[[Sequence[tuple[str, int]]], Sequence[Episode]],
    activity: DetectorConfig,
    transcribe: Callable[[Episode], Sequence[Word]] | None,
) -> None:
    """Play the twins of those episodes in which such sounds happened, and note in their meta how these went.

    Args:
        played: the episodes; those with a twin are changed.
        keys: the scenario and variant that each of them is.
        pack: whose scenarios they are.
        replay: plays keys with the same seeds in `without_sounds(pack)`.
        activity: who is taken to speak when.
        transcribe: the words of an episode, for a detector that needs them.
    """
    sounds = []
    for (name, _), episode in zip(keys, played, strict=True):
        items = pack.scenario(name).sounds(continue_.events)
        sounds.append([event.id for event in episode.events if event.id in items])
    again = [i for i, ids in enumerate(sounds) if ids]
    if not again:
        return
    for i, twin in zip(again, replay([keys[i] for i in again]), strict=True):
        words = transcribe(twin) if transcribe and activity.detector == "text" else None
        agent = Activity(twin, activity, words).agent(twin.samples).tolist()
        played[i].meta[UNHEARD] = {"events": sounds[i], "agent": agent}

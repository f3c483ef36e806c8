"""Which conversations an iteration trains on: axes in turn, the scenarios of an axis dealt like a deck of cards.

Everything is a function of (seed, iteration), so that a resumed run, and a run on another number of ranks, meets the
same conversations with the same seeds. Nothing here has a state to save.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.errors import UptakeError, nearest
from rewards.refusal import TAG

#: Axis -> event types. A scenario belongs to the first axis that one of the events that it is about has a type of: a
#: barge-in scenario also has a question in it, a pause scenario also an end of turn.
AXES: Mapping[str, tuple[str, ...]] = {
    "interruption": ("C1", "C2", "C3", "C4", "C5", "C6", "C9", "C10"),
    "resume": ("C8", "G4"),
    "continue": ("C7", "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9"),
    "proactivity": ("A5", "E5", "E6", "G2"),
    "silence": ("B3", "E1", "E2", "E3", "E4"),
    "collision": ("A6",),
    "backchannel": ("B7",),
    "pause": ("B1", "B2", "B4", "B5", "B6"),
    "turn": ("A1", "A2", "A3", "A4", "A7", "A8", "G3"),
}
SAFETY = "safety"
"""The axis of the scenarios with this tag, whatever their events: a few requests would drown among the questions."""


@dataclass(frozen=True)
class Draw:
    """One group: which user, and how its conversations are seeded."""

    group: int
    """Number of the group in the iteration's global batch."""
    axis: str
    scenario: str
    variant: int
    """How often the scenario was dealt before; another variant is another room tone and timing."""
    seeds: tuple[int, ...]
    """The policy's seed for each conversation of the group."""


def by_axis(scenarios: Iterable[Any]) -> dict[str, list[str]]:
    """Scenario ids by axis, sorted, from `envs.scenario.Scenario`s; axes without a scenario are absent."""
    return {axis: sorted(name for ids in kinds.values() for name in ids) for axis, kinds in _kinds(scenarios).items()}


def of_axes(scenarios: Iterable[Any], axes: Sequence[str]) -> list[Any]:
    """The scenarios of these axes; of none: all.

    Raises:
        UptakeError: an axis that there is no scenario of.
    """
    known = list(scenarios)
    found = by_axis(known)
    for axis in axes:
        if axis not in found:
            raise UptakeError(f"axes: no training scenario is of {axis!r}{nearest(axis, found)}")
    wanted = {name for axis in axes for name in found[axis]}
    return [scenario for scenario in known if not axes or scenario.id in wanted]


def cards(scenarios: Iterable[Any]) -> dict[str, list[str]]:
    """`by_axis` as `draw` deals it: what few scenarios of an axis are about has each of these on several cards.

    A kind of event gets a share of its axis' draws that goes with the square root of its scenarios' number (as rare
    languages are sampled into a multilingual corpus): 48 scenarios with a "yeah", six asides and three coughs are dealt
    48 : 18 : 12. By their number, one conversation in six of that axis had anything to be told from a "yeah" in it, and
    policies learned that any sound but that one is a turn.
    """
    dealt = {}
    for axis, kinds in _kinds(scenarios).items():
        most = max(map(len, kinds.values()))
        copies = {kind: round(math.sqrt(most / len(ids))) for kind, ids in kinds.items()}
        dealt[axis] = sorted(name for kind, ids in kinds.items() for name in ids * copies[kind])
    return dealt


def _kinds(scenarios: Iterable[Any]) -> dict[str, dict[str, list[str]]]:
    """Axis -> the event type that puts a scenario there -> ids; axes in alphabetical order."""
    found: dict[str, dict[str, list[str]]] = {}
    for scenario in scenarios:
        if TAG in scenario.tags:
            found.setdefault(SAFETY, {}).setdefault(TAG, []).append(scenario.id)
            continue
        # What is about a condition of the channel (F) belongs where its conversation does.
        known = (
            (axis, code)
            for types in (scenario.about, sorted(scenario.types))
            for axis, codes in AXES.items()
            for code in types
            if code in codes
        )
        if (place := next(known, None)) is not None:
            axis, code = place
            found.setdefault(axis, {}).setdefault(code, []).append(scenario.id)
    return {axis: found[axis] for axis in sorted(found)}


def draw(
    scenarios: Mapping[str, Sequence[str]], iteration: int, *, seed: int, num_groups: int, num_generations: int
) -> list[Draw]:
    """The groups of one iteration.

    Args:
        scenarios: axis -> scenario ids (`cards`).
        iteration: from 0.
        seed: the run's.
        num_groups: groups in the global batch; axes take turns, across iterations too.
        num_generations: conversations a group.

    Raises:
        UptakeError: no scenario.
    """
    axes = sorted(axis for axis, ids in scenarios.items() if ids)
    if not axes:
        raise UptakeError("no training scenario has an event of a known axis; check the pack and its train split")
    draws = []
    for group in range(num_groups):
        turn, position = divmod(iteration * num_groups + group, len(axes))
        axis = axes[position]
        ids = scenarios[axis]
        deck, card = divmod(turn, len(ids))
        dealt = [ids[int(i)] for i in generator(seed, "deck", axis, deck).permutation(len(ids))]
        scenario = dealt[card]
        variant = deck * ids.count(scenario) + dealt[:card].count(scenario)
        rng = generator(seed, "policy", scenario, iteration, group)
        seeds = tuple(int(s) for s in rng.integers(0, 2**63 - 1, size=num_generations))
        draws.append(Draw(group, axis, scenario, variant, seeds))
    return draws


def redraw(scenarios: Mapping[str, Sequence[str]], old: Draw, iteration: int, attempt: int, *, seed: int) -> Draw:
    """Another group in the place of one: of the same axis, any scenario of it, a variant that `draw` never gives.

    Args:
        attempt: from 1, how often the iteration's group was drawn again.
    """
    ids = scenarios[old.axis]
    rng = generator(seed, "redraw", old.axis, iteration, old.group, attempt)
    scenario = ids[int(rng.integers(len(ids)))]
    variant = int(rng.integers(2**31, 2**32))
    seeds = tuple(int(s) for s in rng.integers(0, 2**63 - 1, size=len(old.seeds)))
    return Draw(old.group, old.axis, scenario, variant, seeds)


def permutation(seed: int, concern: str, size: int, *where: int) -> list[int]:
    """A permutation of range(size) that depends on the seed, a name and numbers (iteration, epoch, group, ...) only."""
    return [int(i) for i in generator(seed, concern, *where).permutation(size)]


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """Random numbers that depend on the seed and on these names and numbers only."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))

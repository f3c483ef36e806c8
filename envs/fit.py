"""Whether a scenario fits the clips of a pack: what it names is there, and long enough for what is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from envs.clock import Clock
from envs.errors import nearest
from envs.event import TURN_TYPES
from envs.scenario import Scenario, ScriptItem
from envs.users.persona import ReactiveUser, missing

if TYPE_CHECKING:
    from envs.pack import Clip, Pack

_SHORTEST_PAUSE = 0.2  # seconds; shorter silences lie within an inter-pausal unit (Heldner and Edlund 2010)


def check_fit(pack: Pack, scenario: Scenario) -> None:
    """Raise an error with ``file:line`` for the first thing that a scenario wants and the pack does not have."""
    if isinstance(scenario.user, ReactiveUser):
        lacking = missing(scenario.user.persona, pack.spoken(scenario.split))
        if lacking:
            raise scenario.error(f"{lacking} in split {scenario.split!r}; change the persona or add clips")
    for item in scenario.script:
        if item.clip is not None and item.clip not in pack.clip_ids:
            raise scenario.error(f"no clip {item.clip!r} in the pack{nearest(item.clip, pack.clip_ids)}", item.line)
        clips = pack.candidates(scenario, item)
        if not clips and item.silence is None:
            said = {c.text for options in pack.spoken(scenario.split).values() for c in options}
            hint = nearest(item.say or "", said)
            raise scenario.error(f"no {scenario.split} clip says {item.say!r}{hint}", item.line)
        for clip in clips:
            if clip.split not in (scenario.split, "all"):
                raise scenario.error(
                    f"clip {clip.id!r} belongs to split {clip.split!r}, the scenario to {scenario.split!r}; "
                    "splits share no clip",
                    item.line,
                )
            _check_item(scenario, item, clip)
        _check_expected(scenario, item, clips)


def held(item: ScriptItem, clip: Clip, clock: Clock) -> list[tuple[int, int]]:
    """[onset, offset) in samples of the clip of every silence of an item that is a pause event, in order: its `pauses`,
    and those of the speaker's own that are played and long enough to be taken for an end.
    """
    if item.type not in TURN_TYPES:
        return []
    cuts = [clip.silence_at(pause.cut) for pause in item.pauses]
    end = clip.samples if item.until is None else clip.silence_at(item.until)[0]
    own = [
        (on, off)
        for on, off in clip.pauses
        if off - on >= clock.nearest_sample(_SHORTEST_PAUSE)
        and off <= end
        and not any(on <= (a + b) // 2 <= off for a, b in cuts)
    ]
    return sorted([*cuts, *own])


def _check_expected(scenario: Scenario, item: ScriptItem, clips: Sequence[Clip]) -> None:
    """What is expected of a pause needs that pause in one of the item's clips at least."""
    for (event, _), line in zip(scenario.expects, scenario.expect_lines, strict=True):
        name, _, index = event.rpartition(".pause")
        if name != item.id:
            continue
        pauses = max((len(held(item, clip, clip.clock)) for clip in clips), default=0)
        if int(index or 0) >= pauses:
            has = f"pauses 0 to {pauses - 1}" if pauses > 1 else "one pause, 0" if pauses else "no pause"
            raise scenario.error(
                f"expect: no event {event!r}: item {name!r}, of type {item.type}, has {has}; name one that it has, or "
                "give it `pauses`" + ("" if item.type in TURN_TYPES else " and a type that ends in the agent's turn"),
                line,
            )


def _check_item(scenario: Scenario, item: ScriptItem, clip: Clip) -> None:
    last = -1
    for cut in [*(pause.cut for pause in item.pauses), *([item.until] if item.until else [])]:
        try:
            onset, _ = clip.silence_at(cut)
        except IndexError:
            place = f"word {cut.after_word}" if cut.at_pause is None else f"pause {cut.at_pause}"
            raise scenario.error(
                f"item {item.id!r}: clip {clip.id!r} has {len(clip.words)} words and {len(clip.pauses)} pauses, "
                f"so there is no cut after {place}; count from 0",
                item.line,
            ) from None
        if onset <= last:
            raise scenario.error(f"item {item.id!r}: pauses and until must be in order of time", item.line)
        last = onset
    end = sum(clip.silence_at(item.until)) // 2 if item.until else clip.samples
    played = sum((word.onset + word.offset) // 2 < end for word in clip.words)
    for index in [*item.opportunities, *item.anchors.values()]:
        if index >= played:
            raise scenario.error(
                f"item {item.id!r}: {played} words of clip {clip.id!r} are played, so there is no word {index}; "
                "count from 0",
                item.line,
            )

"""Twins: two scenarios that share every sample up to the decision point, and differ in what is right after it.

Only so can no constant behaviour be right in both. The decision point is where the first item in which their scripts
differ begins; where both play the same clip there, it is where the first of them is cut or pauses. Reactive users may
differ in `holds`, whose decision is at the first pause, and in `intents`, whose is where a barge-in begins. Scenarios
with the same user are twins, too, that differ in their acoustics alone: a condition of the channel, and the same
without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from envs.errors import UptakeError, nearest
from envs.scenario import Scenario, ScriptItem
from envs.users.persona import ReactiveUser


def check_twins(scenarios: Mapping[str, Scenario], voices: Callable[[Scenario], Sequence[str]]) -> None:
    """Raise an error with ``file:line`` for the first scenario whose twin is none; `voices` is `Pack.voices`."""
    for scenario in scenarios.values():
        if scenario.twin is None:
            continue
        if scenario.twin not in scenarios:
            raise scenario.error(f"no twin {scenario.twin!r}{nearest(scenario.twin, scenarios)}")
        twin = scenarios[scenario.twin]
        if twin.twin != scenario.id:
            raise scenario.error(f"the twin of {twin.id!r} is {twin.twin!r}, not {scenario.id!r}; name each other")
        if (found := difference(scenario, twin)) is not None:
            raise _wrong(scenario, twin, *found)
        here, there = voices(scenario), voices(twin)
        if here != there and _voice_is_heard(scenario, twin):
            why = f"its voice is one of {list(here)} here and of {list(there)} there; say it in clips of one voice"
            raise _wrong(scenario, twin, why, None)


def difference(one: Scenario, other: Scenario) -> tuple[str, int | None] | None:
    """Why two scenarios differ before the decision point, and in which line; None when they do not."""
    if one.id == other.id:
        return "it is its own twin", None
    if one.split != other.split:
        return f"split is {one.split!r} here and {other.split!r} there", None
    if one.seed_group != other.seed_group:
        return f"seed_group is {one.seed_group!r} here and {other.seed_group!r} there; give both the same", None
    if one.driver != other.driver:
        return f"driver is {one.driver!r} here and {other.driver!r} there", None
    for name in one.vars.keys() & other.vars.keys():
        if one.vars[name] != other.vars[name]:
            return f"variable {name!r} is drawn in another way there", None
    if one.room_tone_db != other.room_tone_db:
        return f"room_tone_db is {one.room_tone_db} here and {other.room_tone_db} there", None
    return _scripts(one, other) if one.driver == "script" else _users(one, other)


def first_difference(one: Scenario, other: Scenario) -> int:
    """Index of the first item in which two scripts differ; the length of the shorter one when there is none."""
    both = zip(one.script, other.script, strict=False)
    return next((i for i, (a, b) in enumerate(both) if _plain(a) != _plain(b)), min(len(one.script), len(other.script)))


def _scripts(one: Scenario, other: Scenario) -> tuple[str, int | None] | None:
    i = first_difference(one, other)
    if i == len(one.script) == len(other.script):
        return None  # a condition of the channel
    if one.acoustics != other.acoustics:
        return "acoustics are others there, and so is the script; change one of them", None
    if i >= min(len(one.script), len(other.script)):
        return None
    a, b = one.script[i], other.script[i]
    if _sound(a) == _sound(b) and a.silence is None:
        for what in ("trigger", "gain_db", "timeout"):
            if getattr(a, what) != getattr(b, what):
                said = {"trigger": "begins at another time", "gain_db": "has another gain_db"}
                return f"item {a.id!r} {said.get(what, 'has another timeout')} there", a.line
    elif i == 0 and a.silence is None and b.silence is None:
        return f"item {a.id!r} plays {_sound(a)!r} here and {_sound(b)!r} there, and nothing comes before it", a.line
    return None


def _users(one: Scenario, other: Scenario) -> tuple[str, int | None] | None:
    a, b = one.user, other.user
    if not (isinstance(a, ReactiveUser) and isinstance(b, ReactiveUser)):
        said = f"the user is another one there; twins of the {one.driver} driver differ in their acoustics alone"
        return None if a == b else (said, None)
    # What is drawn by weight depends on the order, too.
    here, there = ({**vars(user), **vars(user.persona), "says": [*user.persona.says.items()]} for user in (a, b))
    for name, value in here.items():
        if name not in ("persona", "holds", "intents") and value != there[name]:
            return f"{name} is {value!r} here and {there[name]!r} there", None
    if a != b and one.acoustics != other.acoustics:
        return "acoustics are others there, and so is the persona; change one of them", None
    return None


def _voice_is_heard(one: Scenario, other: Scenario) -> bool:
    """Whether the voice that is drawn for the user matters before the decision point."""
    both = list(zip(one.script, other.script, strict=False))[: first_difference(one, other) + 1]
    return one.driver != "script" or any(a.say and _sound(a) == _sound(b) for a, b in both)


def _sound(item: ScriptItem) -> str | None:
    return item.clip or item.say


def _plain(item: ScriptItem) -> ScriptItem:
    """An item without what nobody hears."""
    return replace(item, id="", type="", line=0, opportunities=(), anchors={}, turn=None, pause_type="", due=None)


def _wrong(scenario: Scenario, twin: Scenario, why: str, line: int | None) -> UptakeError:
    return scenario.error(f"the twin {twin.id!r} differs before the decision point: {why}", line)

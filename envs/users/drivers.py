"""Every row of a batch has a user; which driver makes it speak is its scenario's choice.

A driver is any object with the methods of `Driver`; adding one takes a line in `DRIVERS` and one in `_BIND`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from envs.acoustics.conditions import Conditions
from envs.acoustics.config import Acoustics
from envs.clock import CLOCK, Clock
from envs.event import Event
from envs.pack import Pack
from envs.scenario import Scenario
from envs.seeding import Seeds
from envs.users.caller import bind_llm
from envs.users.character import bind_reactive
from envs.users.partner import PolicyDriver, bind_policy
from envs.users.plan import Drawn, bind_script, draw
from envs.users.reactive import ReactiveDriver
from envs.users.replay import bind_replay
from envs.users.script import Cue, ScriptDriver
from envs.users.turn_models import Heard


class Plan(Protocol):
    """What a conversation is before it begins: everything random drawn that does not depend on the agent."""

    @property
    def scenario(self) -> Scenario:
        """What was bound."""

    @property
    def seeds(self) -> Seeds:
        """The random streams of this conversation."""

    @property
    def values(self) -> dict[str, float]:
        """What the scenario's variables came out as."""

    @property
    def voice(self) -> str:
        """Who speaks."""

    @property
    def room_tone_db(self) -> float:
        """dBFS."""

    @property
    def conditions(self) -> Conditions:
        """How it sounds."""

    @property
    def longest(self) -> int:
        """Samples after which it ends in any case."""


class Driver(Protocol):
    """Decides what the users of a batch say and when. Rows know nothing of each other.

    It hears the agent through `Heard` at the end of each frame, and what it decides is heard from the next frame on.
    """

    def reset(self, row: int, plan: Any) -> list[Cue]:
        """Begin a conversation; returns the audio of frames 0 and 1 and whatever else is settled."""

    def release(self, row: int) -> None:
        """Another driver has taken over this row."""

    def advance(self, heard: Heard) -> list[Cue]:
        """Listen at the end of a frame; returns new audio, none of it before `heard.now`."""

    def done_at(self, row: int) -> int:
        """The sample at which the conversation ends, as far as it is known."""

    def events(self, row: int) -> list[Event]:
        """All events whose time is settled, those in the future too, in order of onset."""

    def skipped(self, row: int) -> list[dict[str, str]]:
        """What never happened: id and type."""

    # A driver may also have `notes(row)`, more fields of the episode's meta, and `decisions(row)`, records of its own.

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""


def _llm(batch: int) -> Driver:
    from envs.users.llm import LlmDriver  # here: it brings an HTTP client along

    return LlmDriver(batch)


DRIVERS: Mapping[str, Callable[[int], Driver]] = {
    "script": ScriptDriver,
    "reactive": ReactiveDriver,
    "replay": ScriptDriver,  # a recording is a script of one line
    "llm": _llm,
    "policy": PolicyDriver,
}


_BIND: Mapping[str, Callable[[Pack, Scenario, Drawn, Clock], Plan]] = {
    "script": bind_script,
    "reactive": bind_reactive,
    "replay": bind_replay,
    "llm": bind_llm,
    "policy": bind_policy,
}


def bind(
    pack: Pack,
    scenario: Scenario,
    run_seed: int,
    variant: int,
    clock: Clock = CLOCK,
    acoustics: Acoustics | None = None,
) -> Plan:
    """Draw everything random of a scenario. The same arguments give the same plan everywhere.

    `acoustics` is what a scenario sounds like that says nothing about it.
    """
    return _BIND[scenario.driver](pack, scenario, draw(scenario, run_seed, variant, clock, acoustics), clock)


class Users:
    """The drivers of a batch: each row's calls go to the driver that its scenario names."""

    def __init__(self, batch: int) -> None:
        self.plans: list[Plan | None] = [None] * batch
        self._drivers: dict[str, Driver] = {}

    def reset(self, row: int, plan: Plan) -> list[Cue]:
        """Begin a conversation."""
        old, self.plans[row] = self.plans[row], plan
        if old is not None and old.scenario.driver != plan.scenario.driver:
            self._drivers[old.scenario.driver].release(row)
        return self._driver(plan.scenario.driver).reset(row, plan)

    def advance(self, heard: Heard) -> list[Cue]:
        """Let every user listen; returns what they say from `heard.now` on."""
        return [cue for driver in self._drivers.values() for cue in driver.advance(heard)]

    def done_at(self, row: int) -> int:
        """The sample at which a row's conversation ends, as far as it is known."""
        return self._of(row).done_at(row)

    def events(self, row: int) -> list[Event]:
        """All events of a row whose time is settled."""
        return self._of(row).events(row)

    def skipped(self, row: int) -> list[dict[str, str]]:
        """What never happened in a row."""
        return self._of(row).skipped(row)

    def notes(self, row: int) -> dict[str, Any]:
        """What else a row's driver has to say about the conversation: fields of the episode's meta."""
        notes = getattr(self._of(row), "notes", None)
        return notes(row) if notes else {}

    def decisions(self, row: int) -> tuple[dict[str, Any], ...]:
        """The decisions of a row's driver, where it writes them down."""
        decisions = getattr(self._of(row), "decisions", None)
        return decisions(row) if decisions else ()

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        rows, plan = list(rows), self.plans[source]
        assert plan is not None
        for row in rows:
            old, self.plans[row] = self.plans[row], plan
            if old is not None and old.scenario.driver != plan.scenario.driver:
                self._drivers[old.scenario.driver].release(row)
        self._of(source).fork(source, rows)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs."""
        return {"plans": list(self.plans), "drivers": {n: d.get_state() for n, d in self._drivers.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        for row, (old, new) in enumerate(zip(self.plans, state["plans"], strict=True)):
            if old is not None and (new is None or new.scenario.driver != old.scenario.driver):
                self._drivers[old.scenario.driver].release(row)
        self.plans = list(state["plans"])
        for name, kept in state["drivers"].items():
            self._driver(name).set_state(kept)

    def use(self, name: str, driver: Driver) -> None:
        """Put a driver in the place of the one that would be made for this name."""
        self._drivers[name] = driver

    def _driver(self, name: str) -> Driver:
        if name not in self._drivers:
            self._drivers[name] = DRIVERS[name](len(self.plans))
        return self._drivers[name]

    def _of(self, row: int) -> Driver:
        plan = self.plans[row]
        assert plan is not None
        return self._drivers[plan.scenario.driver]

"""The registry of rewards: a decorator, entry points and paths.

    @reward("pause_handling", axis="pause", events=["B1", "B4"], horizon_s=1.5)
    def pause_handling(view: EpisodeView, event: Event) -> Verdict: ...

A third party's reward is found by entry point (group `uptake.rewards`, an object made by `@reward`) or by path
(`my_rewards.py:name`), so that nobody has to touch this repository.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from envs.clock import CLOCK, Clock
from envs.episode import Episode
from envs.errors import UptakeError, nearest
from envs.event import EVENT_TYPES, Event, Word
from envs.plugins import load_point, run_file
from rewards.judge.rubric import Rubric
from rewards.verdict import Verdict
from rewards.view import EpisodeView

ENTRY_POINT_GROUP = "uptake.rewards"
EPISODE = "episode"
"""In place of an event type: the reward judges every conversation as a whole, once, when it is over."""
_BUILTIN = (
    "aspirin",
    "backchannel",
    "brevity",
    "collision",
    "continue_",
    "duplexpo",
    "ignore",
    "interruption",
    "judge.terms",
    "pause",
    "proactivity",
    "published",
    "quality",
    "refusal",
    "repetition",
    "resume",
    "silence",
    "similarity",
    "steerduplex",
    "turn",
    "waveform",
)

Judge = Callable[[EpisodeView, Event], Verdict]
_REGISTRY: dict[str, Reward] = {}
_FILES: dict[Path, ModuleType] = {}


class Reward:
    """A named judge, the axis it belongs to, the event types it judges and how long after an event it looks."""

    def __init__(
        self,
        judge: Judge,
        name: str,
        axis: str,
        events: Sequence[str],
        horizon_s: float,
        beside: Sequence[str] = (),
        rubric: Rubric | None = None,
        meaning: bool = False,
    ) -> None:
        self.judge_function = judge
        self.name = name
        self.axis = axis
        self.events = tuple(events)
        self.horizon_s = float(horizon_s)
        """Seconds after the event's offset at which the window closes and the view ends."""
        self.rubric = rubric
        """What a language model is told whom its verdicts wait for (`Verdict.question`); None: it asks none."""
        self.meaning = meaning
        """Whether it compares meanings, for which somebody must bring a sentence encoder (`EpisodeView.nearest`)."""
        self.beside = tuple(beside)
        """Terms without which this one must not be trained: what wins it without listening loses on them."""
        self.__doc__ = judge.__doc__

    def __repr__(self) -> str:
        return f"Reward({self.name!r}, axis={self.axis!r}, events={self.events}, horizon_s={self.horizon_s})"

    def __call__(self, view: EpisodeView, event: Event) -> Verdict:
        """The bare judgement of one event on a view, as the decorated function returns it."""
        return self.judge_function(view, event)

    @property
    def rule(self) -> bool:
        """Whether it judges with nothing but the view: no language model, no sentence encoder."""
        return self.rubric is None and not self.meaning

    def applies(self, event: Event) -> bool:
        """Whether the event is of a type that this reward judges."""
        return event.type in self.events

    def window_end(self, event: Event, clock: Clock = CLOCK) -> int:
        """The sample at which the window closes: from here on the verdict is final.

        It is counted from the event's offset, or from its anchor `due` where that lies later.
        """
        return max(event.offset, event.anchors.get("due", 0)) + clock.nearest_sample(self.horizon_s)

    def judge(self, episode: Episode, event: Event, transcript: Sequence[Word] | None = None) -> Verdict:
        """Judge one event on a view that ends where the window closes; fills in term and event ids.

        What a term with a rubric gives still waits for a judge (`Verdict.question`); `Composition` has it answered.
        """
        view = EpisodeView(episode, self.window_end(event, episode.clock), transcript)
        return replace(self(view, event), term=self.name, event=event.id, closes=view.end)


def whole(episode: Episode) -> Event:
    """What a reward of whole conversations judges: the episode as one event."""
    return Event(EPISODE, EPISODE, "agent", 0, episode.samples)


def reward(
    name: str,
    *,
    axis: str,
    events: Sequence[str],
    horizon_s: float,
    beside: Sequence[str] = (),
    rubric: Rubric | None = None,
    meaning: bool = False,
) -> Callable[[Judge], Reward]:
    """Register a function as a reward.

    Args:
        name: what configs call it; unique.
        axis: what reports group it under (pause, turn, backchannel, interruption, continue, quality, ...).
        events: codes of the event types that it judges (`envs.event.EVENT_TYPES`), or `["episode"]` for a reward that
            judges the finished conversation as a whole: its event then spans all of it, and its horizon is 0.
        horizon_s: seconds after the event's offset at which its window closes.
        beside: names of the terms that it must be trained with. Silence is perfect in a pause and loses when a turn is
            due: `uptake audit` attacks this reward together with them, at equal weight.
        rubric: what it asks a language model by (`rewards.judge`); a composition with it needs a judge.
        meaning: whether it calls `EpisodeView.nearest`; a composition with it needs a sentence encoder.

    Raises:
        UptakeError: the name is taken, no event type is given or an unknown one, or the horizon is negative.
    """

    def register(judge: Judge) -> Reward:
        if isinstance(events, str) or not events or not 0 <= horizon_s < math.inf:
            raise UptakeError(f"reward {name!r}: events={events!r}, horizon_s={horizon_s}; give types and a time")
        for code in events:
            if code not in EVENT_TYPES and code != EPISODE:
                raise UptakeError(f"reward {name!r}: no event type {code!r}{nearest(code, [*EVENT_TYPES, EPISODE])}")
        if EPISODE in events and (len(events) > 1 or horizon_s):
            raise UptakeError(f"reward {name!r}: judges whole episodes; give events=['episode'], horizon_s=0")
        made = Reward(judge, name, axis, events, horizon_s, beside, rubric, meaning)
        taken = _REGISTRY.get(name)
        if taken is not None and _origin(taken) != _origin(made):
            raise UptakeError(f"reward {name!r} is already registered by {_origin(taken)[0]}; choose another name")
        _REGISTRY[name] = made
        return made

    return register


def _origin(made: Reward) -> tuple[str, str]:
    """Where a reward was defined, so that reloading its module is not a clash of names."""
    function = made.judge_function
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def get(name: str) -> Reward:
    """The reward of a name, of an entry point, or of `path/to/file.py:name`.

    Raises:
        UptakeError: no such reward (the nearest name is offered), no such file, or an entry point that is no reward.
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), attribute)
    _load_builtin()
    if name in _REGISTRY:
        return _REGISTRY[name]
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in points:
        return _checked(load_point(points[name], "reward"), f"entry point {points[name].value}")
    raise UptakeError(f"unknown reward {name!r}{nearest(name, [*_REGISTRY, *points])}")


def names() -> list[str]:
    """Every reward that `get` finds by name: built in, registered and offered by entry points."""
    _load_builtin()
    return sorted({*_REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def _load_builtin() -> None:
    for module in _BUILTIN:
        importlib.import_module(f"rewards.{module}")


def _from_file(path: Path, attribute: str) -> Reward:
    path = path.expanduser().resolve()
    module = _FILES.get(path) or _load_file(path)
    offered = {key: value for key, value in vars(module).items() if isinstance(value, Reward)}
    by_name = {value.name: value for value in offered.values()}
    if attribute not in by_name and not hasattr(module, attribute):
        raise UptakeError(f"{path}: has no reward {attribute!r}{nearest(attribute, [*offered, *by_name])}")
    return _checked(by_name.get(attribute) or getattr(module, attribute), f"{path}:{attribute}")


def _load_file(path: Path) -> ModuleType:
    """Run a file once; its rewards register under their own names."""
    module = run_file(path, "reward")
    _FILES[path] = module
    return module


def _checked(found: object, origin: str) -> Reward:
    if not isinstance(found, Reward):
        raise UptakeError(f"{origin} is a {type(found).__name__}, not a reward; decorate it with @reward(...)")
    return found

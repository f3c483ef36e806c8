"""Bind a scenario to the clips of a pack: draw its variables, cut its clips, put its pauses in.

What remains is a `Plan` of `Line`s whose audio and events are known up to their start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from envs.acoustics.conditions import Conditions
from envs.acoustics.config import Acoustics
from envs.clock import CLOCK, Clock
from envs.event import BARGE_IN_TYPES, Event, Expect, Word
from envs.fit import held
from envs.pack import Clip, Pack
from envs.scenario import Scenario, ScriptItem, Value
from envs.seeding import Seeds

_NOTHING = np.zeros(0, np.int16)
_NOTHING.setflags(write=False)
_FADE = 120  # samples (5 ms): a cut in the middle of a sound would click
_RAMP = np.arange(_FADE, dtype=np.float32) / _FADE
_OTHERS = frozenset({"D4", "D6", "D7", "D9", "E5"})
"""Heard where the user is, and not the user's voice."""
_AGENTS = frozenset({"A5", "D8", "F4", "G1", "G2", "G3", "G4"})
"""What the agent does, or is to do, where nobody else speaks."""


@dataclass(frozen=True)
class Line:
    """One script item bound to audio. Times are samples; those of `words` and `events` count from the line's start."""

    id: str
    type: str
    source: str
    pcm: np.ndarray
    """(n,) int16; empty for a silence."""
    events: tuple[Event, ...]
    """The item's own event first, its pauses after it."""
    at: int | None
    """Start, when it is a fixed time."""
    after: int | None
    """Index of the line that must be over first, or have come to a word."""
    gap: int
    agent: str | None
    hold: int
    timeout: int
    jitter: int
    """A triggered line starts within the next frame, not always at its edge: people know no frames."""

    ends: int | None = None
    """Where it is over, if that is not the end of its first event."""
    word: int | None = None
    """Sample of the line `after`, at the end of a word, from which `gap` counts; None: from where that line is over."""

    @property
    def over(self) -> int:
        """Where the speech ends (the clip may go on with silence)."""
        return self.events[0].offset if self.ends is None else self.ends


@dataclass(frozen=True)
class Plan:
    """A scenario of a pack with everything random drawn."""

    scenario: Scenario
    seeds: Seeds
    lines: tuple[Line, ...]
    room_tone_db: float
    after_script: int
    """Samples that the conversation goes on after the script."""
    longest: int
    """Samples after which it ends in any case."""
    values: dict[str, float] = field(default_factory=dict)
    """What the variables came out as."""
    voice: str = ""
    conditions: Conditions = field(default_factory=Conditions)
    """How it sounds."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else the record is to say about it."""


class Drawn(TypedDict):
    """What is drawn of every scenario, whoever its user is: fields of a `Plan` and of a `Character`."""

    scenario: Scenario
    seeds: Seeds
    values: dict[str, float]
    room_tone_db: float
    after_script: int
    longest: int
    conditions: Conditions


def draw(
    scenario: Scenario, run_seed: int, variant: int, clock: Clock = CLOCK, acoustics: Acoustics | None = None
) -> Drawn:
    """Draw a scenario's variables and acoustics; the same arguments give the same.

    `acoustics` is what a scenario sounds like that says nothing about it.
    """
    seeds = Seeds(run_seed, scenario.seed_group, variant)
    values = {name: var.draw(seeds.rng("vars", name)) for name, var in scenario.vars.items()}
    return Drawn(
        scenario=scenario,
        seeds=seeds,
        values=values,
        room_tone_db=settle(scenario.room_tone_db, values),
        after_script=clock.nearest_sample(scenario.after_script_s),
        longest=clock.nearest_sample(scenario.max_seconds),
        conditions=(scenario.acoustics or acoustics or Acoustics()).draw(seeds, values),
    )


def settle(value: Value, values: Mapping[str, float]) -> float:
    """A number as it is, or what the variable that it names came out as."""
    return values[value[1:]] if isinstance(value, str) else value


def bind_script(
    pack: Pack,
    scenario: Scenario,
    drawn: Drawn,
    clock: Clock,
) -> Plan:
    """Draw a script's voice and clips and cut them; the same arguments give the same plan."""
    seeds, values = drawn["seeds"], drawn["values"]

    def samples(value: Value) -> int:
        return clock.nearest_sample(settle(value, values))

    clips = _cast(pack, scenario, seeds)
    index = {item.id: i for i, item in enumerate(scenario.script)}
    lines: list[Line] = []
    for i, (item, clip) in enumerate(zip(scenario.script, clips, strict=True)):
        due = None if item.due is None else samples(item.due)
        pcm = _NOTHING
        events: tuple[Event, ...]
        if clip is None:
            assert item.silence is not None
            events = (silent_event(item, samples(item.silence), due, scenario),)
        else:
            pauses = [samples(pause.seconds) for pause in item.pauses]
            gain = settle(item.gain_db, values)
            pcm, events = render(item, clip, pauses, gain, scenario.expected, scenario.twin, clock, due)
        trigger = item.trigger
        parent = None if trigger.after is None else index[trigger.after]
        lines.append(
            Line(
                id=item.id,
                type=item.type,
                source=events[0].source,
                pcm=pcm,
                events=events,
                at=None if trigger.at is None else samples(trigger.at),
                after=parent,
                gap=samples(trigger.gap),
                agent=trigger.agent,
                hold=samples(trigger.hold),
                timeout=samples(item.timeout),
                jitter=int(seeds.rng("user", i).integers(clock.frame)),
                word=lines[parent].events[0].anchors[trigger.word] if trigger.word and parent is not None else None,
            )
        )
    voices = [clip.voice for clip, line in zip(clips, lines, strict=True) if clip and line.source == "user"]
    return Plan(**drawn, lines=tuple(lines), voice=voices[0] if voices else "")


def silent_event(item: ScriptItem, length: int, due: int | None, scenario: Scenario) -> Event:
    """The event of a stretch in which nothing is said, from the start of its line."""
    expects = scenario.expected(item.id)
    anchors = _moments({}, expects, 0, due)
    return Event(item.id, item.type, source_of(item), 0, length, anchors, expects=expects, twin=scenario.twin)


def source_of(item: ScriptItem) -> str:
    """Who causes the events of an item: the user, unless the item or its type says otherwise."""
    nobody = item.silence is not None and item.type in _AGENTS
    return item.source or ("other" if item.type in _OTHERS else "agent" if nobody else "user")


def _moments(anchors: Mapping[str, int], expects: Sequence[Expect], onset: int, due: int | None) -> dict[str, int]:
    """Anchors, with those that what is expected refers to: the onset, unless something else is said."""
    found = dict(anchors)
    if due is not None:
        found["due"] = onset + due
    for behaviour, anchor in (("speaks_up", "due"), ("yields", "collision")):
        if any(expect.agent == behaviour for expect in expects):
            found.setdefault(anchor, onset)
    return found


def _cast(pack: Pack, scenario: Scenario, seeds: Seeds) -> list[Clip | None]:
    """One clip an item, None for a silence; all `say` items in one voice where a voice says them all."""
    options = [pack.candidates(scenario, item) for item in scenario.script]
    shared, rng = pack.voices(scenario), seeds.rng("voice")
    voice = shared[int(rng.integers(len(shared)))] if shared else None
    cast: list[Clip | None] = []
    for clips in options:
        if not clips:
            cast.append(None)
            continue
        fitting = [clip for clip in clips if clip.voice == voice] or clips
        cast.append(fitting[int(rng.integers(len(fitting)))] if len(fitting) > 1 else fitting[0])
    return cast


class _Cutting:
    """Where the samples and words of a clip go when it is cut and stretched."""

    def __init__(self, item: ScriptItem, clip: Clip, pauses: Sequence[int]) -> None:
        self.silences = [clip.silence_at(pause.cut) for pause in item.pauses]
        # A silence is stretched and never shortened: the clip's own samples all stay, for the twin's sake.
        self.extra = [max(0, length - (off - on)) for (on, off), length in zip(self.silences, pauses, strict=True)]
        self.end = clip.samples
        self.silent_from = clip.samples
        if item.until is not None:
            self.silent_from, resumes = clip.silence_at(item.until)
            self.end = (self.silent_from + resumes) // 2
        self.edges = [0, *((on + off) // 2 for on, off in self.silences), self.end]

    def before(self, sample: int) -> int:
        """Clip time to line time; a sample on a cut is the end of what comes before it."""
        return sample + sum(more for edge, more in zip(self.edges[1:-1], self.extra, strict=True) if edge < sample)

    def after(self, sample: int) -> int:
        """Clip time to line time; a sample on a cut is the start of what comes after it."""
        return sample + sum(more for edge, more in zip(self.edges[1:-1], self.extra, strict=True) if edge <= sample)

    def words(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """The words that are played; each belongs to the piece that holds its middle."""
        placed = []
        for word in words:
            middle = (word.onset + word.offset) // 2
            if middle >= self.end:
                continue
            piece = sum(edge <= middle for edge in self.edges[1:-1])
            low, high = self.edges[piece], self.edges[piece + 1]
            shift = sum(self.extra[:piece])
            placed.append(Word(word.text, max(word.onset, low) + shift, min(word.offset, high) + shift))
        return tuple(placed)

    def audio(self, clip: Clip) -> np.ndarray:
        """(n,) int16. Every piece fades out just after its cut and the next fades in there: no sample before a cut is
        touched, and where nothing is put in between the two add up to the clip as it was."""
        length = self.end + sum(self.extra)
        out = np.zeros(length + min(_FADE, clip.samples - self.end), np.float32)
        place = 0
        last = len(self.edges) - 2
        for i, (start, stop) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            piece = clip.pcm[start : stop + _FADE].astype(np.float32)
            fade_in, fade_out = piece[:_FADE], piece[stop - start :]
            if i:
                fade_in *= _RAMP[: len(fade_in)]
            fade_out *= 1.0 - _RAMP[: len(fade_out)]
            part = out[place : place + len(piece)]
            part += piece[: len(part)]
            place += stop - start + (self.extra[i] if i < last else 0)
        return np.clip(np.rint(out), -32768, 32767).astype(np.int16)


def render(
    item: ScriptItem,
    clip: Clip,
    pauses: Sequence[int],
    gain_db: float,
    expected: Callable[[str], tuple[Expect, ...]],
    twin: str | None,
    clock: Clock,
    due: int | None = None,
) -> tuple[np.ndarray, tuple[Event, ...]]:
    """Cut and stretch a clip: (n,) int16 and its events, timed from the start of the line.

    Args:
        pauses: samples of each of the item's pauses.
        expected: what is expected about the event with this id.
        due: samples from the item's onset at which the agent should speak up.

    A cut lies in the middle of the silence there, so `until` and the item that it is the twin of share every sample up
    to the cut; where the other one pauses, both go on with room tone alone until the pause ends.
    """
    cutting = _Cutting(item, clip, pauses)
    pcm = cutting.audio(clip)
    if gain_db:
        pcm = np.clip(np.rint(pcm * 10.0 ** (gain_db / 20.0)), -32768, 32767).astype(np.int16)
    pcm.setflags(write=False)
    words = cutting.words(clip.words)
    onset = words[0].onset if words else 0
    offset = min(words[-1].offset if words else len(pcm), cutting.before(cutting.silent_from))
    anchors = {name: words[i].offset for name, i in item.anchors.items()}
    if item.type in BARGE_IN_TYPES:
        anchors.setdefault("sem", words[0].offset if words else offset)
    if item.type == "B7":
        if item.opportunities:
            places = [words[i].offset for i in item.opportunities]
        else:
            places = [cutting.before(on) for on, _ in clip.pauses if on < cutting.end]
        anchors.update({f"bc{i}": place for i, place in enumerate(places)})

    def event(name: str, kind: str, start: int, end: int, **more: Any) -> Event:
        return Event(name, kind, source_of(item), start, end, expects=expected(name), twin=twin, **more)

    anchors = _moments(anchors, expected(item.id), onset, due)
    text = " ".join(word.text for word in words)
    events = [event(item.id, item.type, onset, offset, anchors=anchors, text=text, words=words)]
    for i, (on, off) in enumerate(held(item, clip, clock)):
        events.append(event(f"{item.id}.pause{i}", item.pause_type, cutting.before(on), cutting.after(off)))
    if item.turn is not None:
        events.append(event(f"{item.id}.turn", item.turn, onset, offset, text=text, words=words))
    return pcm, tuple(events)

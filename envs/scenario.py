"""Scenarios: YAML files (schema ``duplex.scenario/1``) that say what a user does and what is expected of the agent.

    schema: duplex.scenario/1
    id: pause/weather/03
    split: train
    twin: turn/weather/03          # the same question that stops at the pause
    seed_group: weather/03         # both draw the same variables and the same room
    vars: {gap: {dist: lognormal, median: 0.6, sigma: 0.4, clip: [0.3, 2.0]}}
    user:
      script:
        - {id: ask, type: A1, clip: weather-03, at: 0.8s, pauses: [{after_word: 4, seconds: $gap}]}
    expect:
      - {event: ask.pause, agent: silent}
      - {event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}
    acoustics: cafe                # or a mapping of effects (`envs.acoustics.config`)
    terminate: {after_script_s: 4.0}

An item may be a `silence` of so many seconds in place of a clip: a stretch in which something is expected. A scenario
with a list of splits is one scenario each, and `$split` in a clip's id is the split.

`user.driver` may also be `reactive` (a `persona` in place of the script, `envs.users.persona`), `replay` (a
`recording`, `envs.recording`), `llm` (`envs.users.llm_user`) or `policy` (`envs.users.policy_user`). Their events
follow from what happens, so that `expect` then names types of events.

A file may hold several documents (``---`` between them). The grammar is `json_schema()`, published as package data in
``scenario.schema.json``; what a grammar cannot say (references, order) is checked here. Every error names file and
line. Clips are looked up when a pack binds its scenarios (`envs.pack`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs import located_yaml
from envs.acoustics.config import Acoustics, parse_acoustics
from envs.errors import UptakeError, nearest
from envs.event import EVENT_TYPES, Expect
from envs.located_yaml import Document
from envs.recording import Recording
from envs.schema import json_schema
from envs.users.declared import read_user
from envs.users.llm_user import LlmUser
from envs.users.persona import ReactiveUser
from envs.users.policy_user import PolicyUser
from envs.variables import Value, Var, check_number, known_variable, parse_var

SCHEMA = "duplex.scenario/1"
DEFAULT_ROOM_TONE_DB = -62.0
DEFAULT_TIMEOUT = 6.0
DEFAULT_AFTER_SCRIPT = 3.0
DEFAULT_MAX = 60.0
_SPLIT = "$split"
REPLAY_TYPES = frozenset({"A1", "A3", "B1", "B7", "C1", "D1"})
"""What is found in a recording, and in what a policy says (`envs.users.replay`)."""
LLM_TYPES = frozenset({"A1", "A3", "A8", "C1", "C2", "C3", "C4", "C5", "C6", "D1", "E2"})
"""What a language model may decide on (`envs.users.caller`), as far as any pack lets it."""
_DRIVERS: Mapping[type, str] = {ReactiveUser: "reactive", Recording: "replay", LlmUser: "llm", PolicyUser: "policy"}


@dataclass(frozen=True)
class Trigger:
    """When an item starts. Exactly one of: a time; an item's end, or a word in it, plus a gap; what the agent does."""

    at: Value | None = None
    """Seconds from the start."""
    after: str | None = None
    """Item that must be over first."""
    gap: Value = 0.0
    """Seconds after the end of that item, or after its `word`."""
    word: str | None = None
    """Anchor of that item, at the end of one of its words."""
    agent: str | None = None
    """`speaking`, `silent`, or `done` (silent, having spoken): waits for the agent, from the end of `after` on."""
    hold: Value = 0.0
    """Seconds for which the agent must have been speaking or silent (`for` in the file)."""


@dataclass(frozen=True)
class Cut:
    """A place in a clip between two words."""

    after_word: int | None = None
    at_pause: int | None = None


@dataclass(frozen=True)
class Pause:
    """A silence within an item: the clip's own one at this place, stretched to so many seconds."""

    cut: Cut
    seconds: Value


@dataclass(frozen=True)
class ScriptItem:
    """One thing that the user (or the surroundings) does."""

    id: str
    type: str
    trigger: Trigger
    clip: str | None = None
    say: str | None = None
    silence: Value | None = None
    """Seconds in which nothing sounds, in place of a clip."""
    source: str | None = None
    """Who is heard, if not who usually causes such an event (`envs.users.plan`)."""
    due: Value | None = None
    """Seconds from its onset at which the agent should speak up: anchor `due`."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds, from when it may happen, after which a trigger on the agent is given up and the item skipped."""
    gain_db: Value = 0.0
    pauses: tuple[Pause, ...] = ()
    pause_type: str = "B1"
    until: Cut | None = None
    """Only the clip up to here is played."""
    opportunities: tuple[int, ...] = ()
    """B7: words after which a listener would backchannel."""
    turn: str | None = None
    """B7, A6: type of the turn event that it is besides."""
    anchors: Mapping[str, int] = field(default_factory=dict)
    """Name to index of the word at whose end the anchor lies."""
    line: int = 0


@dataclass(frozen=True)
class Scenario:
    """One scenario, checked but not yet bound to the clips of a pack."""

    id: str
    split: str
    script: tuple[ScriptItem, ...] = ()
    user: ReactiveUser | Recording | LlmUser | PolicyUser | None = None
    """Who speaks when there is no script."""
    expects: tuple[tuple[str, Expect], ...] = ()
    """(event name, expectation): the name is ITEM, ITEM.pause, ITEM.pauseN or ITEM.turn; without a script, a type."""
    expect_lines: tuple[int, ...] = ()
    """Where each of them stands in the file."""
    tags: tuple[str, ...] = ()
    twin: str | None = None
    seed_group: str = ""
    vars: Mapping[str, Var] = field(default_factory=dict)
    max_seconds: float = DEFAULT_MAX
    after_script_s: float = DEFAULT_AFTER_SCRIPT
    room_tone_db: Value = DEFAULT_ROOM_TONE_DB
    acoustics: Acoustics | None = None
    """How it sounds; None where the scenario leaves that to the environment."""
    source: str = ""
    line: int = 1

    @property
    def driver(self) -> str:
        """`script`, `reactive`, `replay`, `llm` or `policy`."""
        return "script" if self.user is None else _DRIVERS[type(self.user)]

    @property
    def types(self) -> frozenset[str]:
        """Types of the events that it may give rise to, as far as the user alone decides that."""
        if isinstance(self.user, ReactiveUser):
            return frozenset(self.user.persona.types())
        if isinstance(self.user, LlmUser):
            return LLM_TYPES
        if self.user is not None:
            return REPLAY_TYPES
        items = {item.type for item in self.script} | {item.turn for item in self.script if item.turn}
        return frozenset(items | {item.pause_type for item in self.script if item.pauses})

    @property
    def about(self) -> tuple[str, ...]:
        """Types of the events that it was made for: its tags that are such types, else all that are in it."""
        if tagged := tuple(tag for tag in self.tags if tag in EVENT_TYPES):
            return tagged
        if self.user is not None:
            return tuple(sorted(self.types))
        found = [code for item in self.script for code in (item.pause_type if item.pauses else "", item.type)]
        return tuple(dict.fromkeys(code for code in found if code))

    def sounds(self, types: Collection[str]) -> frozenset[str]:
        """Ids of the items of these types that can be heard; one that is a silence cannot."""
        return frozenset(item.id for item in self.script if item.type in types and item.silence is None)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it refers to besides the clips of a pack: a change there is a change of the scenario."""
        named: list[str | Path | None] = []
        if isinstance(self.user, ReactiveUser):
            named = [self.user.laws if self.user.laws != "human" else None]
        elif isinstance(self.user, Recording):
            named = [self.user.file, self.user.words]
        elif isinstance(self.user, LlmUser):
            named = [self.user.log]
        return (*(Path(file) for file in named if file), *(self.acoustics.files if self.acoustics else ()))

    def error(self, message: str, line: int | None = None) -> UptakeError:
        """An error about this scenario that starts with ``file:line``."""
        return UptakeError(f"{self.source}:{line or self.line}: {message}")

    def expected(self, event: str) -> tuple[Expect, ...]:
        """What is expected about the event with this id (``ask``, ``ask.pause1``, ...)."""
        family = event.rstrip("0123456789") if ".pause" in event else event
        return tuple(expect for name, expect in self.expects if name in (event, family))


def load_scenarios(path: str | Path) -> list[Scenario]:
    """Load all scenarios of a file, in order. Raises `UptakeError` with ``file:line``."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UptakeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UptakeError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    return parse_scenarios(text, str(path))


def parse_scenarios(text: str, source: str = "scenario") -> list[Scenario]:
    """Parse the text of a scenario file; `source` names it in errors."""
    scenarios = [one for document in located_yaml.read(text, source) for one in _by_split(_scenario(document))]
    seen: dict[str, Scenario] = {}
    for scenario in scenarios:
        if scenario.id in seen:
            raise scenario.error(f"id {scenario.id!r} is taken by line {seen[scenario.id].line}; rename one")
        seen[scenario.id] = scenario
    return scenarios


def _by_split(scenario: Scenario) -> list[Scenario]:
    """One scenario a split: a list of splits gives ids such as ID/train, and twins that stay in their split."""
    splits = scenario.split.split()
    if len(splits) == 1:
        return [scenario]
    return [
        replace(
            scenario,
            id=f"{scenario.id}/{split}",
            split=split,
            twin=scenario.twin and f"{scenario.twin}/{split}",
            script=tuple(
                replace(item, clip=item.clip and item.clip.replace(_SPLIT, split)) for item in scenario.script
            ),
        )
        for split in splits
    ]


def _scenario(document: Document) -> Scenario:
    located_yaml.check(document, json_schema())
    data = document.data
    variables = {name: parse_var(document, name, spec, ("vars", name)) for name, spec in data.get("vars", {}).items()}
    user = read_user(document, data["user"], variables)
    script = data["user"].get("script", ())
    _check_order(document, script)
    items: list[ScriptItem] = []
    for i, spec in enumerate(script):
        items.append(_item(document, spec, ("user", "script", i), items, variables))
    acoustics, room = parse_acoustics(document, data.get("acoustics", {}), ("acoustics",), variables)
    names = _event_names(items) if user is None else sorted(_judged(user))
    expects, lines = [], []
    for i, spec in enumerate(data.get("expect", [])):
        where = ("expect", i)
        if spec["event"] not in names:
            raise document.error(
                f"expect: no event {spec['event']!r}{nearest(spec['event'], names)}", (*where, "event")
            )
        within = {key: float(value) for key, value in spec.get("within", {}).items()}
        if within.get("full", 0.0) > within.get("zero", np.inf):
            raise document.error("expect: within.full is later than within.zero; swap them", (*where, "within"))
        expects.append((spec["event"], Expect(spec["agent"], within, tuple(spec.get("content", ())))))
        lines.append(document.line((*where, "event")))
    return Scenario(
        id=data["id"],
        split=data["split"] if isinstance(data["split"], str) else " ".join(data["split"]),
        script=tuple(items),
        user=user,
        expects=tuple(expects),
        expect_lines=tuple(lines),
        tags=tuple(data.get("tags", ())),
        twin=data.get("twin"),
        seed_group=data.get("seed_group", data["id"]),
        vars=variables,
        max_seconds=float(data.get("duration_s", {}).get("max", DEFAULT_MAX)),
        after_script_s=float(data.get("terminate", {}).get("after_script_s", DEFAULT_AFTER_SCRIPT)),
        room_tone_db=DEFAULT_ROOM_TONE_DB if room is None else room,
        acoustics=acoustics,
        source=document.source,
        line=document.line(("id",)),
    )


_OF_CLIPS = ("anchors", "gain_db", "opportunities", "pause_type", "pauses", "turn", "until")
"""Keys of an item that say how its clip is played."""


def _check_order(document: Document, script: Sequence[Mapping[str, Any]]) -> None:
    """An item can only wait for one that stands before it, so that nothing waits for itself."""
    waits = {spec["id"]: _waits_for(spec.get("when", {})) for spec in script}
    if len(waits) < len(script):
        return  # an id that stands twice is the first thing to mend
    for i, spec in enumerate(script):
        chain = [spec["id"]]
        while (before := waits.get(chain[-1])) is not None and before not in chain:
            chain.append(before)
        if before == spec["id"]:
            circle = " waits for ".join(repr(name) for name in (*chain, before))
            raise document.error(f"when: circular, {circle}; let one of them wait for a time or for the agent",
                                 ("user", "script", i, "when", "after"))  # fmt: skip


def _item(
    document: Document,
    spec: Mapping[str, Any],
    where: located_yaml.Path,
    before: list[ScriptItem],
    variables: Mapping[str, Var],
) -> ScriptItem:
    name = spec["id"]
    if any(item.id == name for item in before):
        raise document.error(f"item id {name!r} stands twice; rename one", (*where, "id"))
    if ".pause" in name or name.endswith(".turn"):
        raise document.error(f"item id {name!r}: '.pause' and '.turn' name its events; rename it", (*where, "id"))
    if sum(key in spec for key in ("clip", "say", "silence")) != 1:
        raise document.error(f"item {name!r} needs exactly one of 'clip', 'say' and 'silence'", where)
    if isinstance(document.data["split"], str) and _SPLIT in spec.get("clip", ""):
        raise document.error(f"item {name!r}: '{_SPLIT}' in a clip needs a list of splits", (*where, "clip"))
    for key in _OF_CLIPS:
        if key in spec and "silence" in spec:
            raise document.error(f"item {name!r}: {key!r} needs a clip, this is a silence; remove it", (*where, key))
    trigger = _trigger(document, spec, where, before, variables)
    if "timeout" in spec and trigger.agent is None:
        raise document.error(f"item {name!r}: 'timeout' needs a trigger on the agent; remove it", (*where, "timeout"))
    for key, types in (("opportunities", ("B7",)), ("turn", ("B7", "A6"))):
        if key in spec and spec["type"] not in types:
            hint = f"belongs to type {' or '.join(types)}, this is {spec['type']}"
            raise document.error(f"item {name!r}: {key!r} {hint}", (*where, key))
    if "gain_db" in spec:
        check_number(document, spec["gain_db"], json_schema()["$defs"]["gain_db"], variables, (*where, "gain_db"))
    pauses = []
    for i, pause in enumerate(spec.get("pauses", ())):
        here = (*where, "pauses", i)
        pauses.append(Pause(_cut(document, pause, here), _seconds(document, pause["seconds"], variables, here)))
    return ScriptItem(
        id=name,
        type=spec["type"],
        trigger=trigger,
        clip=spec.get("clip"),
        say=spec.get("say"),
        silence=_seconds(document, spec["silence"], variables, (*where, "silence")) if "silence" in spec else None,
        source=spec.get("source"),
        due=_seconds(document, spec["due"], variables, (*where, "due")) if "due" in spec else None,
        timeout=float(spec.get("timeout", DEFAULT_TIMEOUT)),
        gain_db=spec.get("gain_db", 0.0),
        pauses=tuple(pauses),
        pause_type=spec.get("pause_type", "B1"),
        until=_cut(document, spec["until"], (*where, "until")) if "until" in spec else None,
        opportunities=tuple(spec.get("opportunities", ())),
        turn=spec.get("turn"),
        anchors=dict(spec.get("anchors", {})),
        line=document.line((*where, "id")),
    )


def _trigger(
    document: Document,
    spec: Mapping[str, Any],
    where: located_yaml.Path,
    before: Sequence[ScriptItem],
    variables: Mapping[str, Var],
) -> Trigger:
    if ("at" in spec) == ("when" in spec):
        raise document.error(f"item {spec['id']!r} needs exactly one of 'at' and 'when'", where)
    if "at" in spec:
        return Trigger(at=_seconds(document, spec["at"], variables, (*where, "at")))
    when, here = spec["when"], (*where, "when")
    if "word" in when:
        allowed, needed = ["word", "gap"], "word"
    elif "agent" in when:
        allowed, needed = ["agent", "for", "after"], "for"
    else:
        allowed, needed = ["after", "gap"], "after"
    for key in when:
        if key not in allowed:
            raise document.error(f"when: {key!r} does not go with the others; use {', '.join(allowed)}", (*here, key))
    if needed not in when:
        raise document.error(f"when: {needed!r} is missing; use {', '.join(allowed)}", here)
    key, names = ("word" if "word" in when else "after"), [item.id for item in before]
    after, word = _waits_for(when), when.get("word", "").rpartition(".")[2]
    if after is not None and after not in names:
        hint = nearest(after, names) or "; the first item can only use 'at' or 'agent'"
        raise document.error(f"when: no earlier item {after!r}{hint}", (*here, key))
    if after is not None and key == "word" and word not in (anchors := before[names.index(after)].anchors):
        known = nearest(word, anchors) or f"; give it one: anchors: {{{word or 'NAME'}: INDEX OF THE WORD}}"
        raise document.error(f"when: item {after!r} has no anchor {word!r}{known}", (*here, key))
    return Trigger(
        after=after,
        gap=_seconds(document, when.get("gap", 0.0), variables, (*here, "gap")),
        word=word or None,
        agent=when.get("agent"),
        hold=_seconds(document, when.get("for", 0.0), variables, (*here, "for")),
    )


def _waits_for(when: Mapping[str, Any]) -> str | None:
    """The item that a trigger names."""
    return when["word"].rpartition(".")[0] if "word" in when else when.get("after")


def _cut(document: Document, spec: Mapping[str, Any], where: located_yaml.Path) -> Cut:
    if ("after_word" in spec) == ("at_pause" in spec):
        raise document.error("a cut needs exactly one of 'after_word' and 'at_pause'", where)
    return Cut(spec.get("after_word"), spec.get("at_pause"))


def _seconds(document: Document, value: Any, variables: Mapping[str, Var], where: located_yaml.Path) -> Value:
    if isinstance(value, str):
        if value.startswith("$"):
            known_variable(document, value, variables, where)
            if variables[value[1:]].least < 0:
                raise document.error(f"{value} can be negative, but it is a time here; give it clip: [0, ...]", where)
            return value
        return float(value[:-2]) / 1000.0 if value.endswith("ms") else float(value[:-1])
    return float(value)


def _judged(user: ReactiveUser | Recording | LlmUser | PolicyUser) -> frozenset[str]:
    """Types of the events of a user without a script that something can be expected of.

    Nothing is of a user who breaks off (A6, C8) or hangs up (E2); any reactive one may say hello, goodbye, or something
    over an agent that does not stop.
    """
    if isinstance(user, ReactiveUser):
        return frozenset({*user.persona.types(), "A1", "A8", "C1"}) - {"C8"}
    if isinstance(user, LlmUser):
        return LLM_TYPES - {"E2"} | {"B1", "B4", "B7", "D3", "D5"}
    return REPLAY_TYPES


def _event_names(items: list[ScriptItem]) -> list[str]:
    names = []
    for item in items:
        # How many of these there are is known to the pack only (`envs.fit`); nine is more than any utterance needs.
        names += [item.id, f"{item.id}.pause", *(f"{item.id}.pause{i}" for i in range(9))]
        names += [f"{item.id}.turn"] if item.turn else []
    return names

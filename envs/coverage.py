"""Which events of the taxonomy scenarios are about, in which splits, with which twins, and what is expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs.event import EVENT_TYPES, Expect
from envs.pack import SPLITS, Pack
from envs.scenario import Scenario

_VERBS = {
    "responds": "answers",
    "silent": "is silent",
    "stops": "stops",
    "continues": "goes on",
    "backchannels": "says a word",
    "speaks_up": "speaks up",
    "yields": "gives way",
    "resumes": "takes up again",
    "declines": "declines",
}


@dataclass(frozen=True)
class Coverage:
    """What there is about one type of event."""

    code: str
    scenarios: tuple[Scenario, ...]
    """All that are about it, in order of their ids."""

    def count(self, split: str) -> int:
        """How many there are in a split."""
        return sum(scenario.split == split for scenario in self.scenarios)

    def paired(self, split: str) -> list[Scenario]:
        """Those of a split that have a twin."""
        return [scenario for scenario in self.scenarios if scenario.split == split and scenario.twin]


def coverage(packs: Iterable[Pack]) -> list[Coverage]:
    """One entry for every code of `EVENT_TYPES`, in their order."""
    scenarios = [scenario for pack in packs for scenario in pack.scenarios()]
    return [Coverage(code, tuple(s for s in scenarios if code in s.about)) for code in EVENT_TYPES]


def markdown(packs: Sequence[Pack]) -> str:
    """A table with a row for every code: how many scenarios, an example with its twin, and what is expected in both.

    Examples are of the last pack that has one in its first split.
    """
    known = {scenario.id: scenario for pack in packs for scenario in pack.scenarios()}
    lines = [
        f"| code | event | {' / '.join(SPLITS)} | for instance | the agent | its twin | the agent there |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in coverage(packs):
        counts = " / ".join(str(found.count(split)) for split in SPLITS)
        cells = ["none", "", "", ""]
        if paired := found.paired(SPLITS[0]):
            one = paired[-1]
            twin = known[one.twin or ""]
            cells = [f"`{_short(one)}`", _expected(one, found.code), f"`{_short(twin)}`", _expected(twin, "")]
        lines.append(f"| {found.code} | {EVENT_TYPES[found.code]} | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _short(scenario: Scenario) -> str:
    return scenario.id.removesuffix(f"/{scenario.split}")


def _expected(scenario: Scenario, code: str) -> str:
    """What is expected about events of a code, or about the last item where the scenario has no such event."""
    named = [(item.id, item.type, item.pause_type if item.pauses else "") for item in scenario.script]
    wanted = [
        expect
        for name, expect in scenario.expects
        for item, kind, pause in named
        if (name == item and kind == code) or (name.startswith(f"{item}.pause") and pause == code)
    ]
    if not wanted:
        last = named[-1][0] if named else ""
        wanted = [e for name, e in scenario.expects if name == last or name.startswith(f"{last}.") or not named]
    return ", ".join(dict.fromkeys(_say(expect) for expect in wanted))


def _say(expect: Expect) -> str:
    within = expect.within
    if expect.agent == "speaks_up" and within:
        return f"speaks up {0.0 - within.get('early', 0.0):g} to {within['full']:+g} s from when it is due"
    if expect.agent == "silent" and expect.content:
        return f"does not say {' or '.join(repr(word) for word in expect.content)}"
    return _VERBS[expect.agent] + (f" within {within['full']:g} s" if "full" in within else "")

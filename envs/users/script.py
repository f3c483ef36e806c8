"""The `script` driver: a user who says fixed things at fixed times, or in reaction to what the agent plays.

It decides frame by frame when the lines of a plan (`envs.users.plan`) start. Its state is a few integers a row, so a
conversation can be copied at any point. It hears the agent only through its activity, and what it decides at the
end of a frame is heard from the next frame on: it is as causal as a person, and it never reads a transcript.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from envs.event import Event, Word
from envs.users.plan import Plan
from envs.users.turn_models import Heard

WAITING, SKIPPED = -1, -2


class Cue(NamedTuple):
    """Mix this audio into that row from this sample on."""

    row: int
    onset: int
    pcm: np.ndarray
    source: str


@dataclass
class _Progress:
    """Where a row stands in its plan: what the future depends on and nothing else."""

    starts: list[int]
    """Start of each line, or WAITING, or SKIPPED."""
    since: list[int]
    """Since when the agent had been speaking as a line was triggered; -1 where that has no meaning."""
    cued: list[bool]
    """Whether its audio was handed out."""
    settled: int = 0
    """When the last line so far is over or was given up."""

    @classmethod
    def start(cls, lines: int) -> _Progress:
        return cls([WAITING] * lines, [-1] * lines, [False] * lines)

    def copy(self) -> _Progress:
        return _Progress(list(self.starts), list(self.since), list(self.cued), self.settled)


class ScriptDriver:
    """Decides when the lines of each row start. Batched; rows know nothing of each other."""

    def __init__(self, batch: int) -> None:
        self.plans: list[Plan | None] = [None] * batch
        self._progress = [_Progress.start(0) for _ in range(batch)]
        self._waiting: dict[int, list[int]] = {}  # row -> lines that wait for the agent

    def reset(self, row: int, plan: Plan) -> list[Cue]:
        """Begin a conversation; returns the cues whose time is known from the start."""
        self.plans[row] = plan
        self._progress[row] = _Progress.start(len(plan.lines))
        return self._settle(row)

    def release(self, row: int) -> None:
        """Another driver has taken over this row."""
        self.plans[row] = None
        self._waiting.pop(row, None)

    def advance(self, heard: Heard) -> list[Cue]:
        """Look at the agent at the end of a frame; returns new cues, none of them before then."""
        if not self._waiting:
            return []
        agent = heard.activity
        speaking, onset, offset = agent.speaking.tolist(), agent.onset.tolist(), agent.offset.tolist()
        times = heard.now.tolist()
        cues: list[Cue] = []
        for row in list(self._waiting):
            fired = False
            for i in self._waiting[row]:
                fired |= self._look(row, i, times[row], speaking[row], onset[row], offset[row])
            if fired:
                cues += self._settle(row)
        return cues

    def _look(self, row: int, i: int, now: int, speaking: bool, onset: int, offset: int) -> bool:
        """Start or give up line `i` if it is time to; True if so."""
        line, progress = self._plan(row).lines[i], self._progress[row]
        eligible = self._end(row, line.after) if line.after is not None else 0
        if now < eligible:
            return False
        wanted = speaking if line.agent == "speaking" else not speaking
        if line.agent == "done":
            wanted &= offset > eligible
        since = max(onset if line.agent == "speaking" else offset, eligible)
        if wanted and now - since >= line.hold:
            progress.starts[i] = now + line.jitter
            progress.since[i] = onset if line.agent == "speaking" else -1
            return True
        if now >= eligible + line.timeout:
            progress.starts[i] = SKIPPED
            progress.settled = max(progress.settled, now)
            return True
        return False

    def _settle(self, row: int) -> list[Cue]:
        """Give a start to every line that waits for the agent no longer; a line only depends on earlier ones."""
        progress, cues = self._progress[row], []
        for i, line in enumerate(self._plan(row).lines):
            parent = progress.starts[line.after] if line.after is not None else 0
            if progress.starts[i] == WAITING:
                if parent == SKIPPED:
                    progress.starts[i] = SKIPPED  # what follows something that never happened does not happen either
                elif line.at is not None:
                    progress.starts[i] = line.at
                elif line.agent is None and line.after is not None and parent >= 0:
                    since = self._end(row, line.after) if line.word is None else parent + line.word
                    progress.starts[i] = since + line.gap
            if progress.starts[i] >= 0 and not progress.cued[i]:
                progress.cued[i] = True
                progress.settled = max(progress.settled, self._end(row, i))
                if line.pcm.size:
                    cues.append(Cue(row, progress.starts[i], line.pcm, line.source))
        self._index(row)
        return cues

    def _index(self, row: int) -> None:
        """Keep the lines whose turn it is to wait for the agent."""
        lines, starts = self._plan(row).lines, self._progress[row].starts
        waiting = [
            i
            for i, line in enumerate(lines)
            if starts[i] == WAITING and line.agent and (line.after is None or starts[line.after] >= 0)
        ]
        if waiting:
            self._waiting[row] = waiting
        else:
            self._waiting.pop(row, None)

    def done_at(self, row: int) -> int:
        """The sample at which the conversation ends, as far as it is known."""
        plan, progress = self._plan(row), self._progress[row]
        if WAITING in progress.starts:
            return plan.longest
        return min(progress.settled + plan.after_script, plan.longest)

    def events(self, row: int) -> list[Event]:
        """All events whose time is settled, those in the future too, in order of onset."""
        found = []
        for i, line in enumerate(self._plan(row).lines):
            start, since = self._progress[row].starts[i], self._progress[row].since[i]
            if start >= 0:
                found += [shifted(event, start, since if event.id == line.id else -1) for event in line.events]
        return sorted(found, key=lambda event: (event.onset, event.id))

    def notes(self, row: int) -> dict[str, Any]:
        """What else the record says about the conversation."""
        return self._plan(row).notes

    def skipped(self, row: int) -> list[dict[str, str]]:
        """Items that never happened because the agent never did what they wait for: id and type."""
        lines, starts = self._plan(row).lines, self._progress[row].starts
        return [{"id": line.id, "type": line.type} for i, line in enumerate(lines) if starts[i] == SKIPPED]

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        for row in rows:
            self.plans[row] = self.plans[source]
            self._progress[row] = self._progress[source].copy()
            self._index(row)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs."""
        return {"plans": list(self.plans), "progress": [progress.copy() for progress in self._progress]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.plans = list(state["plans"])
        self._progress = [progress.copy() for progress in state["progress"]]
        for row, plan in enumerate(self.plans):
            if plan is None:
                self._waiting.pop(row, None)
            else:
                self._index(row)

    def _plan(self, row: int) -> Plan:
        plan = self.plans[row]
        assert plan is not None
        return plan

    def _end(self, row: int, i: int) -> int:
        return self._progress[row].starts[i] + self._plan(row).lines[i].over


def shifted(event: Event, start: int, since: int) -> Event:
    """An event of a line that began at `start`; `since` (unless -1) becomes its anchor `agent_speaking_since`."""
    anchors = {name: sample + start for name, sample in event.anchors.items()}
    if since >= 0:
        anchors["agent_speaking_since"] = since
    return replace(
        event,
        onset=event.onset + start,
        offset=event.offset + start,
        anchors=anchors,
        words=tuple(Word(w.text, w.onset + start, w.offset + start) for w in event.words),
    )

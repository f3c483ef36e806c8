"""The `reactive` driver: users who hear the agent's sound and live by the laws of human timing.

`envs.users.behaviour` decides what each of them says and when; this file lets a batch of them listen and speak, and
writes down what happened as events of the taxonomy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from envs.clock import CLOCK
from envs.episode import from_pcm16
from envs.errors import UptakeError
from envs.event import PAUSE_TYPES, Event, Word
from envs.users.behaviour import FRAME, NEVER, Ear, Said, State, begin, tick
from envs.users.character import Character, Utterance
from envs.users.persona import TURNS
from envs.users.script import Cue, shifted
from envs.users.turn_models import BUILT_IN, Heard, TurnModel, turn_model

log = logging.getLogger(__name__)
_FADE = 120  # samples (5 ms): nobody breaks off with a click


class ReactiveDriver:
    """The users of a batch. Rows know nothing of each other."""

    def __init__(self, batch: int) -> None:
        self.plans: list[Character | None] = [None] * batch
        self._states = [State() for _ in range(batch)]
        self._models: dict[str, TurnModel] = {}
        self._own = np.zeros((batch, FRAME), np.int16)  # what the users say in the frame that the agent plays now

    def reset(self, row: int, plan: Character) -> list[Cue]:
        """Begin a conversation; returns what is said in frames 0 and 1, which no action can reach."""
        self.plans[row], self._states[row] = plan, begin(plan)
        if plan.turn_model not in self._models:
            self._models[plan.turn_model] = turn_model(plan.turn_model)(len(self.plans))
        self._models[plan.turn_model].reset(np.array([row]))
        cues = []
        for now in (0, FRAME):
            tick(plan, self._states[row], Ear(now, False, NEVER, NEVER, (1.0,), (0,)))
            cues += self._speak(row, now)
        return cues

    def release(self, row: int) -> None:
        """Another driver has taken over this row."""
        self.plans[row] = None
        self._own[row] = 0

    def advance(self, heard: Heard) -> list[Cue]:
        """Listen at the end of a frame; returns what is said in the next one."""
        rows = [row for row, plan in enumerate(self.plans) if plan is not None]
        if not rows:
            return []
        plans = [plan for plan in self.plans if plan is not None]
        used = {plan.turn_model for plan in plans}
        user = from_pcm16(self._own) if used - set(BUILT_IN) else self._own
        over = {name: self._over(name, heard, user) for name in used}
        leads = {name: tuple(map(CLOCK.nearest_sample, self._models[name].leads_s)) for name in used}
        activity = heard.activity
        speaking, onset, offset = activity.speaking.tolist(), activity.onset.tolist(), activity.offset.tolist()
        times, cues = heard.now.tolist(), []
        for row, plan in zip(rows, plans, strict=True):
            name = plan.turn_model
            ends = over[name][row] if onset[row] >= 0 else [1.0]  # what was never heard is not for a model to judge
            ear = Ear(times[row], speaking[row], onset[row], offset[row], ends, leads[name])
            tick(plan, self._states[row], ear)
            cues += self._speak(row, times[row])
        return cues

    def _over(self, name: str, heard: Heard, user: np.ndarray) -> list[list[float]]:
        """What a turn model makes of this frame, a probability a row and lead; what is none counts as 0: the user
        waits.

        Raises:
            UptakeError: it does not give one number a row and lead.
        """
        over = np.asarray(self._models[name].update(heard, user))
        if over.shape != (len(self.plans), len(self._models[name].leads_s)) or over.dtype.kind not in "fiub":
            raise UptakeError(
                f"turn model {name!r} gave {over.dtype} of shape {over.shape}, expected one probability for each of "
                f"{len(self.plans)} rows and each of its leads; mend it"
            )
        right = (over >= 0.0) & (over <= 1.0)  # not so for NaN
        for row in np.flatnonzero(~right.all(axis=1)).tolist():
            plan = self.plans[row]
            if plan is not None and plan.turn_model == name:
                if not self._states[row].faults:
                    told = f"{plan.scenario.id}, variant {plan.seeds.variant}"
                    log.warning("turn model %s gave %s, no probability: %s waits", name, over[row].tolist(), told)
                self._states[row].faults += 1
        return np.where(right, over, 0.0).tolist()

    def _speak(self, row: int, now: int) -> list[Cue]:
        """What is heard of a user in the frame that starts at `now`."""
        state, plan = self._states[row], self._plan(row)
        self._own[row] = 0
        if not state.said:
            return []
        said = state.said[-1]
        onset, piece = piece_of(plan.speech(said.utterance).pcm, said.start, said.stop if said.broken else None, now)
        if not len(piece):
            return []
        self._own[row, onset - now : onset - now + len(piece)] = piece
        return [Cue(row, onset, piece, "user")]

    def done_at(self, row: int) -> int:
        """The sample at which the conversation ends, as far as it is known."""
        state, plan = self._states[row], self._plan(row)
        return plan.longest if state.left < 0 else min(state.left + plan.after_script, plan.longest)

    def events(self, row: int) -> list[Event]:
        """All events that have begun or are settled, in order of onset."""
        state, plan = self._states[row], self._plan(row)
        found = [event for said in state.said for event in events_of(plan, said)]
        if state.gave_up:
            found.append(Event("hang-up", "E2", "user", state.left, state.left))
        return sorted(found, key=lambda event: (event.onset, event.id))

    def skipped(self, row: int) -> list[dict[str, str]]:
        """Turns that it never came to take: id and type."""
        plan, turn = self._plan(row), self._states[row].turn
        return [
            {"id": Utterance("turn", i).id, "type": TURNS[name].type}
            for i, (name, _) in enumerate(plan.agenda)
            if i >= turn
        ]

    def notes(self, row: int) -> dict[str, Any]:
        """Frames in which its turn model gave no probability."""
        return {"user_faults": self._states[row].faults}

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        index = np.asarray(list(rows), np.int64)
        for row in index.tolist():
            self.plans[row] = self.plans[source]
            self._states[row] = replace(self._states[source])
        self._own[index] = self._own[source]
        for model in self._models.values():
            model.fork(source, index)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs."""
        models = {name: model.get_state() for name, model in self._models.items()}
        states = [replace(state) for state in self._states]
        return {"plans": list(self.plans), "states": states, "own": self._own.copy(), "models": models}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.plans = list(state["plans"])
        self._states = [replace(one) for one in state["states"]]
        self._own = state["own"].copy()
        for name, kept in state["models"].items():
            if name not in self._models:
                self._models[name] = turn_model(name)(len(self.plans))
            self._models[name].set_state(kept)

    def _plan(self, row: int) -> Character:
        plan = self.plans[row]
        assert plan is not None
        return plan


def piece_of(pcm: np.ndarray, start: int, stop: int | None, now: int) -> tuple[int, np.ndarray]:
    """What is heard of a speech in the frame that starts at `now`: its sample of the episode, and (n,) int16.

    Args:
        pcm: (N,) int16 that began at sample `start`.
        stop: where it was broken off; None where it was not.
    """
    end = len(pcm) if stop is None else min(stop - start + _FADE, len(pcm))
    first, last = max(now - start, 0), min(now + FRAME - start, end)
    piece = pcm[first : max(first, last)]
    if stop is not None and last > stop - start:
        piece = (piece * np.clip((stop - start + _FADE - np.arange(first, last)) / _FADE, 0.0, 1.0)).astype(np.int16)
    return start + first, piece


def events_said(events: Sequence[Event], start: int, since: int, stop: int | None) -> list[Event]:
    """The events of a speech that began at `start`, as far as it was said; `since` belongs to the first of them.

    Args:
        stop: where it was broken off; None where it was not.
    """
    placed = [shifted(event, start, NEVER if i else since) for i, event in enumerate(events)]
    return placed if stop is None else [_broken(event, stop) for event in placed if event.onset < stop]


def events_of(character: Character, said: Said) -> list[Event]:
    """The events of an entry of the log, as far as it was said. Times are samples of the episode."""
    events = character.speech(said.utterance).events
    found = events_said(events, said.start, said.since, said.stop if said.broken else None)
    if said.broken == "collision":
        return [replace(event, type="A6", expects=(), anchors={}) for event in found[:1]]
    if said.broken == "attempt":
        return [replace(event, type="C8", expects=()) for event in found[:1]]
    return found


def _broken(event: Event, stop: int) -> Event:
    words = tuple(Word(w.text, w.onset, min(w.offset, stop)) for w in event.words if w.onset < stop)
    anchors = {name: min(sample, stop) for name, sample in event.anchors.items()}
    text = " ".join(word.text for word in words)
    # A turn that was broken off in a pause ends there and not with its last word: it was still held.
    offset = stop if event.type not in PAUSE_TYPES else min(event.offset, stop)
    return replace(event, offset=offset, words=words, anchors=anchors, text=text)

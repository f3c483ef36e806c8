"""The `llm` driver: users whose next act a language model decides, one at a time.

Time is simulated here as everywhere. A user is asked at moments that follow from what is heard alone: at the start,
when the agent falls silent, every `poll_s` of its speech, after `patience_s` of silence, and when the agent talks over
the user for a second. The decision takes effect `think_s` of simulated time after its moment, however fast or slow the
endpoint is; the batch goes on in between, with the questions of all rows under way at once, and waits only if an answer
that is due has not come. So results do not depend on wall time, except that an answer may fail to come within the
endpoint's `patience_s`, which is a fault and stands in the log.

Fallback: at a fault (no answer in time, nonsense, ...) the user says nothing, and after `faults` of them in a row it
hangs up. It also hangs up when its turns, requests or tokens are used up.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from envs.clock import CLOCK
from envs.event import Event, Word
from envs.users.behaviour import COLLISION, FRAME, MID_TURN, NEARLY_DONE, NEVER
from envs.users.caller import Caller, Offer
from envs.users.character import Speech
from envs.users.decisions import Decided, Decisions, Question
from envs.users.llm_prompt import Decision, Line, instructions, situation
from envs.users.reactive import events_said, piece_of
from envs.users.script import Cue
from envs.users.turn_models import Heard

log = logging.getLogger(__name__)
TEXT_LEAD = CLOCK.samples(0.4)
"""A word of a text stream may lead the sound that speaks it by this much."""
_TURNS = ("speak", "barge_in")


class Said(NamedTuple):
    """Something that was said. Times are samples of the episode."""

    act: str
    speech: Speech
    start: int
    stop: int
    """Where the speech ends, or was broken off."""
    since: int
    """Since when the agent had been speaking; -1 if it was not."""
    broken: bool = False


class Asked(NamedTuple):
    """A question under way."""

    question: Question
    moment: str
    at: int
    due: int


class Armed(NamedTuple):
    """A decision that waits for its moment."""

    decision: Decision
    offer: Offer | None
    since: int


class Ear(NamedTuple):
    """What one user hears at the end of a frame."""

    now: int
    speaking: bool
    onset: int
    offset: int


@dataclass
class State:
    """Where a user stands: all that the future depends on, and the log. Times are samples; -1 is never."""

    said: tuple[Said, ...] = ()
    heard: tuple[tuple[int, int], ...] = ()
    """The agent's speech so far."""
    asked: Asked | None = None
    armed: Armed | None = None
    mark: int = 0
    """When it was asked last: silence and speech from before are known to it."""
    incident: int = NEVER
    """Onset of the agent's speech over its own that it was asked about."""
    missed: str = ""
    """What was decided last and never came to pass, in words."""
    dropped: tuple[str, ...] = ()
    """Acts that never came to pass."""
    faults: int = 0
    """In a row."""
    tokens: int = 0
    left: int = NEVER
    why: str = ""
    """Why it left: `hang_up`, `faults`, `turns`, `requests` or `tokens`."""
    record: tuple[dict[str, Any], ...] = ()

    @property
    def free(self) -> int:
        """From when its mouth is free."""
        return self.said[-1].stop if self.said else 0

    @property
    def turns(self) -> int:
        """Turns and barge-ins so far."""
        return sum(said.act in _TURNS for said in self.said)


class Source(Protocol):
    """Where decisions come from (`Decisions`)."""

    def open(self, user: Any) -> None: ...

    def ask(self, question: Question) -> None: ...

    def take(self, question: Question) -> Decided: ...

    def forget(self, waiting: Iterable[Question]) -> None: ...


class LlmDriver:
    """The users of a batch. Rows know nothing of each other."""

    def __init__(self, batch: int, source: Source | None = None) -> None:
        self.plans: list[Caller | None] = [None] * batch
        self._states = [State() for _ in range(batch)]
        self._source = source or Decisions()

    def reset(self, row: int, plan: Caller) -> list[Cue]:
        """Begin a conversation; nothing is said in frames 0 and 1, since a decision takes longer."""
        self._source.open(plan.user)
        self.plans[row], self._states[row] = plan, State()
        self._ask(row, Ear(0, False, NEVER, NEVER), "start", "The call has just begun; nobody has spoken.", ())
        return []

    def release(self, row: int) -> None:
        """Another driver has taken over this row."""
        self.plans[row], self._states[row] = None, State()

    def advance(self, heard: Heard) -> list[Cue]:
        """Listen at the end of a frame; returns what is said in the next one."""
        rows = [row for row, plan in enumerate(self.plans) if plan is not None]
        if not rows:
            return []
        agent, times = heard.activity, heard.now.tolist()
        speaking, onset, offset = agent.speaking.tolist(), agent.onset.tolist(), agent.offset.tolist()
        ears = {row: Ear(times[row], speaking[row], onset[row], offset[row]) for row in rows}
        for row, ear in ears.items():  # all rows ask before any row waits
            self._listen(row, ear, heard)
        cues = []
        for row, ear in ears.items():
            state = self._states[row]
            if state.asked is not None and state.left < 0 and ear.now >= state.asked.due:
                self._settle(row, ear, state.asked)
            if state.armed is not None and state.left < 0 and ear.now >= state.free:
                self._act(row, ear, state.armed)
            cues += self._speak(row, ear.now)
        self._source.forget(state.asked.question for state in self._states if state.asked is not None)
        return cues

    # -- asking --------------------------------------------------------------------------------------------------------

    def _listen(self, row: int, ear: Ear, heard: Heard) -> None:
        """Follow the agent's speech, and ask where a moment calls for a decision."""
        state = self._states[row]
        if ear.onset >= 0:
            before = state.heard[:-1] if state.heard and state.heard[-1][0] == ear.onset else state.heard
            if state.heard[-1:] != ((ear.onset, ear.offset),):
                state.heard = (*before, (ear.onset, ear.offset))
        if state.left >= 0 or state.asked is not None or ear.now >= self._plan(row).longest:
            return
        found = self._moment(row, ear)
        if found is None:
            return
        used_up = self._used_up(row)
        if used_up:
            self._leave(row, ear.now, used_up)
        else:
            words = heard.words(row) if heard.words is not None else ()
            self._ask(row, ear, *found, [word for word in words if word.onset < ear.now])

    def _moment(self, row: int, ear: Ear) -> tuple[str, str] | None:
        """What calls for a decision now, by name and in words; None where nothing does."""
        state, user = self._states[row], self._plan(row).user

        def past(since: int, seconds: float) -> bool:
            return ear.now - since >= CLOCK.nearest_sample(seconds)

        if state.armed is not None:
            return None
        if ear.now < state.free:
            said = state.said[-1]
            over = ear.speaking and ear.now - max(ear.onset, said.start) >= MID_TURN and ear.onset != state.incident
            if over and said.act in _TURNS and said.since < 0 and said.stop - ear.now > NEARLY_DONE:
                state.incident = ear.onset
                return "overlap", "You are still speaking, and the assistant talks over you."
            return None
        silent = f"The assistant has been silent for {CLOCK.seconds(ear.now - max(ear.offset, 0)):.1f} s"
        if ear.speaking:
            told = f"The assistant is speaking, for {CLOCK.seconds(ear.now - ear.onset):.1f} s so far."
            return ("speech", told) if past(max(ear.onset, state.mark, state.free), user.poll_s) else None
        if ear.offset > max(state.mark, state.free) and past(ear.offset, user.silence_s):
            return "stopped", f"{silent}: it seems to be your turn."
        if past(max(ear.offset, state.mark, state.free), user.patience_s):
            return "silence", f"{silent}, and so have you."
        return None

    def _ask(self, row: int, ear: Ear, moment: str, happening: str, words: Iterable[Word]) -> None:
        state, plan = self._states[row], self._plan(row)
        lines = [
            Line(said.start + said.speech.lead, min(said.stop, ear.now), "you", _text(said))
            for said in state.said
            if said.start + said.speech.lead < ear.now
        ]
        lines += _agent_lines(state.heard, list(words))
        told = situation(plan, ear.now, lines, happening, plan.user.turns - state.turns, state.missed)
        question = Question(plan, len(state.record), instructions(plan), told)
        due = ear.now + CLOCK.nearest_sample(plan.user.think_s)
        state.asked, state.mark, state.missed = Asked(question, moment, ear.now, due), ear.now, ""
        self._source.ask(question)

    def _used_up(self, row: int) -> str:
        state, user = self._states[row], self._plan(row).user
        if state.turns >= user.turns:
            return "turns"
        if len(state.record) >= user.requests:
            return "requests"
        return "tokens" if state.tokens >= user.tokens else ""

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _settle(self, row: int, ear: Ear, asked: Asked) -> None:
        """Take the decision that is due, write it down, and let it take effect."""
        state, plan = self._states[row], self._plan(row)
        decided = self._source.take(asked.question)
        state.asked = None
        line = {"v": 1, "number": asked.question.number, "moment": asked.moment, "asked": asked.at, "due": asked.due}
        told = {"key": asked.question.key, "situation": asked.question.situation}
        state.record = (*state.record, {**line, **told, **decided.to_json()})
        state.tokens += decided.tokens
        decision = decided.decision
        if decision is None:
            state.faults += 1
            name = f"{plan.scenario.id}, variant {plan.seeds.variant}"
            seconds = CLOCK.seconds(asked.at)
            log.warning("no decision: %s, at %.2f s: %s: %s", name, seconds, decided.fault, decided.detail)
            if state.faults >= plan.user.faults:
                self._leave(row, max(ear.now, state.free), "faults")
            return
        state.faults = 0
        if decision.act == "yield":
            if ear.now < state.free:
                state.said = (*state.said[:-1], state.said[-1]._replace(stop=ear.now, broken=True))
        elif decision.act != "wait":
            offer = decided.offer or plan.offers.get(decision.words)
            state.armed = Armed(decision, offer, ear.now)

    def _act(self, row: int, ear: Ear, armed: Armed) -> None:
        """Do what was decided if its moment has come, and drop it when it will not come any more."""
        state, plan, decision = self._states[row], self._plan(row), armed.decision
        wait = CLOCK.nearest_sample(decision.seconds)
        at = ear.now if decision.agent else max(ear.now, armed.since + wait)
        if decision.agent:
            since = ear.onset if decision.agent == "speaking" else max(ear.offset, 0)
            ready = ear.speaking == (decision.agent == "speaking") and ear.now - since >= wait
        else:
            ready = at < ear.now + FRAME
        late = bool(decision.agent) and ear.now - armed.since >= CLOCK.nearest_sample(plan.user.timeout_s)
        if not ready and not late:
            return
        state.armed = None
        if decision.act == "hang_up" and ((late and not ready) or armed.offer is None):
            self._leave(row, at, "hang_up")  # its moment may not have come: nobody stays on the line for that
        elif ready:
            self._say(row, ear, armed, at + plan.jitter(len(state.said)) if decision.agent else at)
        else:
            state.dropped = (*state.dropped, decision.act)
            state.missed = f"{decision.act}, once the assistant was {decision.agent} for {decision.seconds:g} s"

    def _say(self, row: int, ear: Ear, armed: Armed, at: int) -> None:
        state, plan, decision, offer = self._states[row], self._plan(row), armed.decision, armed.offer
        assert offer is not None
        over = ear.speaking and at - ear.onset >= COLLISION
        name = f"{decision.act}{sum(said.act == decision.act for said in state.said)}"
        item = plan.item(name, decision.act, decision.intent, offer, over)
        speech = plan.speech(item, offer, over)
        said = Said(decision.act, speech, at, at + speech.over, ear.onset if over else NEVER)
        state.said, state.mark = (*state.said, said), max(state.mark, said.stop)
        if decision.act == "hang_up":
            state.left, state.why = said.stop, "hang_up"

    def _leave(self, row: int, at: int, why: str) -> None:
        state = self._states[row]
        state.left, state.why, state.armed, state.asked = at, why, None, None

    def _speak(self, row: int, now: int) -> list[Cue]:
        """What is heard of a user in the frame that starts at `now`."""
        said = self._states[row].said[-1:]
        if not said:
            return []
        onset, piece = piece_of(said[0].speech.pcm, said[0].start, said[0].stop if said[0].broken else None, now)
        return [Cue(row, onset, piece, "user")] if len(piece) else []

    # -- the record ----------------------------------------------------------------------------------------------------

    def done_at(self, row: int) -> int:
        """The sample at which the conversation ends, as far as it is known."""
        state, plan = self._states[row], self._plan(row)
        return plan.longest if state.left < 0 else min(state.left + plan.after_script, plan.longest)

    def events(self, row: int) -> list[Event]:
        """All events that have begun or are settled, in order of onset."""
        state, found = self._states[row], []
        for said in state.said:
            found += events_said(said.speech.events, said.start, said.since, said.stop if said.broken else None)
        if state.left >= 0 and not (state.said and state.said[-1].act == "hang_up"):
            found.append(Event("hang-up", "E2", "user", state.left, state.left))
        return sorted(found, key=lambda event: (event.onset, event.id))

    def skipped(self, row: int) -> list[dict[str, str]]:
        """What was decided and never came to pass."""
        return [{"id": f"{act}?{i}", "type": _SKIPPED[act]} for i, act in enumerate(self._states[row].dropped)]

    def notes(self, row: int) -> dict[str, Any]:
        """What the model was told once, and what its decisions came to."""
        state, plan = self._states[row], self._plan(row)
        faults = Counter(line["fault"] for line in state.record if line["fault"])
        endpoint = plan.user.endpoint
        return {
            "llm": {
                "model": endpoint.model,
                "base_url": endpoint.base_url,
                "body": endpoint.fields,
                "instructions": instructions(plan),
                "decisions": len(state.record),
                "cached": sum(line["cached"] for line in state.record),
                "faults": dict(faults),
                "tokens": state.tokens,
                "left": state.why,
            }
        }

    def decisions(self, row: int) -> tuple[dict[str, Any], ...]:
        """Every decision, with what was asked: `decisions.jsonl` of an episode."""
        return self._states[row].record

    # -- state ---------------------------------------------------------------------------------------------------------

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        for row in rows:
            self.plans[row], self._states[row] = self.plans[source], replace(self._states[source])

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs."""
        return {"plans": list(self.plans), "states": [replace(state) for state in self._states]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.plans = list(state["plans"])
        self._states = [replace(one) for one in state["states"]]

    def _plan(self, row: int) -> Caller:
        plan = self.plans[row]
        assert plan is not None
        return plan


_SKIPPED = {"speak": "A3", "barge_in": "C1", "backchannel": "D1", "aside": "D5"}


def _text(said: Said) -> str:
    event = said.speech.events[0]
    if not said.broken:
        return event.text or "(a cough)"
    return " ".join(word.text for word in event.words if said.start + word.onset < said.stop) + " -"


def _agent_lines(heard: Iterable[tuple[int, int]], words: list[Word]) -> list[Line]:
    """The agent's speech with the words that it speaks; where none are known, that it spoke."""
    lines = []
    for onset, offset in heard:
        spoken = [word.text for word in words if onset - TEXT_LEAD <= word.onset < offset]
        words = [word for word in words if word.onset >= offset]
        lines.append(Line(onset, offset, "assistant", " ".join(spoken) or "(speech that nobody wrote down)"))
    return lines

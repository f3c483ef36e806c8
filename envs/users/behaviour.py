"""How a reactive user behaves: a state machine a conversation, which looks at what it heard at the end of each frame.

It takes the turns of its agenda, waits for answers, says "mm-hm", barges in, gives way or holds when the agent speaks
over it, asks again, says "hello?", and hangs up in the end. `State` is a few integers and the log of what was said;
`tick` begins or breaks off speech at a sample of the next frame, so that it is as causal as a person. Every draw is
named by what it is about (`Character`): there is no stream of random numbers to copy.

What it can not do: understand. It never sees a transcript; that an answer was wrong is for a judge to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from envs.clock import CLOCK
from envs.users.character import Character, Utterance

ANSWER = CLOCK.samples(0.6)
"""Agent speech that counts as an answer; less is a backchannel (`rewards.timing` draws the line there, too)."""
COLLISION = CLOCK.samples(0.25)
"""Starts no further apart than this are simultaneous (taxonomy A6)."""
EARLY = CLOCK.samples(0.3)
"""Speech over the last words of an agent that may still end by itself: a user who came in too early hears by then that
it does not."""
MID_TURN = CLOCK.samples(1.0)
"""Agent speech over a running turn that may still be a backchannel: the user does not give way before (tau-voice)."""
NEARLY_DONE = CLOCK.samples(0.3)
"""A turn that is this near to its end is finished in any case."""
IGNORED = CLOCK.samples(1.0)
"""An agent that still talks this long after a barge-in has not stopped for it."""
QUIET = CLOCK.samples(2.5)
"""Silence that a user wants after a stop command."""
SPACING = CLOCK.samples(3.0)
"""Between two backchannels (tau-voice)."""
CLAUSE = (CLOCK.samples(0.08), CLOCK.samples(0.32))
"""A dip of the agent's speech of this length ends a clause; a longer one ends the speech."""
NEAR = CLOCK.samples(1.0)
"""A backchannel comes so much sooner or later than it is due for the end of a clause."""
_HOLDS_AFTER = 2  # times that it gave a turn up to the agent
NEVER = -1
FRAME = CLOCK.frame


class Said(NamedTuple):
    """One entry of the log. Times are samples of the episode."""

    utterance: Utterance
    start: int
    stop: int
    """Where the speech ends, or was broken off."""
    since: int
    """Since when the agent had been speaking; -1 if it was not."""
    broken: str = ""
    """Why it was broken off: `collision`, `yield` or `attempt`; empty when it was not."""


@dataclass
class State:
    """Where a user stands: all that the future depends on. Times are samples; -1 is never."""

    said: tuple[Said, ...] = ()
    turn: int = 0
    """The turn of the agenda that it takes next, or has taken and waits on."""
    pending: str = ""
    """`turn` or `cut`: what it waits to have answered; empty when it wants to speak."""
    attempt: int = 0
    """How often it has begun this turn."""
    unanswered: int = 0
    yielded: int = 0
    wants_from: int = 0
    """Since when it has wanted to speak, or has waited for an answer."""
    asked_from: int = NEVER
    """When it first began what is pending: agent speech older than that is no answer to it."""
    not_before: int = 0
    due: int = NEVER
    """When it will speak, if the agent stays silent."""
    answers: int = 0
    entry: int = NEVER
    """When it will barge in, if the agent still speaks."""
    series: int = 0
    """Barge-ins so far, rounds and repetitions not counted."""
    rounds: int = 0
    """Rounds left of the last one."""
    repeats: int = 0
    """Repetitions left of the last one."""
    listened: int = 0
    """Samples of agent speech that it has listened to, murmuring or not."""
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Backchannels, asides, coughs, hellos."""
    hm_next: int = NEVER
    """In samples listened, as `aside_next`; `cough_next` is a time."""
    aside_next: int = NEVER
    cough_next: int = NEVER
    hm_at: int = NEVER
    incident: int = NEVER
    """Onset of the agent's speech over this turn that was decided on."""
    yield_at: int = NEVER
    faults: int = 0
    """Frames in which its turn model gave no probability."""
    left: int = NEVER
    gave_up: bool = False

    @property
    def free(self) -> int:
        """From when its mouth is free."""
        return self.said[-1].stop if self.said else 0


class Ear(NamedTuple):
    """What one user hears at the end of a frame."""

    now: int
    speaking: bool
    onset: int
    offset: int
    ends: Sequence[float]
    """Probability that the agent's turn is over after each of `leads`; 1 before it has said anything."""
    leads: tuple[int, ...]
    """Samples from now, 0 first."""

    @property
    def over(self) -> float:
        """Probability that the agent's turn is over."""
        return self.ends[0]

    def ends_within(self, samples: int) -> float:
        """Probability that it is over so soon: by the longest lead that is no longer."""
        return next(p for p, lead in zip(reversed(self.ends), reversed(self.leads[: len(self.ends)]), strict=True)
                    if lead <= max(samples, 0))  # fmt: skip


def begin(character: Character) -> State:
    """A user before its first word."""
    state = State(due=character.draw("opening"))
    state.hm_next = _first(character, character.number("backchannels_per_min"))
    state.aside_next = _after(character, "aside", 0, character.number("side_talk_per_min"), 0)
    state.cough_next = _after(character, "cough", 0, character.number("coughs_per_min"), 0)
    return state


def tick(character: Character, state: State, ear: Ear) -> None:
    """Decide what begins or ends in the frame that starts at `ear.now`."""
    if state.left >= 0:
        return
    speaks = bool(state.said) and ear.now < state.free
    if ear.speaking and not (speaks and state.said[-1].utterance.what in ("turn", "cut")):
        state.listened += FRAME
    if speaks:
        _while_speaking(character, state, ear)
        return
    if state.pending:
        _wait(character, state, ear)
    if state.left < 0 and not state.pending and ear.now >= state.free:
        _want(character, state, ear)
    if state.left < 0 and ear.now >= state.free:
        _murmur(character, state, ear)


def _say(character: Character, state: State, ear: Ear, utterance: Utterance, at: int) -> Said:
    """Begin an utterance so that its first word sounds at `at`, or as soon as it can."""
    speech = character.speech(utterance)
    start = max(at - speech.lead, ear.now)
    since = ear.onset if ear.speaking else NEVER
    said = Said(utterance, start, start + speech.over, since)
    state.said += (said,)
    return said


def _starts(character: Character, utterance: Utterance, at: int, ear: Ear) -> bool:
    """Whether an utterance whose first word is to sound at `at` begins in this frame."""
    return at - character.speech(utterance).lead < ear.now + FRAME


# -- while it speaks ---------------------------------------------------------------------------------------------------


def _while_speaking(character: Character, state: State, ear: Ear) -> None:
    said = state.said[-1]
    utterance = said.utterance
    if utterance.what == "turn" and not utterance.over:
        _meet(character, state, ear, said)
    elif utterance.what == "cut":
        limit = character.intent(utterance.number).gives_up_s
        if limit is not None and ear.speaking and ear.onset < said.start:
            at = said.start + character.speech(utterance).lead + CLOCK.nearest_sample(limit)
            if at < min(ear.now + FRAME, said.stop):
                _break_off(state, ear, at, "attempt")
                state.rounds = state.repeats = 0


def _meet(character: Character, state: State, ear: Ear, said: Said) -> None:
    """The agent speaks over a turn: give way to it or hold."""
    first = said.start + character.speech(said.utterance).lead
    if not ear.speaking:
        return
    early = ear.onset < first - COLLISION
    if state.incident != ear.onset:
        state.incident, state.yield_at = ear.onset, NEVER
        if state.yielded < _HOLDS_AFTER and character.chance("yields", len(state.said)) < character.number("yields"):
            overlap = character.draw("overlap", len(state.said))
            collides = abs(ear.onset - first) <= COLLISION
            state.yield_at = max(ear.onset, first) + overlap + (0 if collides else EARLY if early else MID_TURN)
    if state.yield_at < 0 or state.yield_at >= ear.now + FRAME or said.stop - state.yield_at <= NEARLY_DONE:
        return
    why = "attempt" if early else "collision" if abs(ear.onset - first) <= COLLISION else "yield"
    _break_off(state, ear, state.yield_at, why)
    state.yielded += 1
    state.attempt += 1


def _break_off(state: State, ear: Ear, at: int, why: str) -> None:
    stop = max(at, ear.now)
    state.said = (*state.said[:-1], state.said[-1]._replace(stop=stop, broken=why))
    state.pending, state.wants_from, state.due, state.entry = "", stop, NEVER, NEVER


# -- while it waits for an answer --------------------------------------------------------------------------------------


def _wait(character: Character, state: State, ear: Ear) -> None:
    asked = _asked(state)
    if ear.onset > state.asked_from and ear.offset - max(ear.onset, asked.stop) >= ANSWER:
        _answered(character, state, max(ear.onset, asked.stop))
        return
    ignored = ear.speaking and ear.onset <= state.asked_from
    if asked.utterance.what == "cut":
        if ignored:
            if ear.now >= asked.stop + IGNORED:
                _insist(character, state, ear, asked)
            return
        patience = _patience(character, state)
        if not ear.speaking and ear.now - asked.stop >= patience:
            state.pending, state.wants_from, state.rounds = "", ear.now, 0  # it goes on by itself
        return
    at = asked.stop + _patience(character, state)
    if at >= ear.now + FRAME or (ear.speaking and not ignored):
        return
    state.unanswered += 1
    tries = round(character.number("tries"))
    if state.unanswered > tries:
        state.left, state.gave_up = max(at, ear.now), True
    elif state.unanswered == tries and tries > 1 and character.has("hello") and not ignored:
        hellos = state.counts[3]
        _say(character, state, ear, Utterance("hello", hellos, turn=state.turn), at)
        state.counts = (*state.counts[:3], hellos + 1)
    else:
        state.attempt += 1
        _say(character, state, ear, Utterance("turn", state.turn, state.attempt, ignored, state.turn), at)
    state.wants_from = state.free


def _asked(state: State) -> Said:
    """The utterance that waits for an answer."""
    return next(said for said in reversed(state.said) if said.utterance.what in ("turn", "cut", "hello"))


def _patience(character: Character, state: State) -> int:
    return character.draw("patience", state.turn, state.unanswered, scale=character.number("patience_s"))


def _answered(character: Character, state: State, since: int) -> None:
    """The agent has begun an answer: listen to it, and perhaps make up one's mind to interrupt it."""
    interrupts = state.rounds > 0
    if state.pending == "turn":
        interrupts = character.chance("barges_in", state.turn) < character.number("barges_in")
        state.turn += 1
        state.attempt = state.unanswered = state.yielded = 0
    state.pending, state.wants_from, state.due = "", since, NEVER
    state.answers += 1
    state.entry = NEVER
    if interrupts:
        state.entry = since + character.draw("entry", state.answers)


def _insist(character: Character, state: State, ear: Ear, asked: Said) -> None:
    """The agent talks on over a barge-in: say it again, louder, or leave it."""
    if state.repeats > 0:
        state.repeats -= 1
        again = asked.utterance._replace(attempt=asked.utterance.attempt + 1)
        _say(character, state, ear, again, ear.now)
    else:
        state.pending, state.wants_from, state.rounds = "", ear.now, 0


# -- while it wants to speak -------------------------------------------------------------------------------------------


def _want(character: Character, state: State, ear: Ear) -> None:
    if state.entry >= 0:
        again = state.rounds > 0
        index = state.series - 1 if again else state.series
        attempt = character.intent(index).rounds - state.rounds if again else 0
        cut = Utterance("cut", index, attempt, turn=max(0, state.turn - 1))
        if not ear.speaking:
            if ear.over >= character.number("sure"):
                state.entry, state.rounds = NEVER, 0  # too late: the answer is over
        elif _starts(character, cut, state.entry, ear):
            _barge_in(character, state, ear, cut)
            return
    more = state.turn < len(character.agenda)
    utterance = Utterance("turn", state.turn, state.attempt, turn=state.turn) if more else Utterance("bye", 0)
    patience = CLOCK.nearest_sample(character.number("listens_s"))
    if ear.now - state.wants_from >= patience:  # whatever the agent does: nobody waits for ever
        if more:
            _take(character, state, ear, utterance._replace(over=ear.speaking), ear.now)
        else:
            state.left = ear.now
        return
    offset = character.draw("fto", len(state.said))  # what it is up to; how well that comes out depends on its ear
    if ear.ends_within(-offset) < character.number("sure"):
        state.due = NEVER
        return
    if state.due < 0:
        state.due = max(max(ear.offset, state.free) + offset, ear.now, state.not_before)
    if more and _starts(character, utterance, state.due, ear):
        _take(character, state, ear, utterance, state.due)
    elif not more and state.due < ear.now + FRAME:
        if character.has("bye"):
            _say(character, state, ear, utterance, state.due)
        state.left = max(state.due, ear.now, state.free)


def _take(character: Character, state: State, ear: Ear, utterance: Utterance, at: int) -> None:
    said = _say(character, state, ear, utterance, at)
    state.pending, state.wants_from, state.asked_from = "turn", said.stop, said.start
    state.due = state.hm_at = state.incident = state.yield_at = state.entry = NEVER
    state.rounds = 0


def _barge_in(character: Character, state: State, ear: Ear, cut: Utterance) -> None:
    intent = character.intent(cut.number)
    said = _say(character, state, ear, cut, state.entry)
    if state.rounds > 0:
        state.rounds -= 1
    else:
        state.series += 1
        state.rounds, state.repeats = intent.rounds - 1, intent.repeats
    state.entry = state.due = state.hm_at = NEVER
    if intent.answered:
        state.pending, state.wants_from, state.asked_from = "cut", said.stop, said.start
    elif not intent.head:
        state.wants_from, state.not_before = said.stop, said.stop + QUIET


# -- beside the conversation -------------------------------------------------------------------------------------------


def _murmur(character: Character, state: State, ear: Ear) -> None:
    """Backchannels, asides and coughs: they change nothing but the mouth and their own clocks."""
    end = ear.now + FRAME
    hms, asides, coughs, hellos = state.counts
    occupied = state.entry >= 0 and state.entry - ear.now < MID_TURN
    turn = min(state.turn, len(character.agenda) - 1)
    if ear.speaking and not occupied and 0 <= state.aside_next <= state.listened:
        _say(character, state, ear, Utterance("aside", asides, turn=turn), ear.now)
        rate = character.number("side_talk_per_min")
        state.aside_next = state.listened + _after(character, "aside", asides + 1, rate, 0)
        state.counts, state.hm_at = (hms, asides + 1, coughs, hellos), NEVER
        return
    if 0 <= state.cough_next < end:
        at, rate = ear.now, character.number("coughs_per_min")
        held = occupied or state.cough_next < ear.now  # it fell into speech: nobody saves a cough up for later
        if not held:
            at = _say(character, state, ear, Utterance("cough", coughs, turn=turn), state.cough_next).stop
        state.cough_next = at + _after(character, "cough", coughs + 1, rate, 0)
        state.counts = (hms, asides, coughs + 1, hellos)
        if not held:
            return
    if state.pending or occupied or not 0 <= state.hm_next <= state.listened + NEAR:
        return
    last = next((said.stop for said in reversed(state.said) if said.utterance.what == "hm"), NEVER)
    rate = character.number("backchannels_per_min")
    if last >= 0 and ear.now < last + _spacing(rate):
        return
    dip = ear.now - ear.offset
    if state.hm_at < 0:
        if CLAUSE[0] <= dip < CLAUSE[1]:
            state.hm_at = ear.offset + character.draw("backchannel_lag", hms)
        elif ear.speaking and state.listened >= state.hm_next + NEAR:
            state.hm_at = ear.now + int(character.chance("hm", hms) * FRAME)
    if state.hm_at >= 0 and dip >= CLAUSE[1]:
        state.hm_at = NEVER  # the speech is over: the next thing to say is a turn
    elif state.hm_at >= 0 and state.hm_at < end and ear.speaking:
        _say(character, state, ear, Utterance("hm", hms, turn=turn), state.hm_at)
        # From when it was due and not from now: whatever had to be waited for, they come as often as the persona says.
        state.hm_next += _after(character, "hm", hms + 1, rate, _spacing(rate))
        state.counts, state.hm_at = (hms + 1, asides, coughs, hellos), NEVER


def _first(character: Character, per_minute: float) -> int:
    """Samples to the first backchannel, as if it had listened for long already: the rest of an interval."""
    if per_minute <= 0:
        return NEVER
    into, spacing = CLOCK.nearest_sample(character.chance("listened") * 60.0 / per_minute), _spacing(per_minute)
    return into if into < spacing else _after(character, "hm", 0, per_minute, spacing)


def _spacing(per_minute: float) -> int:
    """Samples between two backchannels; who has many has them closer."""
    return min(SPACING, CLOCK.nearest_sample(30.0 / per_minute))


def _after(character: Character, what: str, index: int, per_minute: float, spacing: int) -> int:
    """Samples to the next of something that happens so often a minute, and never sooner than `spacing`."""
    if per_minute <= 0:
        return NEVER
    mean = 60.0 / per_minute
    return spacing + character.draw("interval", what, index, scale=mean - CLOCK.seconds(spacing))

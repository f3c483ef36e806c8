"""What to do while nobody speaks: wait, ask again once, and say nothing to a dead line."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.text import babbles
from rewards.timing import RESPONSE_SECONDS, SHORTEST_ANSWER_SECONDS, late_score
from rewards.verdict import Verdict
from rewards.view import EpisodeView, Utterance

HOLD_SECONDS = 8.0
"""A user who asked for a moment has it for so long, or until the user's next turn (taxonomy B3: 8 to 15 s)."""
DUE_SECONDS = 7.5
EARLY_SECONDS, FULL_SECONDS, ZERO_SECONDS = 2.5, 2.5, 7.5
"""A silence after the agent's question is asked about after 5 to 10 s; at 15 s the user is away (LiveKit)."""
APART_SECONDS = 5.0
"""A second prompt sooner than this after the first is pressing."""
PROMPTS = 2
"""More than so many prompts in one silence are nagging."""
DEAD_FREE_SECONDS = 2.0
"""Speech up to so long after a hang-up was on its way."""
DEAD_END_SECONDS = 10.0
DEAD_WORST_SECONDS = 3.0
OVER_WORST_SECONDS = 1.0

Judged = tuple[float | None, dict[str, float], tuple[int, int]]
"""Value, raw figures, and the first and last decision that they are about, in samples."""


@reward(
    "silence_handling",
    axis="silence",
    events=["B3", "E1", "E2", "E4"],
    horizon_s=17.0,
    beside=["turn_taking", "quality"],
)
def silence_handling(view: EpisodeView, event: Event) -> Verdict:
    """Wait when asked to, ask again once when nothing comes, do not talk over a late answer, and let a dead line be.

    Source: taxonomy B3, E1, E2, E4. No published reward has such an axis; waiting for ever is perfect in most of them.

    Hold (B3: "one second"; a silence E4 before a late answer, or E1 of which `silent` is expected): from the end of the
    user's words (or the start of the silence, for an event without words) to the user's next turn, at most 8 s. 1 for
    silence or one acknowledgement (at most 1.0 s and two words), minus 0.5 for each further one, not below -0.5; taking
    the floor costs all of that: -1 at once, rising to -0.5 at 8 s.

    Silence after the agent's question (E1, the event spans it): ask again once. The first prompt (a turn, or 0.6 s and
    two words) earns 1 from 5 to 10 s after the onset, 0 at 15 s and -1 at 20 s, and when it comes early, linearly down
    to -1 at 0 s; one that babbles (`rewards.text.babbles`) at most 0. None at all: -1, but 1 where the user speaks
    again before 10 s have passed. Each prompt after the second costs 0.5, so does the second when it comes less than
    5 s after the first, and so does each lesser sound after the first. A `speaks_up` expectation moves the band: round
    the anchor `due` (7.5 s after the onset) by its `within: {early, full, zero}` (2.5, 2.5 and 7.5 s).

    Hang-up (E2, from the moment of it): speech later than 2 s after it counts, up to 10 s: 1 for none, -1 from 3 s on.

    Late answer (E4 with the user's words): turns that sound during it, beginning before it or inside: 1 for none,
    linear to -1 at 1 s. Having moved on is talking over it.

    None where E1 begins while the agent still talks (more than 0.5 s into it; a hold is broken by that: -1), and when
    the episode ends before the silence that is judged has: at 3 s of a hold, at 15 s of E1, at 5 s of E2.

    Degenerate policies: silent 1 on B3, E2 and E4 and -1 on E1; always talking -1 or None; backchannels only -0.5 on
    B3, -1 on E1 and about -1 on E2; a metronome below 0. It must stand beside terms that want an answer.
    Raw: `talk_s`, `first_s` (from the start of the silence, absent for nothing), `prompts`, `acknowledgements`.
    """
    judge = {"B3": _hold, "E1": _unanswered, "E2": _dead, "E4": _late_answer}[event.type]
    if (event.type == "E4" and not event.words) or (event.type == "E1" and event.expected("silent") is not None):
        judge = _hold
    value, raw, (first, last) = judge(view, event)
    return Verdict(value, view.credit(min(first, view.end), min(last, view.end)), raw)


def _after(view: EpisodeView, start: int, stop: int) -> list[Utterance]:
    """What the agent begins to say in [start, stop), not what merely goes on after a breath."""
    return [said for said in view.utterances if start <= said.onset < stop]


def _still_talking(view: EpisodeView, start: int) -> bool:
    """Whether the agent goes on for more than 0.5 s after a sample: then this is no silence of its own."""
    running = view.utterance_at(start)
    return running is not None and running.offset > start + view.samples(0.5)


def _hold(view: EpisodeView, event: Event) -> Judged:
    start = event.offset if event.words else event.onset
    back = view.next_user_turn(start + 1) if event.words else event.offset
    stop = min(start + view.samples(HOLD_SECONDS), back, view.end)
    said = _after(view, start, stop)
    turns = [one for one in said if one.takes_floor]
    raw = {
        "acknowledgements": float(len(said) - len(turns)),
        "talk_s": view.seconds(sum(u.offset - u.onset for u in said)),
    }
    if said:
        raw["first_s"] = view.seconds(said[0].onset - start)
    last = turns[0].onset if turns else start
    if stop == view.end and view.end < start + view.samples(RESPONSE_SECONDS):
        return None, raw, (start, last)  # too little of the silence is known
    if _still_talking(view, start):
        return -1.0, raw, (start, start)
    if turns:
        waited = view.seconds(turns[0].onset - start) / HOLD_SECONDS
        return -1.0 + 0.5 * waited, raw, (start, last)
    return max(-0.5, 1.0 - 0.5 * max(0, len(said) - 1)), raw, (start, last)


def _band(event: Event, view: EpisodeView) -> tuple[float, float, float]:
    """Seconds of the silence from which on a prompt is right, up to which it is, and at which it is worth nothing."""
    expect = event.expected("speaks_up")
    within = {} if expect is None else expect.within
    due = view.seconds(event.anchors["due"] - event.onset) if "due" in event.anchors else DUE_SECONDS
    early, full = within.get("early", EARLY_SECONDS), within.get("full", FULL_SECONDS)
    zero = within.get("zero", full + (ZERO_SECONDS - FULL_SECONDS))
    if not (early >= 0.0 and 0.0 <= full < zero):
        raise ValueError(f"event {event.id!r}: within {early}, {full}, {zero}; needs early >= 0 and 0 <= full < zero")
    return due - early, due + full, due + zero


def _unanswered(view: EpisodeView, event: Event) -> Judged:
    early, full, zero = _band(event, view)
    start, due = event.onset, event.onset + view.samples(full)
    said = _after(view, start, min(event.offset, view.end))
    prompts = [u for u in said if u.takes_floor or _is_prompt(u)]
    sounds = len(said) - len(prompts)
    raw = {"prompts": float(len(prompts)), "acknowledgements": float(sounds)}
    raw["talk_s"] = view.seconds(sum(u.offset - u.onset for u in said))
    decided = prompts[0].onset if prompts else min(event.offset, due)
    if _still_talking(view, start) or view.end < min(event.offset, start + view.samples(zero)):
        return None, raw, (start, decided)
    if prompts:
        at = raw["first_s"] = view.seconds(prompts[0].onset - start)
        value = 2.0 * at / early - 1.0 if at < early else late_score(at, full, zero)
        if babbles(prompts[0].words):
            value = min(0.0, value)
    else:
        value = 1.0 if event.offset < due else -1.0
    hurried = len(prompts) > 1 and prompts[1].onset - prompts[0].offset < view.samples(APART_SECONDS)
    nagging = max(0, len(prompts) - PROMPTS) + max(0, sounds - 1)
    return max(-1.0, value - 0.5 * hurried - 0.5 * nagging), raw, (decided, decided)


def _is_prompt(said: Utterance) -> bool:
    return said.seconds >= SHORTEST_ANSWER_SECONDS and (said.words is None or len(said.words) >= 2)


def _dead(view: EpisodeView, event: Event) -> Judged:
    start = event.onset + view.samples(DEAD_FREE_SECONDS)
    stop = event.onset + view.samples(DEAD_END_SECONDS)
    spoken = sum(max(0, min(int(off), stop) - max(int(on), start)) for on, off in view.agent_activity)
    talk = view.seconds(spoken)
    raw = {"talk_s": talk}
    if view.end < start + view.samples(RESPONSE_SECONDS):
        return None, raw, (event.onset, event.onset)
    return 1.0 - 2.0 * min(1.0, talk / DEAD_WORST_SECONDS), raw, (start, min(stop, view.end) - view.samples(2.0))


def _late_answer(view: EpisodeView, event: Event) -> Judged:
    over = [(max(u.onset, event.onset), min(u.offset, event.offset)) for u in view.turns]
    talk = view.seconds(max([0, *(off - on for on, off in over)]))
    return 1.0 - 2.0 * min(1.0, talk / OVER_WORST_SECONDS), {"talk_s": talk}, (event.onset, event.onset)

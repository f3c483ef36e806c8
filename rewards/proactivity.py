"""Speaking of one's own accord: at the beginning, at a signal, at a moment that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envs.event import Event
from rewards.registry import reward
from rewards.text import babbles, contains_any
from rewards.timing import RESPONSE_SECONDS, late_score, offset_score
from rewards.verdict import Verdict
from rewards.view import EpisodeView, Utterance, is_user_turn

BANDS: Mapping[str, tuple[float, float, float]] = {
    "A5": (0.0, 2.2, 4.0),
    "E5": (0.0, 1.5, 3.0),
    "E6": (0.3, 0.3, 1.0),
    "G2": (0.0, 1.5, 3.0),
}
"""Seconds round `due`: so much before and so much after still earns everything, and this much after earns nothing."""
OPENING_SECONDS = 0.3
"""An opening without the anchor `due` is due so long after its onset."""
EARLY_SECONDS = 1.0
"""An onset up to this long before the band is an early one; before that it is a false alarm."""
FALSE_ALARM = 0.5


@reward(
    "proactivity",
    axis="proactivity",
    events=sorted(BANDS),
    horizon_s=5.0,
    beside=["ignore", "turn_taking", "quality"],
)
def proactivity(view: EpisodeView, event: Event) -> Verdict:
    """Greet who has just connected, speak up at the signal or at the moment that one was asked for, and not before.

    Source: taxonomy A5 (opening, 0.3 to 2.5 s after the connection), E5 (a signal that the agent was asked to watch
    for, up to 1.5 s after it), E6 (a moment, +- 0.3 s: the time axis of Game-Time, arXiv 2509.26388) and G2 (a reason
    to interrupt, as E5). No published reward pays an agent for beginning; silence is the best under all of them.

    The moment is the anchor `due`; without it the onset, and for A5 0.3 s after it. `within` of the event's `speaks_up`
    expectation is {early, full, zero} in seconds round it; by default 0, 2.2, 4 for A5, 0, 1.5, 3 for E5 and G2, and
    0.3, 0.3, 1 for E6.

    Value, by the first speech that begins later than 1 s before the band: 1 inside [due - early, due + full], linear
    through 0 at `zero` on, and before the band as the early side of `offset_score`, down to -1 at 1 s; none is -1, and
    so is speech that has been running since before. At most 0 when what is said holds none of the expected words, no
    words at all though the agent has a text stream, or babbles. Each false alarm costs 0.5: speech that begins earlier
    than that, but later than 3 s after the user's last turn before (up to there it answers the request). The sum is
    not below -1.

    An event of these types of which `silent` is expected (a signal that was not the one) is the other way round: from
    its onset to 1.5 s after its end, 1 for nothing, and each sound that begins there costs 1. What begins within 3 s
    after a turn of the user's answers that turn, here as well.

    None when the episode ends before `zero`, or before that time is over.

    Degenerate policies: silent, always talking -1; a metronome, random speech and backchannels are false alarms, -1
    where the wait is long; a mumbler 0. Whoever speaks up at every sound loses on `ignore`, which must stand beside
    it, in packs that have sounds that nobody asked to be told of.
    Raw: `offset_s` (from `due`, signed, absent for none), `false_alarms`, `said` (1 when it says what is expected).
    """
    if event.expected("silent") is not None:
        return _uncalled(view, event)
    early, full, zero = _band(event)
    due = event.anchors.get("due", event.onset + view.samples(OPENING_SECONDS if event.type == "A5" else 0.0))
    begins = due - view.samples(early + EARLY_SECONDS)
    turns = [e.offset for e in view.events if e.source == "user" and is_user_turn(e) and e.offset <= due]
    watch = max(turns) + view.samples(RESPONSE_SECONDS) if turns else 0
    alarms = sum(watch <= said.onset < begins for said in view.utterances)
    running = any(said.onset < begins and said.offset > due for said in view.utterances)
    ends = due + view.samples(2.0 * zero - full)
    told = None if running else next((u for u in view.utterances if begins <= u.onset < ends), None)
    raw = {"false_alarms": float(alarms)}
    value, last = -1.0, due
    if told is not None:
        raw["offset_s"] = view.seconds(told.onset - due)
        raw["said"] = float(_says(told, event))
        value = _score(raw["offset_s"], early, full, zero)
        value, last = value if raw["said"] else min(0.0, value), max(due, told.onset - view.samples(1.0))
    window = view.credit(max(0, due - view.samples(early)), last)
    if view.end < due + view.samples(zero):
        return Verdict(None, window, raw)
    return Verdict(max(-1.0, value - FALSE_ALARM * alarms), window, raw)


def _uncalled(view: EpisodeView, event: Event) -> Verdict:
    """Nothing is due: every sound is a false alarm, but an answer to a turn before."""
    close = event.offset + view.samples(BANDS["E5"][1])
    answers = [e.offset + view.samples(RESPONSE_SECONDS) for e in view.events if e.source == "user" and is_user_turn(e)]
    start = max([event.onset, *(at for at in answers if at < close)])
    alarms = sum(start <= said.onset < close for said in view.utterances)
    window = view.credit(min(event.onset, view.end), min(event.offset, view.end))
    return Verdict(None if view.end < close else max(-1.0, 1.0 - alarms), window, {"false_alarms": float(alarms)})


def _band(event: Event) -> tuple[float, float, float]:
    expect = event.expected("speaks_up")
    within = {} if expect is None else expect.within
    early, full, zero = BANDS[event.type]
    early, full = within.get("early", early), within.get("full", full)
    zero = within.get("zero", full + (BANDS[event.type][2] - BANDS[event.type][1]))
    if not (early >= 0.0 and 0.0 <= full < zero):
        raise ValueError(f"event {event.id!r}: within {early}, {full}, {zero}; needs early >= 0 and 0 <= full < zero")
    return early, full, zero


def _score(offset_s: float, early: float, full: float, zero: float) -> float:
    if offset_s < -early:
        return offset_score(offset_s + early)
    return late_score(offset_s, full, zero)


def _says(told: Utterance, event: Event) -> bool:
    """Whether it says what is expected, as far as words tell: everything does where there are none to compare."""
    if told.words is None:
        return True
    said: Sequence[str] = [word.text for word in told.words]
    expect = event.expected("speaks_up")
    content = () if expect is None else expect.content
    return bool(said) and not babbles(told.words) and (not content or contains_any(said, content))

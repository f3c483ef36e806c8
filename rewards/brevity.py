"""Saying no more than is needed: the length of an answer, and the share of a conversation."""

from __future__ import annotations

from envs.event import BARGE_IN_TYPES, Event
from rewards.registry import EPISODE, reward
from rewards.timing import EARLY_SECONDS, SHORTEST_ANSWER_SECONDS, late_score, limits
from rewards.verdict import Verdict
from rewards.view import EpisodeView

FULL_SECONDS, ZERO_SECONDS = 6.0, 9.0
"""An answer of up to two sentences takes about 6 s; at 9 s it is worth nothing and at 12 s it is a lecture."""
OVER_SECONDS = 1.0
"""Silence after which an answer is over, where a conversation ends before its window does."""
MOST, NOTHING = 0.5, 0.65
"""Share of the time that the agent may speak, and share that is worth nothing; -1 from 0.8 on."""


@reward(
    "brevity",
    axis="brevity",
    events=["A1", "A2", "A3", *sorted(BARGE_IN_TYPES - {"C3"}), "G3"],
    horizon_s=2.0 * ZERO_SECONDS - FULL_SECONDS,
    beside=["turn_taking", "quality"],
)
def brevity(view: EpisodeView, event: Event) -> Verdict:
    """Answer in a sentence or two, and leave the floor.

    Source: ours (taxonomy G3). Rewards that count the length of an answer up (SteerDuplex's continuity) or its overlap
    with references make it longer.

    Window: speech that begins from 0.2 s before the event's end to the user's next turn or 12 s after the end. None
    when no turn was taken there (there is nothing to be brief about; `turn_taking` judges that), and when the episode
    ends before the window with the agent talking in its last second, unless that is too long already.

    Value, of the seconds spoken: 1 up to 6 s, 0 at 9 s, -1 from 12 s on. An event of type G3, a request for a short
    answer, may say otherwise: `within: {full, zero}` of its `stops` expectation are seconds of speech.

    Degenerate policies: silent and backchannels None, always talking -1, a mumbler and a truncator 1 or None: it says
    nothing about what is said.
    Raw: `talk_s`, `words` (absent without a text stream).
    """
    full, zero = (FULL_SECONDS, ZERO_SECONDS)
    if event.type == "G3":
        full, zero = limits(event, "stops", full, zero)
    begins = event.offset + view.samples(EARLY_SECONDS)
    limit = min(view.next_user_turn(event.offset), event.offset + view.samples(2.0 * ZERO_SECONDS - FULL_SECONDS))
    # Speech that runs across the user's end, as a cut-in that never stops does, counts from there on.
    answer = [u for u in view.utterances if u.onset < limit and u.offset > begins and u.offset > event.offset]
    talk = view.seconds(sum(min(u.offset, limit) - max(u.onset, begins) for u in answer))
    raw = {"talk_s": talk}
    if view.has_text:
        raw["words"] = float(sum(begins <= w.onset < limit for u in answer for w in u.words or ()))
    window = view.credit(min(event.offset, view.end), min(view.end, event.offset + view.samples(talk)))
    unknown = limit == view.end and any(u.offset > view.end - view.samples(OVER_SECONDS) for u in answer)
    cut = view.end < event.offset + view.samples(2.0 * ZERO_SECONDS - FULL_SECONDS)
    if not any(u.takes_floor for u in answer) or (unknown and cut and talk <= full):
        return Verdict(None, window, raw)
    return Verdict(late_score(talk, full, zero), window, raw)


@reward("talk_ratio", axis="brevity", events=[EPISODE], horizon_s=0.0, beside=["turn_taking", "quality"])
def talk_ratio(view: EpisodeView, event: Event) -> Verdict:
    """Speak neither most of the time nor, when asked something, next to nothing.

    Source: ours (taxonomy G3, talk ratio in a band).

    Window: the whole conversation. None when it is shorter than 4 s.

    Value, of the share of the time in which the agent speaks: 1 up to 0.5, 0 at 0.65, -1 from 0.8 on. Where answers are
    expected (`responds`), 0.6 s of speech for each is the least: below it, linear from 1 down to -1 for none.

    Degenerate policies: silent -1 where something is asked and 1 where nothing is, always talking -1, backchannels only
    and a metronome 1: it is a rail, not a goal, and must stand beside terms that are.
    Raw: `ratio`, `talk_s`, `expected` (how many answers).
    """
    talk = view.seconds(sum(int(off - on) for on, off in view.agent_activity))
    length = view.seconds(view.end)
    expected = sum(e.expected("responds") is not None and e.offset <= view.end for e in view.events)
    least = SHORTEST_ANSWER_SECONDS * expected
    ratio = talk / length if length else 0.0
    raw = {"ratio": ratio, "talk_s": talk, "expected": float(expected)}
    if length < 4.0:
        return Verdict(None, (0, view.end), raw)
    value = late_score(ratio, MOST, NOTHING) if talk >= least else 2.0 * talk / least - 1.0
    return Verdict(value, (0, view.end), raw)

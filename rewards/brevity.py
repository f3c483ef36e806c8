"""Saying no more than is needed: the length of an answer, and the share of a conversation."""

from __future__ import annotations

from envs.event import BARGE_IN_TYPES, Event
from rewards.registry import EPISODE, reward
from rewards.timing import EARLY_SECONDS, SHORTEST_ANSWER_SECONDS, late_score, limits
from rewards.verdict import Verdict
from rewards.view import EpisodeView

FULL_SECONDS, ZERO_SECONDS = 8.0, 12.0
"""An answer of two long sentences takes up to 8 s; at 12 s it is worth nothing and at 16 s it is a lecture."""
OVER_SECONDS = 1.0
"""Silence after which an answer is over, where a conversation ends before its window does."""
STOP_FULL, STOP_ZERO = 0.5, 1.5
"""Seconds beyond what was asked for (G3)."""
LONGER_SECONDS = 1.0
MOST, NOTHING = 0.7, 0.8
"""Share of the time that the agent may speak, and share that is worth nothing; -1 from 0.9 on."""


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

    Window: speech that begins from 0.2 s before the event's end to the user's next turn or 16 s after the end. None
    when no turn was taken there (there is nothing to be brief about; `turn_taking` judges that), and when the episode
    ends before the window with the agent talking in its last second, unless that is too long already.

    Value, of the seconds spoken: 1 up to 8 s, 0 at 12 s, -1 from 16 s on.

    Where a scenario has asked for a short answer or for a long one, an event of type G3 begins once the agent has been
    speaking for as long as the short one may last. Expected is that it `stops` (from the onset 1 up to 0.5 s, 0 at
    1.5 s, -1 at 2.5 s; `within: {full, zero}` moves that; speech that begins again inside the event is no stop) or that
    it `continues` (1 from 1 s of further speech on, -1 for none). None when the agent is not speaking at the onset.

    Degenerate policies: silent and backchannels None, always talking -1, a mumbler and a truncator 1 or None: it says
    nothing about what is said.
    Raw: `talk_s` (from a G3's onset on), `words` (absent without a text stream and for G3).
    """
    if event.type == "G3":
        return _limit(view, event)
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
    if not any(u.takes_floor for u in answer) or (unknown and cut and talk <= FULL_SECONDS):
        return Verdict(None, window, raw)
    return Verdict(late_score(talk, FULL_SECONDS, ZERO_SECONDS), window, raw)


def _limit(view: EpisodeView, event: Event) -> Verdict:
    """What a request for brevity, or for length, makes of the moment at which a short answer should be over."""
    talking = view.utterance_at(event.onset)
    window = view.credit(min(event.onset, view.end), min(event.onset, view.end))
    if talking is None or view.end < event.offset:
        return Verdict(None, window)
    again = [u.offset for u in view.turns if event.onset < u.onset < event.offset]
    talk = view.seconds(max([talking.offset, *again]) - event.onset)
    if event.expected("continues") is not None:
        return Verdict(2.0 * min(1.0, talk / LONGER_SECONDS) - 1.0, window, {"talk_s": talk})
    return Verdict(late_score(talk, *limits(event, "stops", STOP_FULL, STOP_ZERO)), window, {"talk_s": talk})


@reward("talk_ratio", axis="brevity", events=[EPISODE], horizon_s=0.0, beside=["turn_taking", "quality"])
def talk_ratio(view: EpisodeView, event: Event) -> Verdict:
    """Speak neither most of the time nor, when asked something, next to nothing.

    Source: ours (taxonomy G3, talk ratio in a band).

    Window: the whole conversation. None when it is shorter than 4 s.

    Value, of the share of the time in which the agent speaks: 1 up to 0.7, 0 at 0.8, -1 from 0.9 on. Where answers are
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

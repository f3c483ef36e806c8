"""Waiting through a pause."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import TURN_SECONDS, EpisodeView

HELD = ("B1", "B2", "B4", "B5", "B6")
"""Silences through which the user holds the floor; an explicit hold (B3) is judged by `silence_handling`."""
RESUME_SECONDS = 0.3
"""The window runs this much beyond the pause: an onset there was decided before the user could be heard again."""
FREE_SECONDS = 0.6
"""A backchannel up to this long costs nothing; from here on it could as well be the start of an answer."""
PATIENCE_SECONDS = 2.0
"""Silence after which hardly anybody would still wait (pauses within turns are mostly 0.25 to 0.5 s long)."""
LONG_SECONDS = 2.0
"""Agent speech of this length in a pause is as bad as can be."""


@reward(
    "pause_handling",
    axis="pause",
    events=HELD,
    horizon_s=1.5,
    beside=["turn_taking", "quality"],
)
def pause_handling(view: EpisodeView, event: Event) -> Verdict:
    """Nothing but a backchannel while the user holds the floor through a silence.

    Source: taxonomy B1, B2 and B4-B6; the limit of 1 s is that of arXiv 2606.11167, whose reward leaves backchannels
    free without a bound, is binary (a group often has no variance) and looks at whole segments.

    Window: agent speech that sounds in [pause onset, pause offset + 0.3 s]; each stretch is followed to the end of the
    view, 1.5 s after the pause. No verdict (None) when the episode ends before offset + 0.3 s.

    Value: 1 for silence or one backchannel (at most 1.0 s and two words) of up to 0.6 s; a longer one loses up to 1,
    linearly, towards 1.0 s, or an agent that starts an answer in every pause and breaks off when the user goes on would
    pass for a listener. Each further backchannel costs 0.5. Not below -0.5 so far. Speech that takes the floor is
    -0.5 - 0.5 · (its length / 2 s), down to -1: late and short is less bad, so that a group has a slope to climb.

    Degenerate policies: silent 1, always talking -1, a metronome of 0.4 s backchannels 1 in a short pause and
    less in one that holds two, a metronome of long bursts -1 wherever it hits a pause.

    Raw: `pause_s` the pause's length, `talk_s` the longest stretch, `onset_s` the first onset from the pause's onset
    (signed), `backchannels`, `takeover` 0 or 1.
    """
    end = event.offset + view.samples(RESUME_SECONDS)
    heard = [u for u in view.utterances if u.onset < end and u.offset > event.onset]
    takeovers = [u for u in heard if u.takes_floor]
    last = heard[0].onset if heard else event.offset
    window = view.credit(event.onset, max(event.onset, last))
    raw = {
        "pause_s": view.seconds(event.offset - event.onset),
        "takeover": float(bool(takeovers)),
        "backchannels": float(len(heard) - len(takeovers)),
        "talk_s": max((u.seconds for u in heard), default=0.0),
    }
    if heard:
        raw["onset_s"] = view.seconds(heard[0].onset - event.onset)
    if view.end < end:
        return Verdict(None, window, raw)
    if takeovers:
        talk = max(u.seconds for u in takeovers)
        return Verdict(-0.5 - 0.5 * min(1.0, talk / LONG_SECONDS), window, raw)
    overlong = max(0.0, raw["talk_s"] - FREE_SECONDS) / (TURN_SECONDS - FREE_SECONDS)
    return Verdict(max(-0.5, 1.0 - overlong - 0.5 * max(0, len(heard) - 1)), window, raw)


@reward(
    "pause_by_length",
    axis="pause",
    events=HELD,
    horizon_s=1.5,
    beside=["turn_taking", "quality"],
)
def pause_by_length(view: EpisodeView, event: Event) -> Verdict:
    """`pause_handling`, with a takeover that costs by how little of the pause it waited for.

    Source: ours. Coming in after 1.8 s of silence is what most people would do, and after 0.2 s hardly anybody; a
    reward that calls both the same gives a group no slope from the one to the other. By length: a short pause can only
    be broken into by impatience, so that costs nearly all; a long one costs the less the later.

    Window, masks and what backchannels cost are those of `pause_handling`. A turn that begins in the pause earns -1 at
    its onset, rising linearly to -0.25 at 2.0 s; one that was running as the pause began, or that begins in the 0.3 s
    after it, the same as if it had begun at the onset or the end.

    Degenerate policies: silent 1, always talking -1, the others as on `pause_handling`; one that always waits 2 s loses
    little here and much on `turn_taking`.
    Raw: as `pause_handling`, and `waited_s` (absent without a takeover).
    """
    plain = pause_handling(view, event)
    if plain.value is None or not plain.raw["takeover"]:
        return plain
    end = event.offset + view.samples(RESUME_SECONDS)
    first = next(u for u in view.turns if u.onset < end and u.offset > event.onset)
    waited = view.seconds(min(max(first.onset, event.onset), event.offset) - event.onset)
    value = -1.0 + 0.75 * min(1.0, waited / PATIENCE_SECONDS)
    return Verdict(value, plain.window, {**plain.raw, "waited_s": waited})

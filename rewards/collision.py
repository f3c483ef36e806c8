"""Who goes on when both begin at once: the agent gives way, and takes its turn when the user has done."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.timing import EARLY_SECONDS, find_response, late_score, limits, response_limits, response_score
from rewards.verdict import Verdict
from rewards.view import EpisodeView, Utterance

FULL_SECONDS, ZERO_SECONDS = 0.6, 1.2
"""Overlap that is forgiven (three in four human overlaps are below 0.374 s), and overlap that is worth nothing."""
TOGETHER_SECONDS = 0.25
"""Starts no further apart than this are simultaneous (taxonomy A6)."""


def collision_at(view: EpisodeView, event: Event) -> int | None:
    """Since when both talk: the anchor `collision`, or the later of two onsets within 0.25 s; None for no collision."""
    if (at := event.anchors.get("collision")) is not None:
        return at
    reach = view.samples(TOGETHER_SECONDS)
    for said in view.utterances:
        if abs(said.onset - event.onset) <= reach and said.offset > event.onset:
            return max(said.onset, event.onset)
    return None


@reward("collision", axis="collision", events=["A6", "A7"], horizon_s=4.0, beside=["turn_taking", "quality"])
def collision(view: EpisodeView, event: Event) -> Verdict:
    """When both have begun at once, stop soon, let the user finish, and then say it.

    Source: taxonomy A6, and A7 (the user begins over the agent's last words) where `yields` is expected and the anchor
    `collision` given; human overlaps are short (three in four below 0.374 s).

    Window: from the collision (anchor `collision`, or the later of two onsets within 0.25 s) to 4 s after the user's
    words. None when the agent was not talking at the collision, and when the episode ends within 1.85 s of the user's
    end (`zero` of a `responds` expectation moves that).

    Value: half yielding, half taking the turn again. Yielding, from the collision to the end of the agent's talking: 1
    up to 0.6 s, 0 at 1.2 s, -1 at 1.8 s (`within: {full, zero}` of a `yields` expectation moves these); a turn begun
    again before the user has done (more than 0.2 s before) counts as not having stopped. Taking it again: the curve of
    `turn_taking` on the offset from the user's end; it cannot make up for not yielding: above 0 it fades with the
    yield, and one that never yielded gets -1 in all. An agent that stops wherever it is spoken over and then says no
    more, or one that never says more than a syllable, gets 0.

    Degenerate policies: silent None, always talking -1, a truncator and backchannels only 0, a metronome about 0.
    Raw: `overlap_s` (from the collision to the stop), `response_s` (signed, absent for none).
    """
    at = collision_at(view, event)
    full, zero = limits(event, "yields", FULL_SECONDS, ZERO_SECONDS)
    window = view.credit(min(view.end, event.onset if at is None else at), event.offset)
    talking = None if at is None else _talking(view, at)
    if at is None or talking is None or view.end < event.offset + view.samples(response_limits(event)[1]):
        return Verdict(None, window)
    again = [u.offset for u in view.turns if at < u.onset < event.offset + view.samples(EARLY_SECONDS)]
    overlap = view.seconds(max([talking.offset, *again]) - at)
    yielded = late_score(overlap, full, zero)
    expect = event.expected("responds")
    content = () if expect is None else expect.content
    response = find_response(view, event.offset, view.next_user_turn(event.offset), content)
    taken = response_score(response, *response_limits(event))
    if taken > 0.0:
        taken *= (1.0 + yielded) / 2.0
    if yielded <= -1.0:
        taken = -1.0
    raw = {"overlap_s": overlap} | ({} if response is None else {"response_s": response.offset_s})
    return Verdict(0.5 * yielded + 0.5 * taken, window, raw)


def _talking(view: EpisodeView, at: int) -> Utterance | None:
    """The utterance that sounds at a sample; one whose measured onset lies up to one hop after it counts."""
    return view.utterance_at(at) or view.utterance_at(at + view.clock.frame // 8)

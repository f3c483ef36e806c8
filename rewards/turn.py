"""Taking a turn that is due."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.timing import cut_in, find_response, offset_score, response_limits, response_score
from rewards.verdict import Verdict
from rewards.view import EpisodeView


@reward("turn_taking", axis="turn", events=["A1", "A2", "A3", "A4", "A7", "A8"], horizon_s=4.0, beside=["quality"])
def turn_taking(view: EpisodeView, event: Event) -> Verdict:
    """Answer when the turn is over: neither before it, nor late, nor with a mere sound.

    Source: taxonomy A1-A4, A7 and A8. arXiv 2606.11167 rewards -delay, unclipped, so that talking before the user has
    finished earns most; here the offset is signed and early is negative.

    Window: from the user's onset to 4 s after the user's offset (3 s for the onset of a response and 1 s to see that
    it is one). A response must begin before the user's next turn does. No verdict (None) when the episode ends less
    than `zero` seconds after the offset; whether there is one never depends on what the agent did.

    Value, with FTO = agent onset - user offset: 1 on [0, 0.7 s], linear through 0 at 1.85 s to -1 at 3.0 s; linear
    from 1 at 0 to 0 at -0.2 s and to -1 at -1.0 s; none is -1. `within: {full, zero}` of the event's `responds`
    expectation moves 0.7 and 1.85. A turn that began inside the user's utterance (or ran on into its end) is the
    response, whatever follows. What may be a backchannel elsewhere (at most 1.0 s and two words) is no answer, unless
    it lasts 0.6 s, has two words and one of the expected ones; with 0.6 s and two words and no expected one it earns
    at most 0.

    Degenerate policies: silent -1, always talking -1, backchannels only -1, a metronome of long bursts below 0 on
    average when it hits the utterance and below 1 when it does not.

    Raw: `fto_s` (signed, absent when there is no response), `turn_s` and `words` of the response, `real` 0 or 1,
    `cut_in` 0 or 1.
    """
    full, zero = response_limits(event)
    early = cut_in(view, event)
    if early is not None:
        fto = view.seconds(early.onset - event.offset)
        raw = {"fto_s": fto, "turn_s": early.seconds, "words": float(len(early.words or ()))}
        raw |= {"real": 1.0, "cut_in": 1.0}
        value, first, last = offset_score(fto, full, zero), min(early.onset, event.offset), event.offset
    else:
        expect = event.expected("responds")
        limit = view.next_user_turn(event.offset)
        response = find_response(view, event.offset, limit, () if expect is None else expect.content)
        raw = {"cut_in": 0.0, "real": 0.0}
        value, first, last = response_score(response, full, zero), event.offset, event.offset
        if response is not None:
            said = response.utterance
            raw |= {"fto_s": response.offset_s, "turn_s": said.seconds, "words": float(len(said.words or ()))}
            raw["real"] = float(response.real)
            last = max(last, said.onset - view.samples(1.0))  # a late onset lies inside, with a second after it
    window = view.credit(max(0, first), last)
    if view.end < event.offset + view.samples(zero):
        return Verdict(None, window, raw)
    return Verdict(value, window, raw)

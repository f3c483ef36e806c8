"""Backchannels where a listener would give them."""

from __future__ import annotations

from dataclasses import dataclass

from envs.event import Event
from rewards.matching import blind_hits, match_one_to_one
from rewards.registry import reward
from rewards.timing import EARLY_SECONDS
from rewards.verdict import Verdict
from rewards.view import EpisodeView, Utterance

TAKEOVER_PENALTY = 0.5


@dataclass(frozen=True)
class Listening:
    """What the agent did during a monologue. Times are seconds from the monologue's onset."""

    given: tuple[float, ...]
    wanted: tuple[float, ...]
    hits: int
    takeovers: int
    length: float

    @property
    def judged(self) -> int:
        """Denominator of F1: everything that the agent did plus everything that was wanted."""
        return len(self.given) + self.takeovers + len(self.wanted)

    def f1(self, hits: float) -> float:
        """F1 with so many hits; takeovers are false positives."""
        return 2.0 * hits / self.judged if self.judged else 0.0

    @property
    def blind(self) -> float:
        """Expected hits of the better content-blind placement of as many backchannels."""
        return blind_hits(len(self.given), self.wanted, self.length)


def listening(view: EpisodeView, event: Event) -> Listening:
    """Backchannels by onset inside the monologue, matched one to one; a turn in it is a takeover.

    A turn that began before the monologue is a takeover when it runs more than 1.0 s into it.
    """
    end = event.offset + view.samples(EARLY_SECONDS)
    given = [u for u in view.utterances if not u.takes_floor and event.onset <= u.onset < event.offset]
    takeovers = [u for u in view.turns if u.onset < end and _inside(view, event, u)]
    wanted = sorted(at for name, at in event.anchors.items() if name.startswith("bc") and name[2:].isdigit())
    times = tuple(view.seconds(u.onset - event.onset) for u in given)
    opportunities = tuple(view.seconds(at - event.onset) for at in wanted)
    hits = match_one_to_one(times, opportunities)
    return Listening(times, opportunities, hits, len(takeovers), view.seconds(max(1, event.offset - event.onset)))


def _inside(view: EpisodeView, event: Event, turn: Utterance) -> bool:
    return turn.onset >= event.onset or turn.offset - event.onset > view.samples(1.0)


@reward("backchannel", axis="backchannel", events=["B7"], horizon_s=1.2, beside=["quality"])
def backchannel(view: EpisodeView, event: Event) -> Verdict:
    """Short signals of listening where a human gave them, better than chance at the same rate.

    Source: taxonomy B7; F1 within 1 s as in arXiv 2606.11167, which does not say whether a cluster of "mm" may all
    match one opportunity (here: one to one) and pays a metronome nearly as much as a listener (here: minus the null).

    Window: the monologue. A backchannel (at most 1.0 s and two words) counts by its onset; a turn that begins before
    offset - 0.2 s is a takeover, followed to 1.2 s after the monologue to see that it is one. None when the event has
    no opportunities or the episode ends inside it.

    Value: F1 - F1 of the null - 0.5 for each takeover, not below -1. Takeovers are false positives in F1 as well. The
    null has as many backchannels, placed blindly: the better of uniform random times (256 draws, fixed seed) and a
    metronome (64 phases), see `rewards.matching`.

    Degenerate policies: silent 0, always talking -0.5, a metronome 0 on average, "mm" all the time below 0. A
    perfect listener earns 1 - null, 0.3 to 0.7 in practice.

    Raw: `f1`, `null_f1`, `hits`, `given`, `wanted`, `takeovers`, `per_minute`.
    """
    heard = listening(view, event)
    f1, null = heard.f1(heard.hits), heard.f1(heard.blind)
    raw = {
        "f1": f1,
        "null_f1": null,
        "hits": float(heard.hits),
        "given": float(len(heard.given)),
        "wanted": float(len(heard.wanted)),
        "takeovers": float(heard.takeovers),
        "per_minute": 60.0 * len(heard.given) / heard.length,
    }
    window = view.credit(event.onset, max(event.onset, event.offset - view.samples(1.0)))
    if not heard.wanted or view.end < event.offset:
        return Verdict(None, window, raw)
    return Verdict(max(-1.0, f1 - null - TAKEOVER_PENALTY * heard.takeovers), window, raw)

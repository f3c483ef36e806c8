"""Going on through what was not meant to stop the agent. (`continue` is a keyword, hence the underscore.)"""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import GAP_SECONDS, EpisodeView

STOP_SECONDS = 1.0
"""From here on it is as bad as can be: the window of a short "yeah" holds no much longer silence."""
AFTER_SECONDS = 1.0
LASTING_TYPES = frozenset({"D7", "D8", "D9"})
LASTING_SECONDS = 1.0
"""Sounds without an end of their own (television, echo, hold music) are judged as if they were this long."""


def heard_until(view: EpisodeView, event: Event) -> int:
    """The sample up to which a sound can have stopped the agent."""
    offset = event.offset
    if event.type in LASTING_TYPES:
        offset = min(offset, event.onset + view.samples(LASTING_SECONDS))
    return offset + view.samples(AFTER_SECONDS)


@reward(
    "continue",
    axis="continue",
    events=["C7", *(f"D{i}" for i in range(1, 10))],
    horizon_s=1.0,
    beside=["interruption", "quality"],
)
def continue_(view: EpisodeView, event: Event) -> Verdict:
    """Keep talking through a user's "mm-hm", a laugh, a cough, a noise, other people's talk or the agent's own echo.

    Source: taxonomy C7 and D1-D9. arXiv 2606.11167 has no such axis, so stopping at every sound costs nothing there.

    Window: [event onset, offset + 1.0 s]; what lasts (D7 television, D8 echo, D9 hold music) counts as 1.0 s long, or
    every sentence would end in it. None when the agent was not speaking at the onset (`ignore` judges that) or the
    episode ends before the window does.

    Value, of the longest silence g in the window: 1 for g <= 0.5 s, then linear to -1 at g >= 1.0 s. A sentence that
    happens to end in the window is a silence as well; a group of rollouts shares that chance, and an evaluation
    compares with a run on the same seeds.

    Degenerate policies: silent None, always talking 1 (it loses on every other axis), a metronome about -1.

    Raw: `gap_s`, the longest silence.
    """
    end = heard_until(view, event)
    window = view.credit(event.onset, event.onset)
    if view.utterance_at(event.onset) is None or view.end < end:
        return Verdict(None, window)
    gap = view.longest_silence(event.onset, end)
    beyond = max(0.0, gap - GAP_SECONDS) / (STOP_SECONDS - GAP_SECONDS)
    return Verdict(max(-1.0, 1.0 - 2.0 * beyond), window, {"gap_s": gap})

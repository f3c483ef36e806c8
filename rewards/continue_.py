"""Going on through what was not meant to stop the agent. (`continue` is a keyword, hence the underscore.)"""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView

GAP_SECONDS = 0.5
"""A shorter silence is no stop: clause ends of a fluent speaker reach 0.45 s (measured on the core pack's answers; at
the 0.32 s that activity bridges, even the oracle seemed to stop at four in ten backchannels)."""
STOP_SECONDS = 1.0
"""From here on it is as bad as can be: the window of a short "yeah" holds no much longer silence."""
AFTER_SECONDS = 1.0


@reward(
    "continue",
    axis="continue",
    events=["C7", "D1", "D3", "D4", "D5"],
    horizon_s=1.0,
    beside=["interruption", "quality"],
)
def continue_(view: EpisodeView, event: Event) -> Verdict:
    """Keep talking through a user's "mm-hm", a completed sentence, a cough, a noise or talk to somebody else.

    Source: taxonomy C7, D1, D3-D5. arXiv 2606.11167 has no such axis, so stopping at every sound costs nothing there.

    Window: [event onset, offset + 1.0 s]. None when the agent was not speaking at the onset or the episode ends before
    the window does.

    Value, of the longest silence g in the window: 1 for g <= 0.5 s, then linear to -1 at g >= 1.0 s. A sentence that
    happens to end in the window is a silence as well; a group of rollouts shares that chance, and an evaluation
    compares with a run on the same seeds.

    Degenerate policies: silent None, always talking 1 (it loses on every other axis), a metronome about -1.

    Raw: `gap_s`, the longest silence.
    """
    end = event.offset + view.samples(AFTER_SECONDS)
    window = view.credit(event.onset, event.onset)
    if view.utterance_at(event.onset) is None or view.end < end:
        return Verdict(None, window)
    gap = view.longest_silence(event.onset, end)
    beyond = max(0.0, gap - GAP_SECONDS) / (STOP_SECONDS - GAP_SECONDS)
    return Verdict(max(-1.0, 1.0 - 2.0 * beyond), window, {"gap_s": gap})

"""The reward of ASPIRin (arXiv 2604.10065, Hsiao et al., 2026), as published, holes included.

R = R_int · R_re over a whole conversation (there: clips of two minutes). Its other half, the objective on a binary
policy of speaking and silence, is `streams: speak` of a training configuration.
"""

from __future__ import annotations

import numpy as np

from envs.event import Event
from rewards.registry import EPISODE, reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView

OVERLAP_SECONDS = 1.0
LATENCY_SECONDS = 1.0


def overlap(segment: tuple[int, int], others: np.ndarray) -> int:
    """Samples of a segment [onset, offset) that lie inside any of the others (n, 2)."""
    return sum(max(0, min(segment[1], int(off)) - max(segment[0], int(on))) for on, off in others)


@reward("aspirin", axis="turn", events=[EPISODE], horizon_s=0.0)
def aspirin(view: EpisodeView, event: Event) -> Verdict:
    """Share of utterances that overlap the user by at most 1.0 s, times share that come within 1.0 s.

    R_int is the share of the model's utterances with an overlap of at most 1.0 s with the user's speech, R_re the share
    with a response latency of at most 1.0 s; the reward is their product, in [0, 1], for the whole conversation.

    Left open (facts from the abstract and from notes on the paper; its full text was not available to us), and chosen
    here: an utterance is a stretch of activity as `envs.activity` finds it. Its overlap is the sum over all of the
    user's speech inside it. Which utterances are responses: the first to begin after a stretch of the user's speech has
    begun; its latency runs from the end of that stretch and is negative where it begins inside it, which as written is
    "at most 1.0 s". Later utterances of the same answer are none and are left out of R_re. No utterance, or none that
    responds: 0, or silence would be perfect. None when the user says nothing.

    Degenerate policies: silent 0, always talking 0; **"mm-hm" without end is nearly perfect**, for each is short and
    one is always just after the user's end; a response of 0.4 s counts as much as an answer, a mumble as much as words.
    Raw: `interruption` (R_int), `response` (R_re), `utterances`, `responses`.
    """
    user, agent = view.user_activity, [(int(on), int(off)) for on, off in view.agent_activity]
    brief = [overlap(said, user) <= view.samples(OVERLAP_SECONDS) for said in agent]
    prompt: list[bool] = []
    before = -1
    for on, _ in agent:
        begun = [(int(a), int(b)) for a, b in user if before < a <= on]
        if begun:
            prompt.append(on - begun[-1][1] <= view.samples(LATENCY_SECONDS))
        before = on
    interruption = sum(brief) / len(brief) if brief else 0.0
    response = sum(prompt) / len(prompt) if prompt else 0.0
    raw = {
        "interruption": interruption,
        "response": response,
        "utterances": float(len(agent)),
        "responses": float(len(prompt)),
    }
    return Verdict(interruption * response if len(user) else None, (0, view.end), raw)

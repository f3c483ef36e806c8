"""Whether what the agent plays is sound at all: no NaN, no clipping, no clicks, no offset, no words without speech."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.event import Event
from rewards.modulation import modulation
from rewards.registry import EPISODE, reward
from rewards.verdict import Verdict
from rewards.view import TEXT_LEAD_SECONDS, EpisodeView

FULL_SCALE = 0.999
CLIPPED_RUN = 3
"""So many samples in a row at full scale, or more, are clipped: a single one may be a peak."""
CLICK_RATIO = 5.0
"""A step this many times steeper than the steepest of its surroundings (10 ms on either side) is a click. In the 426
clips of the core pack nothing exceeds 3.5."""
CLICK_STEP = 0.03
"""Smaller steps are not heard."""
CLICK_REACH = 240
_BLOCK = 48
CLIPPED_WORST = 0.01
CLICKS_WORST = 2.0
"""Clicks a second of speech from which on it is as bad as can be."""
OFFSET_FREE, OFFSET_WORST = 0.01, 0.05
SILENT_WORST = 0.5
FEWEST_WORDS = 3


@dataclass(frozen=True)
class Waveform:
    """What is wrong with a track."""

    broken: float
    """Share of samples that are NaN or infinite."""
    clipped: float
    """Share of the samples of speech that lie in runs at full scale."""
    clicks: int
    offset: float
    """Mean of the samples of speech, of full scale."""
    speech_s: float


def inspect(audio: np.ndarray, activity: np.ndarray, rate: int) -> Waveform:
    """Look at a track.

    Args:
        audio: (N,) float.
        activity: (n, 2) segments of speech [onset, offset) in samples.
        rate: samples a second.
    """
    finite = np.isfinite(audio)
    broken = 0.0 if finite.all() else float(1.0 - finite.mean())
    audio = np.where(finite, audio, 0.0) if broken else audio
    spoken = sum(int(off - on) for on, off in activity)
    total = sum(float(audio[on:off].sum(dtype=np.float64)) for on, off in activity)
    return Waveform(
        broken=broken,
        clipped=clipped(audio) / spoken if spoken else 0.0,
        clicks=_clicks(audio),
        offset=abs(total) / spoken if spoken else 0.0,
        speech_s=spoken / rate,
    )


def clipped(audio: np.ndarray) -> int:
    """How many samples of a track (N,) stand at full scale in runs of at least `CLIPPED_RUN`."""
    if not audio.size or max(audio.max(), -audio.min()) < FULL_SCALE:
        return 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (np.abs(audio) >= FULL_SCALE).astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= CLIPPED_RUN].sum())


def _clicks(audio: np.ndarray) -> int:
    """Steps from one sample to the next that stand alone; steps within 10 ms of each other are one click."""
    step = np.abs(np.diff(audio))
    step = np.pad(step, (0, -step.size % _BLOCK)).reshape(-1, _BLOCK)
    steepest = step.max(axis=1)
    # A look at blocks of 2 ms leaves out what cannot be one: next but one, for a click may lie on an edge of two.
    beside = np.maximum(np.pad(steepest, (2, 0))[:-2], np.pad(steepest, (0, 2))[2:])
    blocks = np.flatnonzero((steepest >= CLICK_STEP) & (steepest >= CLICK_RATIO * beside))
    step, found, last = step.reshape(-1), 0, -CLICK_REACH
    for block in blocks.tolist():
        at = block * _BLOCK + int(step[block * _BLOCK : (block + 1) * _BLOCK].argmax())
        before, after = step[max(0, at - CLICK_REACH) : max(0, at - 1)], step[at + 2 : at + CLICK_REACH + 1]
        alone = step[at] >= CLICK_RATIO * max(before.max(initial=0.0), after.max(initial=0.0))
        if alone and at - last >= CLICK_REACH:
            found, last = found + 1, at
    return found


def intact(view: EpisodeView) -> bool:
    """The gate of SteerDuplex: finite audio that is not all silence, with less than 1 % of its speech clipped."""
    spoken = sum(int(off - on) for on, off in view.agent_activity)
    finite = bool(np.isfinite(view.agent.sum(dtype=np.float64)))
    return spoken > 0 and finite and clipped(view.agent) < CLIPPED_WORST * spoken


@reward("waveform", axis="waveform", events=[EPISODE], horizon_s=0.0, beside=["turn_taking", "quality"])
def waveform(view: EpisodeView, event: Event) -> Verdict:
    """Audio that could be played to somebody, and that sounds where the text says something.

    Source: ours; the integrity gate of SteerDuplex (arXiv 2609.12623: silence, clipping, invalid), as a slope instead
    of a gate, with clicks and offset, which come with codecs that lose their state.

    Window: the whole conversation. None when the agent neither makes a sound nor says a word.

    Value: 1 minus twice the worst of these faults, each from 0 (none) to 1: any sample that is NaN or infinite (1 at
    once); samples of speech clipped (in runs of three or more at full scale), 1 at 1 %; clicks, steps 5 times steeper
    than anything within 10 ms, 1 at two a second of speech; offset of the speech, from 0.01 to 0.05 of full scale;
    words of the text stream that begin where nothing sounds (up to 0.4 s before a sound is not there), 1 at half of
    them; words over a sound that does not move as speech does (`rewards.modulation`), from 0 where it moves enough to 1
    where it is steady. The last two with at least three words in the stream.

    Degenerate policies: silent None; a whisperer -1 (its words do not sound); one that hums -1; the others 1, for it is
    their time or their words that are wrong: train it beside terms that judge those.
    Raw: `broken`, `clipped`, `clicks_per_s`, `offset`; where there are words `silent_words` (a share), and where they
    sound `level_db` and `timbre_db` (standard deviations).
    """
    seen = inspect(view.agent, view.agent_activity, view.clock.sample_rate)
    words = view.transcript if view.has_text else ()
    if not (words or seen.speech_s or seen.broken):
        return Verdict(None, (0, view.end))
    rate = seen.clicks / max(1.0, seen.speech_s)
    raw = {"broken": seen.broken, "clipped": seen.clipped, "clicks_per_s": rate, "offset": seen.offset}
    faults = [
        float(seen.broken > 0.0),
        seen.clipped / CLIPPED_WORST,
        rate / CLICKS_WORST,
        (seen.offset - OFFSET_FREE) / (OFFSET_WORST - OFFSET_FREE),
    ]
    if words:
        lead = view.samples(TEXT_LEAD_SECONDS)
        sounding = sum(any(on - lead <= word.onset < off for on, off in view.agent_activity) for word in words)
        raw["silent_words"] = 1.0 - sounding / len(words)
        if len(words) >= FEWEST_WORDS:
            faults.append(raw["silent_words"] / SILENT_WORST)
        if seen.speech_s:
            spoken = [view.agent[on:off] for on, off in view.agent_activity]
            moves = modulation(np.concatenate(spoken), view.clock.sample_rate)
            raw |= {"level_db": moves.level, "timbre_db": moves.timbre}
            if len(words) >= FEWEST_WORDS:
                faults.append(moves.missing)
    worst = min(1.0, max(0.0, *faults))
    return Verdict(1.0 - 2.0 * worst, (0, view.end), raw)

"""Who speaks when in one recording: out of its segment file where it has one, else measured on the audio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.activity import ActivityConfig, segments
from envs.clock import CLOCK
from envs.corpora.audio import Heard, hear
from envs.corpora.recording import Recording, Rejected, Span
from envs.corpora.utterances import UNIT_GAP_SECONDS, Interval, disjoint
from envs.corpora.utterances import units as join
from envs.errors import UptakeError

ENERGY = ActivityConfig(merge_gap=UNIT_GAP_SECONDS)
_LATE_SECONDS = 1.0  # a segment file may overrun its audio by this much before it is taken for another recording's


def units(
    root: Path, recording: Recording, measured: bool = False, config: ActivityConfig = ENERGY
) -> tuple[list[list[Interval]], Heard]:
    """Inter-pausal units of both speakers in samples of the clock, and what was heard.

    Args:
        root: the corpus folder.
        recording: where it lies.
        measured: measure on the audio even where a segment file says who speaks.
        config: of the measurement.

    Raises:
        Rejected: the audio or the segment file cannot be used, or nobody speaks.
    """
    heard = hear(root, recording, config)
    if recording.spans is None or measured:
        found = [[(int(on), int(off)) for on, off in segments(row, heard.samples, config)] for row in heard.power]
    else:
        try:
            spans = recording.spans()
        except (UptakeError, OSError) as error:
            raise Rejected("segment_file", " ".join(str(error).split())) from error
        found = _by_track(recording, spans, heard, config)
    if not any(found):
        raise Rejected("silent", recording.tracks[0].path)
    return found, heard


def _by_track(
    recording: Recording, spans: Sequence[Span], heard: Heard, config: ActivityConfig
) -> list[list[Interval]]:
    end = CLOCK.seconds(heard.samples) + _LATE_SECONDS
    for span in spans:
        if not (math.isfinite(span.onset) and math.isfinite(span.offset) and 0 <= span.onset <= span.offset <= end):
            raise Rejected(
                "segment_file",
                f"{recording.kind} of {recording.id}: {span.onset} to {span.offset} s does not lie in a recording of "
                f"{CLOCK.seconds(heard.samples):.2f} s",
            )
    tracks = tracks_of(recording, spans, heard, config)
    gap = CLOCK.nearest_sample(UNIT_GAP_SECONDS)
    both: list[list[Interval]] = []
    for track in (0, 1):
        own = [
            (CLOCK.nearest_sample(span.onset), CLOCK.nearest_sample(span.offset))
            for span, where in zip(spans, tracks, strict=True)
            if where == track
        ]
        both.append(join(disjoint(own, heard.samples), gap))
    return both


def tracks_of(recording: Recording, spans: Sequence[Span], heard: Heard, config: ActivityConfig = ENERGY) -> list[int]:
    """Which track each span belongs to: by its channel, by its speaker's name, or by who is louder then."""
    if all(span.channel in (0, 1) for span in spans):
        return [int(span.channel or 0) for span in spans]
    names = sorted({span.speaker for span in spans})
    if set(names) <= set(recording.speakers):
        return [recording.speakers.index(span.speaker) for span in spans]
    if len(names) > 2:
        shown = ", ".join(names[:6])
        raise Rejected("segment_file", f"{recording.kind} of {recording.id}: speakers {shown}; there are two tracks")
    loud = np.zeros((2, 2))  # energy of each track while each speaker speaks
    for span in spans:
        first, last = (CLOCK.nearest_sample(seconds) // config.hop for seconds in (span.onset, span.offset))
        loud[names.index(span.speaker)] += heard.power[:, first:last].sum(axis=1)
    if len(names) == 2:
        loud /= np.maximum(loud.sum(axis=0), 1e-12)  # a louder microphone is no evidence
    swapped = loud[0, 0] + loud[1, 1] < loud[0, 1] + loud[1, 0]
    return [names.index(span.speaker) ^ int(swapped) for span in spans]

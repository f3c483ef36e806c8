"""A conversation to look at and to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.episode import Episode, write_audio
from envs.timeline import Judged, draw

PICTURE, SOUND = "timeline.png", "stereo.wav"


def write_look(episode: Episode, folder: str | Path, verdicts: Sequence[Judged] = (), title: str = "") -> None:
    """Write `timeline.png` and `stereo.wav` into a folder, which is made.

    Args:
        episode: the record.
        folder: where to.
        verdicts: what rewards said, drawn on the same axis of time.
        title: of the picture; the scenario's id if empty.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw(episode, verdicts, title).savefig(folder / PICTURE, dpi=110)
    write_audio(folder / SOUND, stereo(episode), episode.clock.sample_rate)


def stereo(episode: Episode) -> np.ndarray:
    """(N, 2) float32: left what the agent hears, right what it says."""
    return np.stack([episode.mic, episode.agent], axis=1)

"""Two-channel recordings of tones for tests: who speaks when is exact to the sample and costs nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from envs.clock import CLOCK

Stretch = tuple[float, float]


def tones(speech: Sequence[Sequence[Stretch]], seconds: float, rate: int = CLOCK.sample_rate) -> np.ndarray:
    """(samples, speakers) float32: a tone while somebody speaks (seconds), silence else."""
    audio = np.zeros((round(seconds * rate), len(speech)), np.float32)
    for channel, own in enumerate(speech):
        for onset, offset in own:
            at = np.arange(round(onset * rate), round(offset * rate))
            audio[at, channel] = 0.1 * np.sin(2 * np.pi * (400 + 300 * channel) * at / rate)
    return audio


def write_tones(
    path: Path, speech: Sequence[Sequence[Stretch]], seconds: float = 30.0, rate: int = CLOCK.sample_rate
) -> Path:
    """Write `tones` as the suffix says: 16-bit WAV or FLAC, Opus, or mu-law SPHERE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container, subtype = {".opus": ("OGG", "OPUS"), ".sph": ("NIST", "ULAW"), ".mp3": ("MP3", None)}.get(
        path.suffix, (path.suffix[1:].upper(), "PCM_16")
    )
    soundfile.write(path, tones(speech, seconds, rate), rate, format=container, subtype=subtype)
    return path


def square(task: int) -> int:
    """For the tests of processes: task 13 takes its process down."""
    if task == 13:
        os._exit(1)
    return task * task


def minus_one(task: int) -> int:
    """What stands for a task whose process died."""
    return -1


def wait_for_ever(folder: str) -> None:
    """Leaves a file named after its process, then does nothing."""
    Path(folder, str(os.getpid())).touch()
    threading.Event().wait()

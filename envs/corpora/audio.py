"""Reads recordings of any length, rate and container, block by block, and says what is wrong with those it cannot."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import soxr

from envs.activity import ActivityConfig, levels
from envs.clock import CLOCK
from envs.corpora.recording import Recording, Rejected, Track

SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".sph", ".mp3", ".w64", ".aiff")
"""Containers that are looked for; libsndfile decodes them."""
RATES = (8_000, 192_000)
MISMATCH_SECONDS = 1.0
"""Two files of one conversation may differ by this much; the shorter one is silent at its end."""
CLIPPED = 0.999
"""A sample at least this far out is clipped."""
_BLOCK = 1 << 16
_UNKNOWN_LENGTH = 0x7FFF_0000  # what programs write as length into the header of a stream that they cannot rewind
_MARGIN_SECONDS = 0.25  # more than the resampler's filter reaches


@dataclass(frozen=True)
class Heard:
    """Both tracks of a recording, as far as activity needs them."""

    power: np.ndarray
    """(2, hops) float32: mean power of each hop."""
    samples: int
    """Length in samples of the clock."""
    clipped: float
    """Share of clipped samples of the worse track."""


def hear(root: Path, recording: Recording, config: ActivityConfig) -> Heard:
    """Decode both tracks once and keep the level of every hop.

    Raises:
        Rejected: the audio is missing, damaged, mono, of a strange rate, not finite, empty or twice the same.
    """
    first, second = recording.tracks
    if first.path == second.path:
        power, samples, clipped = _read(root / first.path, [first.channel, second.channel], config)
        lengths = [samples, samples]
    else:
        parts = [_read(root / track.path, [track.channel], config) for track in recording.tracks]
        lengths = [part[1] for part in parts]
        if abs(lengths[0] - lengths[1]) > CLOCK.nearest_sample(MISMATCH_SECONDS):
            seconds = " and ".join(f"{CLOCK.seconds(length):.2f} s" for length in lengths)
            raise Rejected("length_mismatch", f"{first.path} and {second.path}: {seconds}")
        power = np.zeros((2, max(part[0].shape[1] for part in parts)), np.float32)
        for row, part in enumerate(parts):
            power[row, : part[0].shape[1]] = part[0][0]
        clipped = np.concatenate([part[2] for part in parts])
    samples = max(lengths)
    if samples < CLOCK.frame:
        raise Rejected("empty", f"{first.path}: {samples} samples at {CLOCK.sample_rate} Hz")
    if power.any() and np.array_equal(power[0], power[1]):
        raise Rejected("identical_channels", first.path)
    return Heard(power, samples, float(clipped.max()))


def length(root: Path, recording: Recording) -> int:
    """Samples of the clock that a recording has, from its files' headers.

    Raises:
        Rejected: a file is missing, mono, of a strange rate, or of another length than its partner.
    """
    lengths = []
    for track in recording.tracks:
        with opened(root / track.path) as file:
            _columns(root / track.path, file, [track.channel])
            if track.channel is not None and file.channels != 2:
                kind = "mono" if file.channels == 1 else "channels"
                raise Rejected(kind, f"{root / track.path}: {file.channels} channel(s), expected one for each speaker")
            lengths.append(-(-file.frames * CLOCK.sample_rate // file.samplerate))
    if abs(lengths[0] - lengths[1]) > CLOCK.nearest_sample(MISMATCH_SECONDS):
        seconds = " and ".join(f"{CLOCK.seconds(one):.2f} s" for one in lengths)
        raise Rejected("length_mismatch", f"{recording.tracks[0].path} and {recording.tracks[1].path}: {seconds}")
    if max(lengths) < CLOCK.frame:
        raise Rejected("empty", f"{recording.tracks[0].path}: {max(lengths)} samples at {CLOCK.sample_rate} Hz")
    return max(lengths)


def _read(path: Path, channels: list[int | None], config: ActivityConfig) -> tuple[np.ndarray, int, np.ndarray]:
    """Hop powers (channels, hops), samples at the clock's rate, and the share of clipped samples (channels,)."""
    with opened(path) as file:
        columns = _columns(path, file, channels)
        resample = None
        if file.samplerate != CLOCK.sample_rate:
            resample = soxr.ResampleStream(file.samplerate, CLOCK.sample_rate, len(columns), dtype="float32")
        powers, rest = [], np.zeros((0, len(columns)), np.float32)
        frames, samples, clipped = 0, 0, np.zeros(len(columns), np.int64)
        while True:
            block = file.read(_BLOCK, dtype="float32", always_2d=True)[:, columns]
            if not np.isfinite(block).all():
                raise Rejected("not_finite", f"{path}: near {frames / file.samplerate:.1f} s")
            frames += len(block)
            clipped += (np.abs(block) >= CLIPPED).sum(axis=0)
            last = len(block) < _BLOCK
            if resample is not None:
                block = resample.resample_chunk(block, last=last)
            samples += len(block)
            rest = np.concatenate([rest, block])
            whole = len(rest) if last else len(rest) - len(rest) % config.hop
            powers.append(levels(np.ascontiguousarray(rest[:whole].T), config.hop))
            rest = rest[whole:]
            if last:
                break
        if frames != file.frames:
            raise Rejected("damaged", f"{path}: {frames} of {file.frames} frames are there")
    return np.concatenate(powers, axis=1), samples, clipped / max(1, frames)


def _columns(path: Path, file: soundfile.SoundFile, channels: list[int | None]) -> list[int]:
    wanted = [channel for channel in channels if channel is not None]
    if not wanted and file.channels != 1:
        raise Rejected("channels", f"{path}: {file.channels} channels, expected one speaker's")
    if wanted and file.channels == 1 and max(wanted) > 0:
        raise Rejected("mono", f"{path}: one channel, expected one for each speaker")
    if len(channels) == 2 and file.channels > 2:
        raise Rejected("channels", f"{path}: {file.channels} channels, expected one for each of two speakers")
    if wanted and max(wanted) >= file.channels:
        raise Rejected("channels", f"{path}: {file.channels} channels, channel {max(wanted)} is missing")
    return [channel or 0 for channel in channels]


@contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; what libsndfile or the system says against it becomes `Rejected` with a reason."""
    try:
        if not path.is_file():
            raise Rejected("unreadable", f"{path}: no such file")
        with path.open("rb") as raw:
            head = raw.read(1024)
        if head[:4] == b"OggS":
            _check_ogg_end(path)
        sphere = head.startswith(b"NIST_1A")
        if sphere and re.search(rb"sample_coding [^\n]*(shorten|wavpack|shortpack)", head):
            raise Rejected("compressed_sphere", f"{path}: run sph2pipe -f wav on it")
        if not head:
            raise Rejected("empty", f"{path}: no bytes")
        file = soundfile.SoundFile(os.fsencode(path))  # a name need not be text
    except soundfile.SoundFileError as error:
        raise Rejected("unreadable", f"{path}: {_text(error)}") from error
    except OSError as error:
        raise Rejected("unreadable", f"{path}: {error.strerror}") from error
    with file:
        declared = re.search(r"^data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
        if declared and 0 < int(declared[1]) < _UNKNOWN_LENGTH:
            raise Rejected("damaged", f"{path}: breaks off, its header promises {declared[1]} bytes of sound")
        counted = re.search(rb"^sample_count -i (\d+)", head, re.MULTILINE) if sphere else None
        if counted and int(counted[1]) > file.frames:
            raise Rejected("damaged", f"{path}: breaks off, {file.frames} of {int(counted[1])} frames are there")
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise Rejected("sample_rate", f"{path}: {file.samplerate} Hz")
        try:
            yield file
        except soundfile.SoundFileError as error:
            raise Rejected("damaged", f"{path}: {_text(error)}") from error
        except OSError as error:
            raise Rejected("unreadable", f"{path}: {error.strerror}") from error


def _check_ogg_end(path: Path) -> None:
    """Ogg has no length in its header: a file that breaks off lacks the page marked as the last."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - 2 * 65_307))  # the greatest page has 65,307 bytes
        tail = raw.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 5 >= len(tail) or not tail[page + 5] & 4:
        raise Rejected("damaged", f"{path}: breaks off, its last page is missing")


def _text(error: soundfile.SoundFileError) -> str:
    return getattr(error, "error_string", "") or str(error)


def read_piece(root: Path, track: Track, onset: int, offset: int) -> np.ndarray:
    """One track from `onset` to `offset` in samples of the clock, (offset - onset,) float32.

    What lies before the recording or after it is silence. Only this piece is decoded.

    Raises:
        Rejected: as `hear`.
    """
    path = root / track.path
    with opened(path) as file:
        (column,) = _columns(path, file, [track.channel])
        step = gcd(file.samplerate, CLOCK.sample_rate)
        up, down = CLOCK.sample_rate // step, file.samplerate // step  # so many samples of the clock, of the file
        margin = CLOCK.nearest_sample(_MARGIN_SECONDS)
        block = max(0, onset - margin) // up  # both rates have a sample where a block begins
        begin = block * up
        stop = min(file.frames, -(-(offset + margin) * down // up))
        audio = np.zeros(0, np.float32)
        if block * down < stop:
            file.seek(block * down)
            audio = file.read(stop - block * down, dtype="float32", always_2d=True)[:, column]
        if not np.isfinite(audio).all():
            raise Rejected("not_finite", str(path))
        if up != down and audio.size:
            audio = soxr.resample(audio, file.samplerate, CLOCK.sample_rate)
    piece = np.zeros(offset - onset, np.float32)
    first, last = max(onset, begin), min(offset, begin + len(audio))
    if first < last:
        piece[first - onset : last - onset] = audio[first - begin : last - begin]
    return piece

"""The record of one conversation. Everything that a reward, a metric or a report says is derived from it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from envs.clock import CLOCK, Clock
from envs.errors import UptakeError
from envs.event import Event, Word
from envs.files import named

TRACKS = ("mic", "user", "agent")
_FULL_SCALE = 32768.0


def to_pcm16(audio: np.ndarray) -> np.ndarray:
    """Float audio in [-1, 1] to the nearest int16, saturating. Any shape."""
    return np.rint(np.clip(audio * _FULL_SCALE, -_FULL_SCALE, _FULL_SCALE - 1)).astype(np.int16)


def from_pcm16(pcm: np.ndarray) -> np.ndarray:
    """int16 to float32 in [-1, 1); exact, and `to_pcm16` gives the same integers back."""
    return pcm.astype(np.float32) * np.float32(1.0 / _FULL_SCALE)


@dataclass
class Episode:
    """One conversation, all tracks aligned to the sample.

    `mic` is what the agent heard, `user` the user's voice without the room, `agent` what the agent played. An episode
    that comes out of an environment lies on the 16-bit grid already, so saving and loading changes no sample and a
    stored episode is graded the same.
    """

    mic: np.ndarray
    """(N,) float32."""
    user: np.ndarray
    """(N,) float32."""
    agent: np.ndarray
    """(N,) float32."""
    events: list[Event] = field(default_factory=list)
    """In order of onset; only events that are over (offset <= N)."""
    transcript: tuple[Word, ...] = ()
    """The agent's own text stream, pieces joined to words, timed in samples of this episode."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Scenario, pack hash, seed, variant, skipped items, ...; JSON."""
    clock: Clock = CLOCK
    decisions: tuple[dict[str, Any], ...] = ()
    """Of a user whose acts a language model decided: what was asked, and what was answered."""

    def __post_init__(self) -> None:
        lengths = {name: getattr(self, name).shape for name in TRACKS}
        if len(set(lengths.values())) != 1 or self.mic.ndim != 1:
            raise UptakeError(f"episode: tracks have shapes {lengths}; all must be one (N,)")

    @property
    def samples(self) -> int:
        """N, the length of every track."""
        return int(self.mic.shape[0])

    @property
    def id(self) -> str:
        """What a log names: scenario, variant and the policy's seed, as far as they are known."""
        parts = [f"{name} {self.meta[name]}" for name in ("scenario", "variant", "policy_seed") if name in self.meta]
        return ", ".join(parts) or "episode without a scenario"

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.clock.seconds(self.samples)

    def save(self, folder: str | Path) -> Path:
        """Write `mic.flac user.flac agent.flac events.jsonl transcript.jsonl meta.json` and return the folder.

        A user whose acts a language model decided leaves `decisions.jsonl`, too (`envs.users.decisions.read_log`).

        `meta.json` is written last: a folder without it is one whose writing was interrupted.
        """
        folder = Path(folder)
        with named(folder):
            self._write(folder)
        return folder

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        for name in TRACKS:
            pcm = to_pcm16(getattr(self, name))
            write_audio(folder / f"{name}.flac", pcm, self.clock.sample_rate)
        _write_lines(folder / "events.jsonl", [event.to_json() for event in self.events])
        _write_lines(folder / "transcript.jsonl", [word._asdict() for word in self.transcript])
        (folder / "decisions.jsonl").unlink(missing_ok=True)
        if self.decisions:
            _write_lines(folder / "decisions.jsonl", list(self.decisions))
        meta = {"v": 1, "sample_rate": self.clock.sample_rate, "frame": self.clock.frame, "meta": self.meta}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Episode:
        """Read what `save` wrote; raises `UptakeError` naming the file that is missing or malformed."""
        folder = Path(folder)
        meta = _read_json(folder / "meta.json")
        try:
            clock = Clock(int(meta["sample_rate"]), int(meta["frame"]))
            inner = dict(meta["meta"])
        except (KeyError, TypeError, ValueError) as error:
            raise UptakeError(f"{folder / 'meta.json'}: field {error} is missing or malformed") from error
        tracks = {name: read_audio(folder / f"{name}.flac", clock) for name in TRACKS}
        try:
            words = tuple(
                Word(str(w["text"]), int(w["onset"]), int(w["offset"]))
                for w in _read_lines(folder / "transcript.jsonl")
            )
        except (KeyError, TypeError) as error:
            raise UptakeError(f"{folder / 'transcript.jsonl'}: field {error} is missing or malformed") from error
        events = [Event.from_json(record) for record in _read_lines(folder / "events.jsonl")]
        log = folder / "decisions.jsonl"
        decisions = tuple(_read_lines(log)) if log.is_file() else ()
        return cls(**tracks, events=events, transcript=words, meta=inner, clock=clock, decisions=decisions)


def read_audio(path: Path, clock: Clock = CLOCK) -> np.ndarray:
    """Read a mono file at the clock's rate as (N,) float32.

    Raises `UptakeError` naming the file for one that is missing, corrupt, of another rate, not mono, not finite or
    beyond full scale.
    """
    if not path.is_file():
        raise UptakeError(f"{path}: no such audio file; restore it or rebuild what it belongs to")
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UptakeError(f"{path}: cannot be decoded ({error}); restore or re-encode the file") from error
    if rate != clock.sample_rate:
        raise UptakeError(f"{path}: sample rate {rate}, expected {clock.sample_rate}; resample the file")
    if audio.shape[1] != 1:
        raise UptakeError(f"{path}: {audio.shape[1]} channels, expected 1; mix the file to mono")
    if not np.isfinite(audio).all():
        raise UptakeError(f"{path}: holds NaN or infinite samples; render the file again")
    if (peak := float(np.abs(audio).max(initial=0.0))) > 1.0:
        raise UptakeError(f"{path}: holds samples of {peak:.3g} times full scale; render the file at a lower level")
    return audio[:, 0]


def write_audio(path: Path, audio: np.ndarray, rate: int) -> None:
    """Write (N,) or (N, channels) audio with 16 bits, as FLAC or WAV, whichever the file's name ends with.

    It is encoded in memory: libsndfile hides the reason why a file cannot be written, such as a disk that is full.

    Raises:
        OSError: the file cannot be written.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, rate, format=path.suffix[1:], subtype="PCM_16")
    path.write_bytes(encoded.getvalue())


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UptakeError(f"{path}: no such file; an episode without it was not written to the end")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UptakeError(f"{path}: not JSON ({error}); restore the file") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UptakeError(f"{path}: no such file; restore it")
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UptakeError(f"{path}:{number}: not JSON ({error}); restore the file") from error
    return records

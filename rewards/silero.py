"""Silero VAD on a 24 kHz track: the probability of speech in every 32 ms.

The network of the package `silero-vad` (MIT), in the form that reads a sequence, by onnxruntime: nothing of the package
is imported, so no torch, and nothing is downloaded or unpickled.

    pip install 'uptake[silero]'

Sound reaches it at 16 kHz through a linear-phase low-pass that looks 0.625 ms ahead, without delay. It is read in
blocks of a fixed length, so that what it says of the beginning of a track is the same, to the bit, whatever follows.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import UptakeError

RATE = 16_000
CHUNK, CONTEXT, WIDTH = 512, 64, 128
"""Samples at 16 kHz that a probability is about, those before them that the network sees, and its memory."""
BLOCK = 64
"""Chunks a call."""
UP, DOWN = 2, 3
REACH = 30
"""Half the length of the low-pass, in samples at 48 kHz."""
CUTOFF = 7_400.0
"""Of the low-pass, Hz."""


def hop(rate: int) -> int:
    """Samples of the track for each probability."""
    _check(rate)
    return CHUNK * DOWN // UP


def chunks(samples: int, rate: int) -> int:
    """How many probabilities are known after so many samples: the low-pass must have heard a chunk to its end."""
    return max(0, (samples - REACH // UP) // hop(rate))


def _check(rate: int) -> None:
    if rate * UP != RATE * DOWN:
        raise UptakeError(f"silero hears 24000 Hz, the track has {rate} Hz; take activity.detector=energy")


def probabilities(audio: np.ndarray, rate: int) -> np.ndarray:
    """(N,) float32 -> (chunks(N),) float32, the probability of speech in [k, k + 1) * `hop`."""
    count = chunks(audio.size, rate)
    if not count:
        return np.zeros(0, np.float32)
    from scipy.signal import upfirdn  # a second to import

    heard = upfirdn(low_pass(), audio.astype(np.float32, copy=False), UP, DOWN)
    # Output m of the filter is centred on 48 kHz sample 3 m - REACH: the first REACH / 3 are before the track.
    heard = heard[REACH // DOWN :][: count * CHUNK].reshape(count, CHUNK)
    blocks = -(-count // BLOCK)
    sound = np.zeros((blocks * BLOCK, CONTEXT + CHUNK), np.float32)
    sound[:count, CONTEXT:] = heard
    sound[1:count, :CONTEXT] = heard[:-1, -CONTEXT:]
    hidden = cell = np.zeros((1, 1, WIDTH), np.float32)
    found = []
    for block in sound.reshape(blocks, BLOCK, CONTEXT + CHUNK):
        said, hidden, cell = model().run(["speech_probs", "hn", "cn"], {"input": block, "h": hidden, "c": cell})
        found.append(said)
    return np.concatenate(found)[:count]


@cache
def low_pass() -> np.ndarray:
    """(2 REACH + 1,) float32, at 48 kHz."""
    from scipy.signal import firwin

    return (UP * firwin(2 * REACH + 1, CUTOFF, fs=UP * 24_000, window=("kaiser", 6.0))).astype(np.float32)


@cache
def model() -> Any:
    """The network, read once.

    Raises:
        UptakeError: the package or onnxruntime is not installed, or the package has another network than is known.
    """
    package = find_spec("silero_vad")  # found, not imported: that would load torch
    if package is None or find_spec("onnxruntime") is None:
        raise UptakeError("the detector silero needs silero-vad and onnxruntime: pip install 'uptake[silero]'")
    import onnxruntime

    path = Path(next(iter(package.submodule_search_locations or ()))) / "data" / "silero_vad_16k_sequence.onnx"
    if not path.is_file():
        raise UptakeError(f"{path}: no such file; install silero-vad 6.2.3 or later")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a track at a time: threads would only wait
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

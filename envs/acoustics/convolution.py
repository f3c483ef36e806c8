"""Filters of any length on a stream, frame by frame, with nothing added to the delay.

Uniformly partitioned overlap-save (Stockham 1966; Wefers 2015, ch. 5): the response is cut into pieces of one frame,
and the spectra of the latest frames are kept, so a long room costs one FFT pair and a few products a frame.
"""

from __future__ import annotations

import numpy as np

from envs.clock import CLOCK


def partition(response: np.ndarray, frame: int = CLOCK.frame) -> np.ndarray:
    """An impulse response (n,) made ready for `Convolution`: the spectra of its parts, (P, F + 1) complex64, read-only.

    Nothing in it changes, so that many conversations can share it.
    """
    parts = max(1, -(-len(response) // frame))
    padded = np.zeros((parts, 2 * frame), np.float32)
    padded[:, :frame] = np.pad(response, (0, parts * frame - len(response))).reshape(parts, frame)
    spectra = np.fft.rfft(padded)
    spectra.setflags(write=False)
    return spectra


class Convolution:
    """``np.convolve(stream, response)``, one frame at a time."""

    def __init__(self, response: np.ndarray) -> None:
        """`response` (P, F + 1) complex64 comes from `partition`; the block takes and gives (F,) float32."""
        parts, bins = response.shape
        self._response = response
        self._frame = bins - 1
        self._past = np.zeros((parts, bins), np.complex64)  # spectra of the latest inputs, a ring
        self._slot = 0
        self._before = np.zeros(self._frame, np.float32)  # the previous input
        self._silent = parts + 1  # frames of silence up to now; after P + 1 of them nothing rings any more

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32."""
        parts, size = len(self._response), self._frame
        self._silent = 0 if frame.any() else self._silent + 1
        if self._silent > parts:  # the tail is over: exact zeros, and the ring need not turn for them
            if self._silent == parts + 1:
                self._past[:], self._before[:] = 0, 0
            return np.zeros(size, np.float32)
        self._past[self._slot] = np.fft.rfft(np.concatenate([self._before, frame]))
        self._before[:] = frame
        total = self._response[0] * self._past[self._slot]
        for part in range(1, parts):
            total += self._response[part] * self._past[self._slot - part]
        self._slot = (self._slot + 1) % parts
        return np.fft.irfft(total, 2 * size)[size:]


class Delay:
    """The stream, so many samples later; before it comes `before` (samples,) or silence."""

    def __init__(self, samples: int, before: np.ndarray | None = None) -> None:
        self.samples = samples
        self._held = np.zeros(samples, np.float32) if before is None else before.astype(np.float32)

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32."""
        if not self.samples:
            return frame
        joined = np.concatenate([self._held, frame])
        self._held = joined[len(frame) :]
        return joined[: len(frame)]


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A whole signal through a response: (n,), (m,) float32 -> (n + m - 1,) float32."""
    length = len(signal) + len(response) - 1
    size = 1 << (length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[:length].astype(np.float32)

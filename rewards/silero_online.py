"""Silero VAD frame by frame: the causal, batched form of the detector `silero`, for whoever has to act on it.

    ear = OnlineSilero(batch)
    speaking = ear.update(frame)        # (B, F) float32 at 24 kHz -> (B,) bool

It has the face of `envs.activity.OnlineActivity`. After any frame, `onset` and `offset` are the last segment that the
detector (`rewards.detector`, with its own thresholds, gap and length) finds in what was heard so far. A probability is
about 32 ms and is known 0.6 ms after them. Every row is read by itself, so that no row knows of another: 0.2 ms each.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import upfirdn

from envs.clock import CLOCK
from envs.rows import Rows
from rewards.detector import DetectorConfig
from rewards.silero import CHUNK, CONTEXT, DOWN, REACH, UP, WIDTH, chunks, hop, low_pass, model

PUBLISHED = DetectorConfig("silero")
EARLY = REACH // UP
"""Samples before a chunk, and after it, that the low-pass hears."""
HOP = hop(CLOCK.sample_rate)


class OnlineSilero(Rows):
    """The rows of a batch. Times are samples; -1 is never.

    Raises:
        UptakeError: the extra `silero` is not installed.
    """

    FIELDS = (
        "now", "onset", "offset", "_active", "_first", "_last", "_voiced", "_tail", "_before", "_hidden", "_cell",
    )  # fmt: skip

    def __init__(self, batch: int) -> None:
        model()  # now, so that a package that is missing is found now
        self.now = np.zeros(batch, np.int64)  # (B,) heard
        self.onset = np.full(batch, -1, np.int64)  # (B,) latest confirmed segment
        self.offset = np.full(batch, -1, np.int64)
        self._active = np.zeros(batch, bool)  # hysteresis state
        self._first = np.zeros(batch, np.int64)  # candidate segment, in hops
        self._last = np.full(batch, -(10**9), np.int64)  # its latest active hop
        self._voiced = np.zeros(batch, np.int64)  # its active hops
        self._tail = np.zeros((batch, HOP + 2 * EARLY), np.float32)  # the end of what was heard, silence before it
        self._before = np.zeros((batch, CONTEXT), np.float32)  # the network's: 16 kHz before the next chunk
        self._hidden = np.zeros((batch, WIDTH), np.float32)
        self._cell = np.zeros((batch, WIDTH), np.float32)

    def update(self, frame: np.ndarray) -> np.ndarray:
        """Hear one frame (B, F); return `speaking` (B,) bool."""
        samples = frame.shape[-1]
        heard = np.concatenate((self._tail, frame), axis=1)
        for row in range(len(frame)):
            known = chunks(int(self.now[row]), CLOCK.sample_rate)
            count = chunks(int(self.now[row]) + samples, CLOCK.sample_rate) - known
            if count:
                start = known * HOP - EARLY - (int(self.now[row]) - self._tail.shape[1])
                said = self._probabilities(row, heard[row, start : start + count * HOP + 2 * EARLY], count)
                for number, probability in enumerate(said.tolist(), known):
                    self._follow(row, number, probability)
        self._tail = heard[:, samples:]
        self.now = self.now + samples
        return self.speaking

    def _probabilities(self, row: int, audio: np.ndarray, count: int) -> np.ndarray:
        """(count,) of the next chunks: of (count * HOP + 2 EARLY,) samples from EARLY before them."""
        sound = upfirdn(low_pass(), audio, UP, DOWN)[2 * REACH // DOWN :][: count * CHUNK].reshape(count, CHUNK)
        fed = np.empty((count, CONTEXT + CHUNK), np.float32)
        fed[:, CONTEXT:] = sound
        fed[0, :CONTEXT], fed[1:, :CONTEXT] = self._before[row], sound[:-1, -CONTEXT:]
        feed = {"input": fed, "h": self._hidden[row, None, None], "c": self._cell[row, None, None]}
        said, hidden, cell = model().run(["speech_probs", "hn", "cn"], feed)
        self._before[row], self._hidden[row], self._cell[row] = sound[-1, -CONTEXT:], hidden[0, 0], cell[0, 0]
        return said

    def _follow(self, row: int, number: int, probability: float) -> None:
        """What the probability of one hop says of the segment (`envs.activity.join`, one hop at a time)."""
        if probability >= PUBLISHED.on_probability:
            self._active[row] = True
        elif probability < PUBLISHED.off_probability:
            self._active[row] = False
        if not self._active[row]:
            return
        if number - self._last[row] - 1 >= _hops(PUBLISHED.merge_gap):
            self._first[row], self._voiced[row] = number, 0
        self._voiced[row] += 1
        self._last[row] = number
        if self._voiced[row] >= _hops(PUBLISHED.min_length):
            self.onset[row], self.offset[row] = self._first[row] * HOP, (number + 1) * HOP

    @property
    def speaking(self) -> np.ndarray:
        """(B,) bool: the latest segment was active within the last frame."""
        return (self.offset >= 0) & (self.now - self.offset < CLOCK.frame)

    @property
    def speaking_for(self) -> np.ndarray:
        """(B,) samples since the onset of the segment being spoken; 0 when silent."""
        return np.where(self.speaking, self.now - self.onset, 0)

    def _fresh(self) -> OnlineSilero:
        return OnlineSilero(1)


def _hops(seconds: float) -> int:
    return max(1, -(-CLOCK.nearest_sample(seconds) // HOP))

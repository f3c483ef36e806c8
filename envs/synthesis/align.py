"""Word times of synthesised speech: forced alignment with pocketsphinx (BSD, its model lies in the package)."""

from __future__ import annotations

import re

import numpy as np
import soxr

from envs.clock import CLOCK
from envs.event import Word

_RATE = 16_000
_FRAME = CLOCK.sample_rate // 100  # pocketsphinx counts in frames of 10 ms


class Aligner:
    """Aligns a clip to its text. Words that the dictionary lacks share the time between their neighbours by length."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(lm=None, loglevel="FATAL")

    def __call__(self, audio: np.ndarray, text: str) -> tuple[Word, ...]:
        """(samples,) float32 at the clock's rate and its text to word times in samples."""
        words = text.replace("|", " ").split()
        spoken = [re.sub(r"[^a-z']", "", w.lower()) for w in words]
        known = [i for i, w in enumerate(spoken) if w and self._decoder.lookup_word(w) is not None]
        found = self._align(audio, [spoken[i] for i in known]) if known else []
        if len(found) != len(known):  # the aligner gave up: spread the words evenly by their letters
            known, found = [], []
        times: dict[int, tuple[int, int]] = dict(zip(known, found, strict=True))
        return tuple(self._fill(words, times, len(audio)))

    def _align(self, audio: np.ndarray, words: list[str]) -> list[tuple[int, int]]:
        pcm = (np.clip(soxr.resample(audio, CLOCK.sample_rate, _RATE), -1, 1) * 32767).astype(np.int16)
        self._decoder.set_align_text(" ".join(words))
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        segments = [s for s in (self._decoder.seg() or []) if not s.word.startswith("<") and s.word != "(NULL)"]
        return [(s.start_frame * _FRAME, min((s.end_frame + 1) * _FRAME, len(audio))) for s in segments]

    @staticmethod
    def _fill(words: list[str], times: dict[int, tuple[int, int]], end: int) -> list[Word]:
        filled: list[Word] = []
        i = 0
        while i < len(words):
            if i in times:
                filled.append(Word(words[i], *times[i]))
                i += 1
                continue
            j = i
            while j < len(words) and j not in times:
                j += 1
            left = filled[-1].offset if filled else 0
            right = times[j][0] if j < len(words) else end
            letters = np.cumsum([0] + [len(w) for w in words[i:j]])
            edges = (left + (right - left) * letters / letters[-1]).astype(int)
            filled += [Word(words[k], int(edges[k - i]), int(edges[k - i + 1])) for k in range(i, j)]
            i = j
        return filled


def cut_points(audio: np.ndarray, text: str, words: tuple[Word, ...], search: float = 0.12) -> list[int]:
    """Where a clip is cut at each `|` of its text: the quietest 10 ms near the boundary between the two words."""
    cuts: list[int] = []
    reach = int(search * CLOCK.sample_rate)
    parts = text.split("|")
    for number in range(1, len(parts)):
        count = len(" ".join(parts[:number]).split())
        left, right = words[count - 1].offset, words[count].onset
        low, high = max(0, min(left, right) - reach), min(len(audio), max(left, right) + reach)
        energy = np.convolve(np.square(audio[low:high]), np.ones(_FRAME), "valid")
        cuts.append(low + int(energy.argmin()) + _FRAME // 2)
    return cuts

"""Encoding the microphones of a batch, once for all rows that have heard the same so far.

The conversations of a group meet the same user: until their agents act differently their microphones are equal to the
bit, and for a scripted user that is most of the time. Equal rows share one stream of the codec; a row whose next frame
differs goes on with a copy of it. The codes are those of a stream for every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from envs.codec import Codec, rows_kept, rows_taken


class SharedEncoder:
    """The encoding side of a codec for `batch` rows."""

    def __init__(self, codec: Codec, batch: int) -> None:
        self.codec = codec
        self.stream = np.zeros(batch, np.int64)
        """(B,) which stream of `state` each row listens to."""
        self._held = min(batch, 1)
        """Streams in `state`; a fork can leave some of them without a row."""
        self.state = codec.init_state(self._held)

    @property
    def streams(self) -> int:
        """Streams that are encoded."""
        return int(self.stream.max(initial=-1)) + 1

    def reset(self, rows: np.ndarray) -> None:
        """Start the indices `rows` afresh, all with one stream."""
        if not len(rows):
            return
        kept = np.setdiff1d(np.arange(len(self.stream)), rows)
        old, place = np.unique(self.stream[kept], return_inverse=True)
        # One row more than is kept, whatever it holds, becomes the fresh stream.
        self.state = self._taken(np.append(old, 0))
        self.codec.reset(self.state, np.array([len(old)]))
        self.stream[kept], self.stream[rows], self._held = place, len(old), len(old) + 1

    def _taken(self, streams: np.ndarray) -> Any:
        with torch.inference_mode(False):  # a memory made in inference mode could not be changed outside of it
            return rows_taken(self.codec, self.state, streams)

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Make the indices `rows` go on from where row `source` is."""
        self.stream[rows] = self.stream[source]

    def encode(self, pcm: np.ndarray, active: np.ndarray) -> np.ndarray:
        """The next frame (B, frame) float32 of the rows that are `active` (B,) bool; codes (B, codebooks) int64.

        The others stay where they are; their codes mean nothing.
        """
        batch = len(pcm)
        # A row that sits out has a key of its own kind: it may have shared its stream with one that goes on.
        keys = [(int(s), frame.tobytes() if on else b"") for s, frame, on in zip(self.stream, pcm, active, strict=True)]
        first: dict[tuple[int, bytes], int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        heads = list(first.values())  # (S,) a row for each stream from now on
        before = self.stream[heads]
        if len(heads) != self._held or not np.array_equal(before, np.arange(len(heads))):
            self.state, self._held = self._taken(before), len(heads)
            place = {key: stream for stream, key in enumerate(first)}
            self.stream = np.array([place[key] for key in keys], np.int64).reshape(batch)
        with rows_kept(self.state, np.flatnonzero(~active[heads])):
            codes = self.codec.encode(self.state, np.where(active[heads, None], pcm[heads], 0))
        return codes[self.stream]

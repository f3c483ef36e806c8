"""What a chunk-decision policy would have decided and written, had it been the agent of a recording.

Column t is call t of the policy: it has heard the user's frame t, and what it says then is heard in frame t + 1. A
response begins with the decision of the chunk in which the agent's first word begins, so that no frame of speech is
lost: up to four frames before it the agent is silent in its response, as it was in the recording. It goes on over
silences of at most `gap_s`. In it a word's pieces stand one a frame from the frame of its onset, save the frames of
decisions; the frame before a word that follows padding announces it (`align.streams` does the same for Moshi). After
the last word the end token is written, unless a decision comes first: then that is silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.policies.chunk.config import ChunkConfig
from envs.clock import CLOCK
from envs.event import Word


def text_column(words: Sequence[Word], tokenizer: Any, config: ChunkConfig, frames: int, gap_s: float) -> np.ndarray:
    """Decisions and text of every call: (frames,) int64, -1 where the decoder rests.

    Args:
        words: of the agent, in samples, such that a word that begins in frame t is said in call t.
        tokenizer: has `encode(text) -> pieces`.
        gap_s: a longer silence between two words ends a response.
    """
    c = config
    column = np.full(frames, -1, np.int64)
    column[c.chunk - 1 :: c.chunk] = c.silent
    decides = np.arange(frames) % c.chunk == c.chunk - 1
    writes = np.flatnonzero(~decides)
    free = 0  # calls before this one belong to an earlier response
    for response in _responses(words, CLOCK.nearest_sample(gap_s)):
        first, last = CLOCK.frame_of(response[0].onset), max(CLOCK.frames_covering(word.offset) for word in response)
        begin = max((first + 1) // c.chunk, -(-(free + 1) // c.chunk), 1) * c.chunk - 1
        said = [word for word in response if CLOCK.frame_of(word.onset) >= begin]  # others came before any decision
        if begin >= frames or not said:
            continue
        places = writes[np.searchsorted(writes, begin) :]
        pieces = _pieces(said, tokenizer, places)
        over = max(last, max(pieces, default=-1) + 1)
        inside = np.arange(begin, min(over, frames))
        column[inside] = np.where(decides[inside], c.response, c.padding_id)
        for place, piece in pieces.items():
            column[place] = piece
            before = place - 1 if not decides[place - 1] else place - 2
            if before > begin and column[before] == c.padding_id:
                column[before] = c.end_padding_id
        free = over
        if over < frames and not decides[over]:
            column[over] = c.end
            free = over + 1
    return column


def responding(column: np.ndarray, config: ChunkConfig) -> np.ndarray:
    """(frames,) bool: whether the policy speaks in a call, which follows from what it decided and wrote."""
    speaks = np.zeros(len(column), bool)
    now = False
    for t, token in enumerate(column):
        if token == config.response:
            now = True
        elif token in (config.silent, config.end):
            now = False
        speaks[t] = now
    return speaks


def _responses(words: Sequence[Word], gap: int) -> list[list[Word]]:
    """Words with at most `gap` samples of silence between them."""
    found: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.onset):
        if found and word.onset - max(one.offset for one in found[-1][-4:]) <= gap:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def _pieces(words: Sequence[Word], tokenizer: Any, places: np.ndarray) -> dict[int, int]:
    """Call -> piece, of a response that may write in the calls `places`. What the next word overtakes is dropped."""
    starts = np.searchsorted(places, [CLOCK.frame_of(word.onset) for word in words])
    out = {}
    for i, word in enumerate(words):
        end = starts[i + 1] if i + 1 < len(words) else len(places)
        for place, piece in zip(places[starts[i] : end], tokenizer.encode(word.text), strict=False):
            out[int(place)] = int(piece)
    return out

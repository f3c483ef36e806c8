"""Two-channel conversations to the aligned streams that a Moshi-class model learns from (Moshi, arXiv 2410.00037 §3.4).

A word's pieces stand in the text stream one a frame from the frame in which the word begins; the frame before a word
that follows silence is EPAD; everything else is PAD. Both audio channels go through the policy's own codec.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentencepiece import SentencePieceProcessor

from envs.clock import CLOCK
from envs.codec import Codec
from envs.event import Word

PAD, EPAD = 3, 0


def text_stream(
    words: Sequence[Word], tokenizer: SentencePieceProcessor, frames: int, pad: int = PAD, epad: int = EPAD
) -> np.ndarray:
    """Words in samples to one text token a frame: (frames,) int64. Pieces that the next word overtakes are dropped."""
    stream = np.full(frames, pad, np.int64)
    starts = [CLOCK.frame_of(max(0, w.onset)) for w in words]
    for i, word in enumerate(words):
        limit = min(frames, starts[i + 1] if i + 1 < len(words) else frames)
        pieces = tokenizer.encode(word.text)[: max(0, limit - starts[i])]
        stream[starts[i] : starts[i] + len(pieces)] = pieces
        if 0 < starts[i] <= frames and stream[starts[i] - 1] == pad:
            stream[starts[i] - 1] = epad
    return stream


def encode(codec: Codec, audio: np.ndarray) -> np.ndarray:
    """Channels (B, frames * FRAME) float32 to codes (B, Q, frames) int64, streamed as a policy would hear them."""
    state = codec.init_state(len(audio))
    frames = CLOCK.frames(audio.shape[1])
    codes = [codec.encode(state, audio[:, i * codec.frame : (i + 1) * codec.frame]) for i in range(frames)]
    return np.stack(codes, axis=-1)


def align(text: np.ndarray, agent: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Text (B, T), agent and user codes (B, Q, T) to the model's `codes` (B, 1 + 2Q, T - 1).

    The user's column t is the frame that is heard one call later (the frame passed to the first call is dropped): the
    text of frame t is sampled after the user's frame t was heard, not before.
    """
    return np.concatenate([text[:, None, :-1], agent[:, :, :-1], user[:, :, 1:]], axis=1)

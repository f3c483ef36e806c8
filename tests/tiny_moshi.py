"""A Moshi-class policy so small that every test drives the real code in milliseconds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling

FRAME, CARD, TEXT_CARD = 1920, 20, 40


@dataclass
class BlurState:
    heard: np.ndarray  # (B,) loudness of the frames so far
    said: np.ndarray  # (B,) last level


class BlurCodec:
    """Codes are a running loudness in eight resolutions; sound is a ramp from the level before. Both have memory."""

    sample_rate, frame, codebooks, card = 24_000, FRAME, 8, CARD

    def init_state(self, batch: int) -> BlurState:
        return BlurState(np.zeros(batch), np.zeros(batch))

    def encode(self, state: BlurState, pcm: np.ndarray) -> np.ndarray:
        state.heard = 0.5 * state.heard + np.abs(pcm).mean(axis=1)  # a new array: a codec may rebind its state
        return (state.heard[:, None] * 1000.0 * 1.7 ** np.arange(8)).astype(np.int64) % CARD

    def decode(self, state: BlurState, codes: np.ndarray) -> np.ndarray:
        level = (codes * np.arange(1, 9)).sum(axis=1) / (36 * CARD)
        ramp = np.linspace(0.0, 1.0, FRAME)
        pcm = state.said[:, None] * (1 - ramp) + level[:, None] * ramp
        state.said[...] = level
        return pcm.astype(np.float32)

    def reset(self, state: BlurState, rows: np.ndarray) -> None:
        state.heard[rows] = 0
        state.said[rows] = 0

    def fork(self, state: BlurState, source: int, rows: np.ndarray) -> None:
        state.heard[rows] = state.heard[source]
        state.said[rows] = state.said[source]

    def save(self, path: Path) -> None:
        save_file({"blur": np.zeros(1)}, path)


@cache
def tokenizer() -> Any:
    """Sentencepiece with the published control ids: EPAD 0 (unknown), BOS 1, EOS 2, PAD 3."""
    model = io.BytesIO()
    words = ["the quick brown fox jumps over a lazy dog", "pack my box with five dozen jugs", "how vexingly daft"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4), model_writer=model, vocab_size=TEXT_CARD, model_type="bpe",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def config(**changes: Any) -> MoshiConfig:
    """dim 32, 2 layers; 16 frames of context, so that short tests see the window slide."""
    sizes: dict[str, Any] = {
        "dim": 32, "num_layers": 2, "num_heads": 4, "context": 16, "card": CARD, "text_card": TEXT_CARD,
        "depformer_dim": 16, "depformer_num_layers": 2, "depformer_num_heads": 2,
    }  # fmt: skip
    return MoshiConfig(**(sizes | changes))


def policy(sampling: Sampling | None = None, seed: int = 1, **changes: Any) -> MoshiPolicy:
    """A policy with random weights."""
    sampling = sampling or Sampling(text_temperature=0.7, text_top_k=12, audio_temperature=0.8, audio_top_k=10)
    return MoshiPolicy(MoshiModel(config(**changes), seed=seed), BlurCodec(), tokenizer(), sampling)

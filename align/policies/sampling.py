"""Sampling that a row can repeat alone: counter-based uniform numbers and inversion of the distribution function.

The sampler and the scorer share `truncated_log_probs`, so that temperature and top-k mean the same on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.errors import UptakeError

SAMPLE = -2
"""In forced tokens: sample here (`moshi`'s ``ungenerated_token_id``)."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are those of arXiv 2606.11167, appendix A: no truncation of the text."""

    text_temperature: float = 0.7
    text_top_k: int = 0
    """0: the whole vocabulary; 1: greedy."""
    audio_temperature: float = 0.8
    audio_top_k: int = 250

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            if not getattr(self, name) > 0:
                raise UptakeError(f"sampling: {name}={getattr(self, name)} must be above 0; greedy is top_k=1")
        for name in ("text_top_k", "audio_top_k"):
            if getattr(self, name) < 0:
                raise UptakeError(f"sampling: {name}={getattr(self, name)} must be 0 (off) or more")


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits in which every input bit matters."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: np.ndarray, steps: np.ndarray, streams: int) -> np.ndarray:
    """Uniform numbers that are a function of (seed, step, stream) and of nothing else.

    `seeds (B,)` uint64 and `steps (B,)` int64 to `(B, streams)` float32 in [0, 1), multiples of 2**-23.
    """
    stream = np.arange(1, streams + 1, dtype=np.uint64)
    key = _mix(_mix(seeds + _GOLDEN)[:, None] + (steps.astype(np.uint64)[:, None] + np.uint64(1)) * _GOLDEN)
    return ((_mix(key + stream * _GOLDEN) >> np.uint64(41)).astype(np.float32)) * np.float32(2.0**-23)


def truncate(logits: Tensor, temperature: float, top_k: int, keep: Tensor | None = None) -> Tensor:
    """Logits (..., V) over the temperature, -inf outside the `top_k` largest (0: all are in).

    `keep (...)` names a token that stays in whatever its rank: a scorer passes the token that was taken, whose rank
    may have changed since.
    """
    scaled = logits.float() / temperature
    if not 0 < top_k < scaled.shape[-1]:
        return scaled
    # Unsorted: a third of the time of a sorted top k.
    out = scaled < scaled.topk(top_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    if keep is not None:
        out = out.scatter(-1, keep.unsqueeze(-1), False)
    return scaled.masked_fill(out, -torch.inf)


def truncated_log_probs(logits: Tensor, temperature: float, top_k: int, keep: Tensor | None = None) -> Tensor:
    """Log-probabilities (..., V) of the distribution that is sampled from; see `truncate`."""
    return truncate(logits, temperature, top_k, keep).log_softmax(-1)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) by inversion: `probs (B, V)`, `uniform (B,)` in [0, 1). Never one of probability 0."""
    # CUDA sums a row that is alone in another way, which may fall by a rounding from one token to the next.
    rows = probs.expand(2, -1) if probs.is_cuda and len(probs) == 1 else probs
    below = rows.cumsum(-1)[: len(probs)]
    # With multiples of 2**-23 the product is below the total by at least one unit in the last place.
    return (below <= uniform.unsqueeze(-1) * below[:, -1:]).sum(-1)

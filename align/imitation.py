"""Losses of supervised training on aligned streams. Pure functions of tensors; imports torch only.

Each term is a weighted sum of cross-entropies and the sum of its weights, kept apart, so that a batch that is shared
over micro-batches and ranks has one normaliser (`align.trainers.sft`). A weight of 0 takes a token out: whatever stands
there, in logits or targets, changes neither a loss nor a gradient.

Sources: Moshi (arXiv 2410.00037, the weights of padding and of the semantic codebook), moshi-finetune (the same as
weighted means per stream), Audio-Interaction (arXiv 2606.05121: a language loss plus lambda times the loss of the
streaming control tokens).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_nll(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight x cross-entropy in nats, a scalar: logits (B, T, V), targets and weights (B, T)."""
    counts = weights > 0
    known = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~counts.unsqueeze(-1), 0.0)
    loss = F.cross_entropy(known.transpose(1, 2), targets.where(counts, 0), reduction="none")  # (B, T)
    return (loss * weights).sum()


def text_weights(text: Tensor, padding: Collection[int], padding_weight: float) -> Tensor:
    """(B, T) float32: `padding_weight` for tokens in `padding`, 1 for words, 0 where there is no token (-1).

    The token that announces a word is padding, too: like the others it says when, and to weigh it up would teach haste.
    """
    silent = torch.isin(text, torch.tensor(sorted(padding), device=text.device))
    weights = torch.where(silent, padding_weight, 1.0)
    return weights * (text >= 0)


def codebook_weights(mask: Tensor, first: float) -> Tensor:
    """(N, Q) float32 of codes, mask (N, Q): `first` for the first codebook, 1 for the others, 0 where it is False."""
    weights = mask.float()
    weights[:, 0] *= first
    return weights

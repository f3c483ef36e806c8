"""What a probability ratio is about, and how far it may be trusted. Pure functions of tensors; imports torch only.

A frame of a duplex policy is several tokens: one of text, one of each agent codebook in the objective. So the
importance ratio of an update has two choices, and `LEVELS` are their four combinations:

|                       | each frame alone | all frames of the conversation |
|-----------------------|------------------|--------------------------------|
| each stream alone     | `token`          | `stream`                       |
| all streams together  | `frame`          | `sequence`                     |

Together is the product of probabilities: the streams of a frame are one action. Over a conversation it is the geometric
mean of its frames (GSPO, arXiv 2507.18071), so that a long one is not clipped for its length. With one stream `token`
is `frame` and `stream` is `sequence`; in a conversation of one frame `frame` is `sequence`.

Where the advantages of a conversation's frames differ, a shared ratio must not share its gradient too: times +1 in one
frame and -1 in another it would be a ratio times 0, whatever the frames did. `by_frame` keeps the value and gives each
frame's gradient to that frame alone (GSPO-token, there in section 4.3). With equal advantages the sum over a
conversation is the same either way, in value and in gradient.

Log-probabilities of `S` streams are `(B, S, T)`. What a level joins is joined once, by `actions`; from then on tensors
are `(B, T)`, or `(B, S, T)` where streams keep ratios of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = ("token", "frame", "stream", "sequence")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

#: A log-ratio beyond this is clamped: exp(20) is five hundred million times more likely, and still a finite float.
MAX_LOG_RATIO = 20.0


def actions(logp: Tensor, mask: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """Join the streams that a ratio of this level takes together.

    Args:
        logp: (B, S, T) of each token, or of anything that adds up over tokens, such as a KL.
        mask: (B, S, T) bool, tokens that the policy sampled itself.

    Returns:
        logp and mask, (B, S, T) where every stream has its own ratio, (B, T) otherwise: an action is there where any
        of its tokens is.
    """
    if logp.shape[1] == 1:
        return logp[:, 0], mask[:, 0]
    if level in ("token", "stream"):
        return logp, mask
    return logp.masked_fill(~mask, 0.0).sum(1), mask.any(1)


def ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, level: str = "token", by_frame: bool = False) -> Tensor:
    """pi / pi_old of each action; no gradient flows into `old_logp`.

    Args:
        logp, old_logp: (B, T) or (B, S, T), as `actions` gave them.
        mask: bool, that shape.
        level: what shares a value.
        by_frame: of a shared value, an action's gradient is the one that its own ratio would have, times the value.

    Returns:
        That shape; exactly 1 where masked. At the levels `stream` and `sequence` the frames of a conversation share
        one value.

    Raises:
        ValueError: unknown `level`.
    """
    if level not in LEVELS:
        raise ValueError(f"importance_sampling_level '{level}' is unknown; use one of {', '.join(LEVELS)}")
    gap = logp.masked_fill(~mask, 0.0) - old_logp.detach().masked_fill(~mask, 0.0)
    if level in ("stream", "sequence"):
        mean = gap.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        shared = mean.detach() + (gap - gap.detach()) if by_frame else mean.expand_as(mask)
        gap = shared.masked_fill(~mask, 0.0)
    return gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@torch.no_grad()
def sampler_weights(
    old_logp: Tensor,
    sampler_logp: Tensor,
    mask: Tensor,
    mode: str,
    clip_max: float | None,
    clip_min: float | None = None,
) -> Tensor:
    """Truncated importance weights pi_old / pi_sampler for what another program, or precision, sampled.

    Args:
        old_logp: (B, T) or (B, S, T) by the training forward, at the start of the iteration.
        sampler_logp: the same as the sampler told it.
        mask: bool, that shape.
        mode: `token_*` weighs each action, `sequence_*` each conversation by the product of all its actions;
            `*_truncate` clamps a weight to [clip_min, clip_max], `*_mask` makes it 0 outside.
        clip_max, clip_min: None for no bound on that side.

    Returns:
        The shape of `old_logp`; 1 where masked. Source: the modes of TRL's `vllm_importance_sampling_mode`.

    Raises:
        ValueError: unknown `mode`.
    """
    if mode not in CORRECTIONS[1:]:
        raise ValueError(f"sampler_importance_sampling_mode '{mode}' is unknown; use one of {', '.join(CORRECTIONS)}")
    gap = old_logp.masked_fill(~mask, 0.0) - sampler_logp.masked_fill(~mask, 0.0)
    if mode.startswith("sequence"):
        whole = gap.flatten(1).sum(-1)  # (B,)
        gap = whole.view(-1, *[1] * (gap.dim() - 1)).expand_as(gap)
    weights = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low = 0.0 if clip_min is None else clip_min
    high = torch.inf if clip_max is None else clip_max
    if mode.endswith("truncate"):
        weights = weights.clamp(low, high)
    else:
        weights = weights.masked_fill((weights < low) | (weights > high), 0.0)
    return weights.masked_fill(~mask, 1.0)

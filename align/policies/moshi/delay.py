"""Telling a Moshi-class model by how many frames the agent is behind what it hears (arXiv 2509.08753).

In delayed streams modelling the output streams are late by a number of frames that differs from example to example, and
the model is told which: the cosine embedding of the delay in milliseconds is added to the input of every frame. Here a
linear layer, zero at first, lies between them, and the embedding of no delay is subtracted. So a model that is told 0
is the model that is told nothing, before training and after it.

What is added is the same in every frame, and every frame has one text token: for one delay it can be added to the text
embedding once and for all (`settle`). The result is a checkpoint in the published layout that runs everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from align.policies.moshi.model import MoshiModel
from envs.clock import CLOCK

WAVES = 32
"""Frequencies of the embedding, from one radian a millisecond down to one in 10 s, as positions are embedded."""


class DelayEmbedding(nn.Module):
    """Delays in frames, (B,), to what is added to every frame's input, (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * WAVES, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, delays: Tensor) -> Tensor:
        return self.linear((waves(delays) - waves(torch.zeros_like(delays))).to(self.linear.weight.dtype))


def waves(delays: Tensor) -> Tensor:
    """Cosines and sines of delays in frames: (B,) to (B, 2 * WAVES) float32."""
    milliseconds = delays.float() * (1000 * CLOCK.frame_seconds)
    steps = torch.arange(WAVES, device=delays.device, dtype=torch.float32)
    angles = milliseconds.unsqueeze(-1) * torch.exp(steps * (-math.log(10_000) / WAVES))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@torch.no_grad()
def settle(model: MoshiModel, embedding: DelayEmbedding, delay: int) -> None:
    """Make a model one that is told `delay` for good, in place; 0 changes nothing."""
    if delay:
        told = embedding(torch.tensor([delay], device=model.device))[0]
        weight = model.text_emb.weight
        weight.copy_((weight.float() + told.float()).to(weight.dtype))

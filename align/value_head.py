"""What a policy expects to earn from here on, read off its hidden state: the critic of PPO."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """hidden (B, T, D) -> values (B, T) float32. Two layers of the policy's own width.

    It predicts 0 before it is trained: the first advantages are then discounted rewards, not the noise of random
    weights. Its own seed, so that making one changes no other random number.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(width, width)
            self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(hidden))).squeeze(-1).float()

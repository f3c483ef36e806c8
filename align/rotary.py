"""Two ways to lay out the features that a rotary embedding turns, and the way from one to the other.

`moshi` turns neighbours (0, 1), (2, 3), …; transformers turns (0, d/2), (1, d/2 + 1), … of each head. Queries and keys
that are permuted alike give the same attention.
"""

from __future__ import annotations

from torch import Tensor


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection (D, D'), from neighbours (`moshi`) to halves (transformers)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def to_neighbours(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `to_halves`."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

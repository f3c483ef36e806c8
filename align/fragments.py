"""Which piece of which parameter a rank's optimiser holds, under every ZeRO stage.

Under ZeRO each rank steps a flat part of all parameters laid end to end. Where a parameter lies in it depends on the
stage and on the number of ranks; a checkpoint that named the parts by their place could be read by the same number of
ranks only. Here a part is cut at the borders of the parameters, so that a checkpoint says `name, from element a: these
values`, and whoever reads it takes the elements that it holds itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of a flattened parameter."""

    name: str
    start: int
    length: int
    master: Tensor
    """The tensor that AdamW updates; its state is kept under it."""
    offset: int
    """Where in the flattened master they lie."""

    def of(self, tensor: Tensor) -> Tensor:
        """The elements, as a view into the master or into a state of its shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


def fragments(optimizer: Any, stage: int, parameters: Mapping[str, Tensor]) -> list[Fragment]:
    """What this rank's optimiser holds.

    Args:
        optimizer: DeepSpeed's, or torch's at stage 0.
        stage: of ZeRO.
        parameters: the trainable ones by name.
    """
    if stage == 0:
        return [Fragment(name, 0, p.numel(), p, 0) for name, p in parameters.items()]
    rank = dist.get_rank()
    found = []
    if stage == 3:
        for name, parameter in parameters.items():
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * size
            length = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
            if length > 0:  # the last rank's part may be all padding
                found.append(Fragment(name, start, length, optimizer.fp32_partitioned_groups_flat[group], offset))
        return found
    names = {id(parameter): name for name, parameter in parameters.items()}
    for group, master in enumerate(optimizer.single_partition_of_fp32_groups):
        begin = rank * optimizer.partition_size[group]
        end = begin + optimizer.partition_size[group]
        placed = zip(optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_offsets[group], strict=True)
        for parameter, offset in placed:
            first, last = max(offset, begin), min(offset + parameter.numel(), end)
            if first < last:
                found.append(Fragment(names[id(parameter)], first - offset, last - first, master, first - begin))
    return found

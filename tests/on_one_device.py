"""Computing on a device, told apart from computing on the host's memory: on `meta`, which every machine has."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

COPIES = (torch.ops.aten.lift_fresh, torch.ops.aten._to_copy)
"""What brings the host's values to a device."""


class OnOneDevice(TorchDispatchMode):
    """Fails where an operation touches a tensor of the host: a copy that a capture cannot hold.

    `copies`: values may be brought to the device.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.calls, self._free = 0, COPIES if copies else ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in [] if func.overloadpacket in self._free else tree_flatten((args, kwargs, out))[0]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", f"{func} on {tensor.device}"
        return out

"""What a CUDA graph does, on a CPU: a recording repeats the same operations on the same addresses.

Whatever Python decided while it was recorded stays decided, and a tensor that has moved since is read where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.item, torch.ops.aten.is_nonzero)
"""Operations that make the host wait for a GPU, which cannot be captured."""


class Tape(TorchDispatchMode):
    """A `Recorder` for `align.policies.graphs.Graphs`; counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed = self.recorded = 0
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def warm_up(self, function: Callable[[], None]) -> None:
        self.warmed += 1
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        self._calls = calls = []
        with self:
            function()
        return Recording(calls).replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        # A capture runs nothing: what the call changes in place is put back after the recording has its shapes.
        changed = [args[i] for i, a in enumerate(func._schema.arguments) if _written(a) and i < len(args)]
        before = [tensor.clone() for tensor in changed]
        out = func(*args, **kwargs)
        self._record(func, args, kwargs, out, bool(changed))
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(old)
        return out

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any, in_place: bool) -> None:
        inputs = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        outputs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        view = not in_place and outputs and all(t.untyped_storage().data_ptr() in inputs for t in outputs)
        if not view:
            self._calls.append((func, args, kwargs, [] if in_place else outputs))


class Recording:
    """What was recorded; like a `torch.cuda.CUDAGraph`, it can be replayed and not copied."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def replay(self) -> None:
        for func, args, kwargs, outputs in self._calls:
            results = [t for t in tree_flatten(func(*args, **kwargs))[0] if isinstance(t, Tensor)]
            for place, result in zip(outputs, results, strict=False):
                place.copy_(result)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        raise TypeError("cannot pickle 'CUDAGraph' object")


def _written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write

"""The optimiser state of a checkpoint, whoever wrote it, read a piece at a time.

The files of all ranks together hold every element of every parameter once (`align.fragments`). A rank of the run that
resumes reads the elements that it steps itself, and not a byte more, from whichever files hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from envs.errors import UptakeError


class SavedOptimizer:
    """Open inside `with`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._stack = ExitStack()
        self._places: dict[str, list[tuple[int, Any]]] = {}
        self._keys: dict[str, set[str]] = {}

    def __enter__(self) -> SavedOptimizer:
        for path in self._files:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UptakeError(f"{path}: cannot be read: {error}") from error
            for full in file.keys():  # noqa: SIM118
                name, _, key = full.rpartition(".")
                if key == "start":
                    self._places.setdefault(name, []).append((int(file.get_tensor(full)), file))
                else:
                    self._keys.setdefault(name, set()).add(key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def keys_of(self, name: str) -> list[str]:
        """What there is of a parameter: `master`, and `exp_avg`, `exp_avg_sq` and `step` after its first update."""
        if name not in self._places:
            raise UptakeError(f"{self._files[0].parent}: no optimiser state of parameter '{name}'; of another model")
        return sorted(self._keys[name])

    def step(self, name: str) -> Tensor:
        """Updates of a parameter: scalar float32."""
        return torch.stack([file.get_tensor(f"{name}.step") for _, file in self._places[name]]).max()

    def read(self, name: str, key: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of the flattened values: (length,).

        Raises:
            UptakeError: the files do not hold all of them.
        """
        pieces, at = [], start
        for first, file in sorted(self._places[name], key=lambda place: place[0]):
            part = file.get_slice(f"{name}.{key}")
            last = min(first + part.get_shape()[0], start + length)
            if first <= at < last:
                pieces.append(part[at - first : last - first])
                at = last
        if at != start + length:
            raise UptakeError(
                f"{self._files[0].parent}: '{name}.{key}' has {at} elements, {start + length} are needed; it is of "
                "another model"
            )
        return torch.cat(pieces)

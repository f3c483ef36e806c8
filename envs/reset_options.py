"""What a batched environment is told about resets, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from envs.errors import UptakeError, nearest


def masked(mask: Any, num_envs: int) -> np.ndarray:
    """The rows that a `reset_mask` (B,) bool names; all where there is none."""
    if mask is None:
        return np.arange(num_envs)
    mask = np.asarray(mask)
    if mask.shape != (num_envs,) or mask.dtype != bool:
        raise UptakeError(f"reset: reset_mask is {mask.dtype} {mask.shape}, expected bool ({num_envs},)")
    return np.flatnonzero(mask)


def spread(value: Any, what: str, kind: type | tuple[type, ...], num_envs: int) -> list[Any]:
    """An option that is given once or once a row, as one a row; empty where it is not given."""
    if value is None:
        return []
    values = [value] * num_envs if isinstance(value, kind) else list(value)
    if len(values) != num_envs or not all(isinstance(v, kind) for v in values):
        raise UptakeError(f"reset: option {what!r} is {value!r:.80}; give one, or a list of {num_envs}")
    return values


def find_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode, or the one with this value (`Disabled`, `NextStep`, `SameStep`)."""
    known = {one.value: one for one in AutoresetMode}
    if isinstance(mode, str) and mode not in known:
        raise UptakeError(f"environment: autoreset_mode={mode!r} is not known{nearest(mode, known)}")
    return known[mode] if isinstance(mode, str) else mode

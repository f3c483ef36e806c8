"""Running sums of named quantities that can be added up over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

State = tuple[dict[str, tuple[float, float, float]], dict[str, float], list[str]]


class Tally:
    """Means that are right whatever the batch was divided into: sums and counts are kept, not means."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, float]] = {}  # sum, count, sum of squares
        self._largest: dict[str, float] = {}
        self._spread: set[str] = set()

    def add(self, name: str, total: float, count: float = 1.0, *, spread: bool = False) -> None:
        """Add a sum over `count` things; with `spread` (one thing at a time) the deviation is reported as well."""
        before = self._sums.get(name, (0.0, 0.0, 0.0))
        self._sums[name] = (before[0] + total, before[1] + count, before[2] + total * total)
        if spread:
            self._spread.add(name)

    def largest(self, name: str, value: float) -> None:
        """Keep the largest value."""
        self._largest[name] = max(value, self._largest.get(name, -math.inf))

    def sums(self, name: str) -> tuple[float, float]:
        """Sum and count of what was added under a name; (0, 0) if nothing was."""
        return self._sums.get(name, (0.0, 0.0, 0.0))[:2]

    def state(self) -> State:
        """What `merge` takes: plain numbers."""
        return self._sums, self._largest, sorted(self._spread)

    @staticmethod
    def merge(states: Iterable[State]) -> Tally:
        """The tally of all ranks."""
        out = Tally()
        for sums, largest, spread in states:
            for name, values in sums.items():
                before = out._sums.get(name, (0.0, 0.0, 0.0))
                out._sums[name] = (before[0] + values[0], before[1] + values[1], before[2] + values[2])
            for name, value in largest.items():
                out.largest(name, value)
            out._spread |= set(spread)
        return out

    def means(self) -> dict[str, float]:
        """name -> mean (0 where nothing was counted), the deviation where asked for, and the largest values.

        The deviation of `x/mean` is `x/std`, that of any other `x` is `x_std`.
        """
        out = {}
        for name, (total, count, squares) in sorted(self._sums.items()):
            mean = total / count if count else 0.0
            out[name] = mean
            if name in self._spread:
                std = f"{name[: -len('/mean')]}/std" if name.endswith("/mean") else f"{name}_std"
                out[std] = math.sqrt(max(squares / count - mean * mean, 0.0)) if count else 0.0
        return out | self._largest

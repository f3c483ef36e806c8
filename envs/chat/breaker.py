"""A circuit breaker: who fails again and again is left alone for a while, then tried by one."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Closed while things go well, open for `seconds` after `faults` failures in a row, then half open."""

    def __init__(self, faults: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = faults, seconds, clock
        self._row = 0
        self._until: float | None = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half_open"

    def succeeded(self) -> bool:
        """Note a success; returns whether it closed the breaker."""
        was, self._row, self._until = self._until, 0, None
        return was is not None

    def failed(self) -> bool:
        """Note a failure; returns whether it opened the breaker, from closed or half open."""
        self._row += 1
        if self._row < self._most or self.state == "open":
            return False
        self._until = self._clock() + self._seconds
        return True

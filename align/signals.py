"""Ctrl-C that loses nothing: the first one asks, the second one insists. A cluster's SIGUSR1 asks the same."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGUSR1)
"""A person's wish to stop, and a launcher's (`launch.local`)."""


class Interrupted(Exception):
    """Ctrl-C was pressed and this is a good place to stop."""


class Interrupt:
    """While active, the first of `SIGNALS` is noted and the second raises KeyboardInterrupt at once.

    A launcher (torchrun) passes on a Ctrl-C that the terminal has sent to every process already, so what follows
    within `SAME_PRESS` seconds is the first one still.

    Outside the main thread it does nothing: Python delivers signals to the main thread only.
    """

    SAME_PRESS = 1.0

    def __init__(self) -> None:
        self.requested = False
        self._pressed = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interrupt:
        if self._main:
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if Ctrl-C was pressed."""
        if self.requested:
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._pressed < self.SAME_PRESS:
                return
            raise KeyboardInterrupt
        self.requested, self._pressed = True, time.monotonic()
        if os.environ.get("RANK", "0") != "0":
            return
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\nstopping at the next safe place, from which --resume goes on{again}", file=sys.stderr, flush=True)

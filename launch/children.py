"""torchrun as a child process: its ranks are asked to stop when this process is, and do not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

import psutil

from envs.errors import AGAIN, MISTAKE
from launch.errors import INTERRUPTED

TORCHRUN = (sys.executable, "-m", "launch.torchrun")
ALONE = ("--standalone", "--local-addr=127.0.0.1")
"""torchrun's, for ranks that are all on this machine: left alone, it meets where the machine's name points to."""
ASKED = (signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1
"""prctl(2): what a process is sent when its parent has died."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # here: between fork and exec nothing may be loaded


class Children:
    """Runs commands one after the other and passes on the wish to stop to the processes that torchrun starts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Args:
            environment: what the commands have besides this process's own.
        """
        self.asked = self.interrupted = False
        self._environment = {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Children:
        self._before = {number: signal.signal(number, self._on_signal) for number in ASKED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, command: Sequence[str]) -> int:
        """The command's exit status; `AGAIN` and no start if there was a wish to stop."""
        if self.asked:
            return AGAIN
        # A session of its own: torchrun would take a terminal's Ctrl-C for its own end, and give the ranks 30 s.
        self._child = subprocess.Popen(command, env=self._environment, start_new_session=True, preexec_fn=_prepare)
        if self.asked:  # in between: the child may not have been there to be told
            self._stop(signal.SIGUSR1)
        while True:
            try:
                return self._child.wait()
            except KeyboardInterrupt:
                self.interrupted = True
                self._stop(signal.SIGINT)

    def told(self, status: int) -> int:
        """What to end with after a command that ended with this status: why it did may be known here alone."""
        if status in (0, MISTAKE):
            return status
        if self.interrupted:
            return INTERRUPTED
        return AGAIN if self.asked else status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._stop(signal.SIGUSR1)

    def _stop(self, number: signal.Signals) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        with suppress(psutil.NoSuchProcess):  # it has ended in between
            ranks = psutil.Process(self._child.pid).children()
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(number)
            if not ranks:  # it waits for other nodes
                self._child.terminate()


def _prepare() -> None:
    """In the child, before it is torchrun."""
    # A cluster may send its signal to every process of the node; torchrun would die of it and take the ranks along.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if _LIBC is not None:  # ranks must not go on unseen, and write into the folder of a run that is resumed
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

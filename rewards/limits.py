"""A call that may take so long and no longer, whatever it does meanwhile.

A reward is anybody's code: it may loop for ever or wait for a server that never answers. It runs in a thread of its
own that is left behind when its time is up, so the limit holds on every platform, in every calling thread, and while
the code sleeps or waits. What is left behind is stopped as soon as it runs Python again. A limit cannot hold for
compiled code that never lets go of the interpreter.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_local = threading.local()  # a worker for each calling thread


class TimeLimit(Exception):
    """The time was up before the call had returned."""


class _Abandoned(BaseException):
    """Ends what runs in a thread that nobody waits for any more."""


class _Worker:
    """A thread that calls one function after another."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="uptake-reward", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            while True:
                job = self.jobs.get()
                try:
                    self.results.put((job(), None))
                except _Abandoned:
                    raise
                # Whatever it is belongs to the caller, in whose thread it is raised.
                except BaseException as error:
                    self.results.put((None, error))
                del job  # what it holds on to, an episode perhaps, is not kept until the next one comes
        except _Abandoned:
            return

    def abandon(self) -> None:
        """Ask the interpreter to end the thread at its next line of Python."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(_Abandoned))
        self.jobs.put(lambda: None)  # wakes it if it had just finished and waits for the next call


def within(seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread of its own and return what it returns, or raise what it raises.

    Raises:
        TimeLimit: it has not returned after so many seconds; it is left behind.
        RuntimeError: it raised what would end the program, or a task: Ctrl-C reaches the main thread alone, so that
            this was the function's own doing.
    """
    worker: _Worker | None = getattr(_local, "worker", None)
    if worker is None or not worker.thread.is_alive():  # none yet, or this is a fork of the process that had one
        worker = _local.worker = _Worker()
    worker.jobs.put(lambda: function(*args, **kwargs))
    try:
        result, error = worker.results.get(timeout=seconds)
    except queue.Empty:
        worker.abandon()
        del _local.worker
        raise TimeLimit(f"did not return within {seconds:g} s") from None
    except BaseException:  # Ctrl-C while waiting: the worker's next result would be this call's
        worker.abandon()
        del _local.worker
        raise
    if error is not None and not isinstance(error, Exception):
        raise RuntimeError(f"raised {type(error).__name__}: {error}") from error
    if error is not None:
        raise error
    return result

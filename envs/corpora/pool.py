"""Work spread over processes that may be killed, and that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def _begin() -> None:
    """In a worker: Ctrl-C is the parent's business, and a parent that was killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def spread(
    work: Callable[[Task], Result], tasks: Iterable[Task], jobs: int, died: Callable[[Task], Result]
) -> Iterator[tuple[Task, Result]]:
    """(task, `work(task)`) as they are done, in no order.

    When a process dies (out of memory, a crash in a decoder), the tasks that were under way run again, each in a
    process of its own; for one whose process dies again the result is `died(task)`. One job runs in this process.

    Raises:
        Exception: whatever `work` raises.
    """
    if jobs == 1:
        for task in tasks:
            yield task, work(task)
        return
    waiting = deque(tasks)
    while waiting:
        suspects: list[Task] = []
        under_way: dict[Future[Result], Task] = {}
        pool = _pool(min(jobs, len(waiting)))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < 2 * jobs:
                    task = waiting.popleft()
                    try:
                        under_way[pool.submit(work, task)] = task
                    except BrokenProcessPool:
                        suspects.append(task)
                        break
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    task = under_way.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(task)
                    else:
                        yield task, future.result()
                if suspects:
                    suspects += under_way.values()
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for task in suspects:
            with _pool(1) as alone:
                try:
                    result = alone.submit(work, task).result()
                except BrokenProcessPool:
                    result = died(task)
            yield task, result


def _pool(jobs: int) -> ProcessPoolExecutor:
    # spawn: a fork of a process with threads (a progress bar, a BLAS) may start with a lock held
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)

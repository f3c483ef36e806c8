"""How many threads numpy and torch may use, said once and before either is imported.

Left alone, every OpenMP pool takes all the cores that the machine shows, and two ranks on one machine fight for them.
"""

from __future__ import annotations

import os

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def available() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def per_process(cores: int, ranks_here: int) -> int:
    """The share of one rank: an equal part of the cores, at least one."""
    return max(1, cores // max(1, ranks_here))


def shared(ranks_here: int) -> dict[str, str]:
    """The thread counts of each of several ranks that this process starts: its own, divided among them. What is no
    number is left to the library that reads it."""
    given = {name: os.environ.get(name, "") for name in VARIABLES}
    return {name: str(per_process(int(count), ranks_here)) for name, count in given.items() if count.isdigit()}


def set_threads() -> int:
    """Set the thread counts of this process and return them. What the caller has set in OMP_NUM_THREADS wins.

    `LOCAL_WORLD_SIZE` (set by torchrun) is the number of ranks that share the machine.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    count = int(given) if given.isdigit() and int(given) > 0 else 0
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    count = count or per_process(available(), int(ranks) if ranks.isdigit() else 1)
    for name in VARIABLES:
        if name == "OMP_NUM_THREADS" or not os.environ.get(name):
            os.environ[name] = str(count)
    return count

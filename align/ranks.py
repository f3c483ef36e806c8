"""The processes of one run: how they meet, and what each is told when another is lost or hangs.

Every rank tells the others once a second what it is doing and how many collective operations it has begun (a thread and
the process group's own key-value store; nothing on the way of the work). So when one of them does not come to a
collective operation, the others end with a line that names it and what it was doing, not with a stack of a network
library, and within the time limit. That holds for GPUs too, where a hung operation cannot be interrupted: there the
thread says the line and ends the process.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from envs.errors import AGAIN, FAILED, MISTAKE, UptakeError

BEAT = 1.0
"""Seconds between two signs of life."""
SILENT = 3.5
"""Seconds without one after which a rank counts as gone."""
GRACE = 20.0
"""Seconds beyond the limit that a rank has to end by itself."""

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each of several ranks."""

_watch: Watch | None = None


def check_environment() -> None:
    """Raise UptakeError where a launcher has told half of what ranks need to meet, or numbers that are none."""
    numbers = {name: os.environ[name] for name in (*MEETING, "LOCAL_RANK") if name in os.environ}
    numbers.pop("MASTER_ADDR", None)
    fix = "unset it, or let torchrun or `uptake launch local --ranks N` start the ranks"
    for name, value in numbers.items():
        least = 0 if name.endswith("RANK") else 1
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            raise UptakeError(
                f"{name} = '{value}' in the environment: must be a whole number of at least {least}; {fix}"
            )
    rank, world = int(numbers.get("RANK", "0")), int(numbers.get("WORLD_SIZE", "1"))
    missing = [name for name in MEETING if not os.environ.get(name)]
    if missing and (rank, world) != (0, 1):
        given = ", ".join(f"{name} = {os.environ[name]}" for name in MEETING[:2] if name in os.environ)
        raise UptakeError(f"{given} in the environment without {', '.join(missing)}; {fix}")
    if rank >= world:
        raise UptakeError(f"RANK = {rank} in the environment: with WORLD_SIZE = {world} it is 0 to {world - 1}; {fix}")
    if int(numbers.get("MASTER_PORT", "0")) > 65535:
        raise UptakeError(f"MASTER_PORT = {numbers['MASTER_PORT']} in the environment: must be at most 65535; {fix}")


def start_ranks(timeout: float = 1800.0) -> Any:
    """Join the process group that the environment describes, or make one of a single rank. Can be called again.

    Args:
        timeout: seconds that a rank waits for another before both give up.

    Returns:
        The `deepspeed` module.

    Raises:
        UptakeError: the ranks do not find each other, or the environment does not say where.
    """
    global _watch
    check_environment()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # Without RANK and WORLD_SIZE DeepSpeed looks for MPI.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    own_port = "MASTER_PORT" not in os.environ and os.environ["WORLD_SIZE"] == "1"
    if own_port:
        os.environ["MASTER_PORT"] = str(_free_port())
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls collectives by the names that torch 2.13 deprecates, several times a step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    __compatible_ops__["deepspeed_shm_comm"] = False  # otherwise compiled on first use: a minute, and needs g++
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # On a GPU the watch is first, since NCCL would end the process with a stack and no line.
        limit = timeout + (2 * GRACE if on_gpu else 0.0)
        try:
            deepspeed.init_distributed(
                dist_backend="nccl" if on_gpu else "gloo",
                auto_mpi_discovery=False,
                verbose=False,
                timeout=timedelta(seconds=limit),
            )
        except (dist.DistStoreError, dist.DistNetworkError) as error:
            raise UptakeError(
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: the ranks did not meet at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {limit:.0f} s "
                f"({' '.join(str(error).split())[:120]}); see that every rank was started, that this address can be "
                "reached from all of them, and that the port is free",
                AGAIN,
            ) from error
        if own_port:  # a child process must not inherit a port that is taken
            del os.environ["MASTER_PORT"]
        _watch = Watch(timeout)
        atexit.register(stop_ranks)  # gloo's threads abort an interpreter that exits under them
    return deepspeed


@contextmanager
def together_from_here(timeout: float) -> Iterator[None]:
    """Around a run of several ranks, what it checks first included: a mistake of one ends all of them, at once.

    A single rank has nobody to meet, and is told of a mistake before it loads what ranks need (`start_ranks`).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    start_ranks(timeout)
    with watch().telling():
        yield


def stop_ranks() -> None:
    """Leave the process group, if there is one."""
    global _watch
    if _watch is not None:
        _watch.leave()
        _watch = None
    if dist.is_initialized():
        dist.destroy_process_group()


def watch() -> Watch:
    """This process's watch over the others."""
    assert _watch is not None, "start_ranks comes first"
    return _watch


@dataclass
class _Seen:
    """What one rank has last said of itself."""

    said: dict[str, Any]
    at: float  # of our clock


class Watch:
    """Tells the other ranks what this one does, and knows who is missing."""

    def __init__(self, limit: float) -> None:
        """
        Args:
            limit: seconds that a rank may wait in a collective operation.
        """
        self.limit = limit
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._doing, self._since = "starting", time.monotonic()
        self._count = 0
        self._waiting: float | None = None
        self._left: str | None = None
        self._mistake = False
        self._beat = 0
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()
        self._store: Any = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        if self._world > 1:
            # A connection of its own: the main thread may sit in a call on the group's.
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._exchange()
            self._thread = threading.Thread(target=self._live, daemon=True, name="uptake-watch")
            self._thread.start()

    def doing(self, what: str) -> None:
        """Note what this rank does from now on, as the others would be told."""
        if what != self._doing:
            self._doing, self._since = what, time.monotonic()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around whatever needs every rank.

        Raises:
            UptakeError: a rank did not come; the message names it and what it was doing. Its status is `MISTAKE` where
                that rank ended with one, `AGAIN` where it is lost, `FAILED` where it hangs.
        """
        self._count += 1
        self._waiting = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not of_the_network(error):
                raise
            raise self._who(time.monotonic() - self._waiting) from error
        finally:
            self._waiting = None

    def collect(self, value: Any) -> list[Any]:
        """Everyone's value, by rank. Between the ranks of one run only: pickled on the way."""
        out: list[Any] = [None] * self._world
        with self.together():
            dist.all_gather_object(out, value)
        return out

    def meet(self, place: str) -> None:
        """Wait until every rank has come here, however long its work before takes.

        Args:
            place: a name that is used once.

        Raises:
            UptakeError: one has ended, or gives no sign of life.
        """
        if self._store is None:
            return
        waiting = time.monotonic()
        with self._lock:
            self._store.set(f"uptake/{place}/{self._rank}", "")
        for rank in range(self._world):
            while not self._told(f"uptake/{place}/{rank}"):
                other = self._seen.get(rank)
                if other is not None and (other.said["left"] or time.monotonic() - other.at > GRACE):
                    raise self._who(time.monotonic() - waiting)
                time.sleep(BEAT / 4)

    def _told(self, key: str) -> bool:
        try:
            with self._lock:
                return bool(self._store.check([key]))
        except RuntimeError:
            self._store_is_gone()
            return False

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks why this one leaves, before anything else is wound up: they wait."""
        try:
            yield
        except BaseException as error:
            self.leave(error)
            raise

    def leave(self, error: BaseException | None = None) -> None:
        """Tell the others that this rank ends.

        Args:
            error: why; None when its work is done.
        """
        if self._left is not None or self._store is None:
            return
        why = "" if error is None else " ".join((str(error) or type(error).__name__).split())[:300]
        self._mistake = isinstance(error, UptakeError) and error.status == MISTAKE
        self._left = why
        self._over.set()
        try:
            self._exchange()
            if self._rank == 0:
                time.sleep(2 * BEAT if why else BEAT)  # the store may live in this process: let the others read it
            elif isinstance(error, UptakeError) and self._mistake and os.environ["LOCAL_RANK"] != "0":
                error.said = self._first_says_it()
        except RuntimeError:  # the store is gone: there is nobody to tell
            pass
        if self._thread is not None:  # an interpreter that ends while it is in a call of the store's aborts
            self._thread.join(GRACE)

    def _first_says_it(self) -> bool:
        """Whether the first rank ends with a mistake as well. It says so before this returns: a launcher that sees one
        rank end stops the others."""
        deadline, said = time.monotonic() + 3 * BEAT, False
        while time.monotonic() < deadline:
            time.sleep(BEAT / 4)
            if not said:
                self._exchange()
                said = 0 in self._seen and self._seen[0].said["mistake"]
        return said

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._exchange()
            except RuntimeError:
                self._store_is_gone()
            waited = 0.0 if (since := self._waiting) is None else time.monotonic() - since
            ended = [rank for rank, seen in self._seen.items() if seen.said["left"]]
            overdue = [rank for rank in ended if time.monotonic() - self._seen[rank].at > GRACE]
            if self._left is None and (waited > self.limit + GRACE or overdue):
                # What the main thread waits for cannot be interrupted.
                error = self._who(waited)
                print(f"uptake: {error}", file=sys.stderr, flush=True)
                os._exit(error.status)

    def _exchange(self) -> None:
        """Say what this rank does and read what the others said."""
        with self._lock:
            self._beat += 1
            said = {
                "beat": self._beat, "doing": self._doing, "count": self._count,
                "for": time.monotonic() - self._since, "left": self._left,
                "mistake": self._mistake,
            }  # fmt: skip
            self._store.set(_key(self._rank), json.dumps(said))
            for rank in range(self._world):
                if rank == self._rank or not self._store.check([_key(rank)]):
                    continue
                said = json.loads(self._store.get(_key(rank)))
                known = self._seen.get(rank)
                if known is None or known.said["beat"] != said["beat"]:
                    self._seen[rank] = _Seen(said, time.monotonic())

    def _store_is_gone(self) -> None:
        """It lives with rank 0 unless a launcher keeps it, and goes when rank 0 does."""
        known = self._seen.get(0)
        if known is not None and known.said["left"] is None and time.monotonic() - known.at > SILENT:
            known.said["left"] = f"killed, out of memory, or its machine is lost; last seen at {known.said['doing']}"

    def _who(self, waited: float) -> UptakeError:
        """Who is missing, after `waited` seconds, and what is to be done."""
        deadline = time.monotonic() + SILENT + BEAT
        while time.monotonic() < deadline and not any(seen.said["left"] for seen in self._seen.values()):
            time.sleep(BEAT / 4)
            try:
                self._exchange()
            except RuntimeError:
                self._store_is_gone()
        here = f"rank {self._rank} was at {self._doing}"
        resume = "go on from the last checkpoint with --resume"
        for rank, seen in sorted(self._seen.items()):
            if why := seen.said["left"]:
                status = MISTAKE if seen.said["mistake"] else AGAIN
                return UptakeError(f"rank {rank} has ended: {why} ({here}; {resume})", status)
        for rank, seen in sorted(self._seen.items()):
            if time.monotonic() - seen.at > SILENT and seen.said["left"] is None:
                return UptakeError(
                    f"rank {rank} is gone: killed, out of memory, or its machine is lost; last seen at "
                    f"{seen.said['doing']} ({here}); {resume}",
                    AGAIN,
                )
        behind = [rank for rank, seen in sorted(self._seen.items()) if seen.said["count"] < self._count]
        if behind:
            said = self._seen[behind[0]].said
            return UptakeError(
                f"rank {behind[0]} has been at {said['doing']} for {said['for']:.0f} s, and rank {self._rank} "
                f"({self._doing}) waited {waited:.0f} s for it: it hangs, or collective_timeout = {self.limit:g} is "
                f"too short; {resume}",
                FAILED,
            )
        return UptakeError(
            f"the ranks lost touch after {waited:.0f} s ({here}, and the others are in the same place): the network "
            f"between them, or collective_timeout = {self.limit:g} is too short; {resume}",
            FAILED,
        )


def _key(rank: int) -> str:
    return f"uptake/rank/{rank}"


def of_the_network(error: RuntimeError) -> bool:
    """Whether a collective operation failed, and not the arithmetic beside it."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""One process at a time writes a run folder: a lock on a file in it.

The kernel opens it however the process that holds it ends, so that a run which was killed can go on at once. A fork
would hold it as well and may outlive the process: it lets go first. A program that the process starts never has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from envs.errors import UptakeError

NAME = ".lock"
WAIT = 10.0
"""Seconds until a folder that is in use is refused: a launcher starts a run again at once, and of the one that was
stopped a process may still be ending."""
_WITHOUT = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))
"""What a file system says that has no locks, as some of NFS and Lustre."""
_held: set[int] = set()


def take(folder: Path) -> int:
    """Lock a folder; returns what `release` takes. Where the file system has no locks, a line on stderr says so.

    Raises:
        OSError: the folder cannot be written.
        UptakeError: another process has it.
    """
    path = folder / NAME
    held = os.open(path, os.O_RDWR | os.O_CREAT)  # closed in what is executed: Python's default
    _held.add(held)
    try:
        if _lock(held, path):
            os.ftruncate(held, 0)
            os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(held, 200, 0).decode(errors="replace") or "another process"
        release(held)
        raise UptakeError(
            f"{folder} is in use: {holder} trains in it; wait for its end, or stop it and go on with --resume, or "
            "start another run with name=NAME"
        ) from error
    except OSError:
        release(held)
        raise
    return held


def release(held: int) -> None:
    """Open a lock again."""
    if held in _held:
        _held.remove(held)
        os.close(held)


def _lock(held: int, path: Path) -> bool:
    """Whether the file could be locked, after at most `WAIT` seconds; raises `BlockingIOError` if another has it."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise
            print(
                f"{path}: this file system has no locks ({error.strerror}); see to it that no other process trains in "
                "this folder",
                file=sys.stderr,
            )
            return False


def _forked() -> None:
    """In a copy of the process: let go, which leaves the lock with the original."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forked)

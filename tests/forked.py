"""`uptake ...` in a child of this process, so that its start costs nothing and a test can break what it likes in it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from launch import cli


def start(arguments: list[str], errors: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start it and return its process id.

    Args:
        errors: a file for its stderr.
        prepare: called in the child before the command begins.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with errors.open("wb") as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        prepare()
        sys.argv = ["uptake", *arguments]
        cli.main()
        status = 0
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def command(arguments: list[str], errors: Path, prepare: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
    """Run it and return its exit status and the lines of its stderr; arguments as `start`."""
    _, status = os.waitpid(start(arguments, errors, prepare), 0)
    return os.waitstatus_to_exitcode(status), errors.read_text().splitlines()

"""`uptake ...` in a process of its own, in which a test can break what it likes.

Never a fork of the tests' process: after it, the threads that torch has started there are locks that nobody opens.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle

ROOT = Path(__file__).resolve().parents[1]
_RUN = """
import sys
import cloudpickle
prepare = cloudpickle.loads(sys.stdin.buffer.read())
prepare()
from launch import cli
sys.argv[0] = "uptake"
cli.main()
"""


def start(arguments: list[str], errors: Path, prepare: Callable[[], None] = lambda: None) -> subprocess.Popen[bytes]:
    """Start it.

    Args:
        errors: a file for its stderr.
        prepare: called in the child before the command begins.
    """
    with errors.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", _RUN, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file, cwd=ROOT,
        )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(cloudpickle.dumps(prepare))
    child.stdin.close()
    return child


def command(arguments: list[str], errors: Path, prepare: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
    """Run it and return its exit status and the lines of its stderr; arguments as `start`."""
    status = start(arguments, errors, prepare).wait()
    return status, errors.read_text().splitlines()

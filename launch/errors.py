"""Turns what went wrong into one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130

_FIX = {
    errno.ENOSPC: "no space left on the disk; free some, then go on with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space, then go on with --resume",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only; give another folder with runs=FOLDER",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, a file is needed",
}


def explain(error: BaseException) -> str | None:
    """One line for a mistake or a shortage that the caller can mend; None for a bug, which keeps its traceback."""
    from envs.errors import UptakeError  # here, because it loads numpy, which --help does without

    if isinstance(error, UptakeError):
        return " ".join(str(error).split())
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FIX:
            return f"{seen.filename}: {_FIX[seen.errno]}" if seen.filename else _FIX[seen.errno]
        # safetensors and torch wrap the system's error in their own, with the text kept
        if "No space left on device" in str(seen) or "os error 28" in str(seen):
            return _FIX[errno.ENOSPC]
        seen = seen.__cause__ or seen.__context__
    return None


def guarded(run: Callable[[], None]) -> int:
    """Call `run` and return the exit status: 0, that of an `UptakeError` after one line on stderr, 130 after Ctrl-C.

    Raises:
        Exception: whatever `explain` does not know; that is a bug, and its traceback is the report.
    """
    try:
        run()
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:  # which typer makes of a Ctrl-C
            raise
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # what has started the ranks says it, once
            print("uptake: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from envs.errors import MISTAKE

        line = explain(error)
        if line is None:
            raise
        if not getattr(error, "said", False):
            print(f"uptake: {line}", file=sys.stderr)
        return getattr(error, "status", MISTAKE)
    return 0

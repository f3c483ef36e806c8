"""Errors that a user can fix: one line that names the thing, its value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FAILED, MISTAKE, AGAIN = 1, 2, 75
"""Exit statuses: something that nobody expected; a person must act; start it again as it is (EX_TEMPFAIL)."""


class UptakeError(ValueError):
    """What one line can explain: mostly a user's mistake (config, scenario, pack, audio, checkpoint)."""

    def __init__(self, message: str, status: int = MISTAKE) -> None:
        """
        Args:
            status: what the command line ends with.
        """
        super().__init__(message)
        self.status = status
        self.said = False
        """Another rank has told it to the same terminal."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to `name`; None if none is like it."""
    return next(iter(difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.5)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to `name`, or the list of known names if none is.

    The result is meant to be appended to an error message; it is empty when nothing is known.
    """
    names = sorted(known)
    if (close := closest(name, names)) is not None:
        return f"; did you mean {close!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}"

"""Whether a run may have its folder: a new one, or with `--resume` the one that is there, of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.errors import UptakeError


def check_folder(folder: Path, resume: bool) -> None:
    """Raise `UptakeError` if the folder holds a run and `resume` is false, or the other way round."""
    there = (folder / "config.yaml").is_file()
    if there and not resume:
        raise UptakeError(f"{folder} holds a run already: go on with --resume, or start another with name=NAME")
    if resume and not there:
        raise UptakeError(f"{folder}: no run to resume; start it without --resume")


def check_unchanged(folder: Path, old: Any, config: Any, names: Sequence[str]) -> None:
    """Raise `UptakeError` for the first of these settings that is not what the run was started with.

    A trainer compares its own section.
    """
    for name in names:
        if getattr(old, name) != getattr(config, name):
            raise UptakeError(
                f"{folder} was started with {name} = {getattr(old, name)}, now it is {getattr(config, name)}; "
                "resume it as it was, or start another run with name=NAME"
            )

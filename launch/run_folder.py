"""Whether a run may have its folder: a new one, or with `--resume` the one that is there, of the same run; and whether
its disk has room."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from align import plan
from align.checkpoints import list_checkpoints
from align.trainers.run_config import RunConfig
from align.trainers.sft_config import SftConfig
from envs.errors import UptakeError

FREE_DISK = 500 * 2**20
"""Bytes that must be free at the start for conversations and the report, beside what `plan.disk` knows."""


def needed_disk(folder: Path, model: nn.Module, hidden: int, config: RunConfig | SftConfig) -> int:
    """Bytes that a run has yet to write into its folder; arguments as of `plan.written`."""
    kept = len(list_checkpoints(folder / "checkpoints"))
    return FREE_DISK + plan.disk(*plan.written(model, hidden, config), config, kept)


def check_disk(folder: Path, needed: int, config: RunConfig | SftConfig) -> None:
    """Raise `UptakeError` if the disk of a folder that is there has less than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UptakeError(
            f"{folder}: {free / 2**30:.1f} GiB free on its disk, this run needs {needed / 2**30:.1f} with "
            f"{config.section}.save_total_limit = {config.save_total_limit}; free some space or give another disk with "
            "runs=FOLDER"
        )


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

"""Whether a run may have its folder: a new one, or with `--resume` the one that is there, of the same run; alone in it,
and with room on its disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from align import plan
from align.checkpoints import list_checkpoints
from align.files import read_json, write_json
from align.trainers.run_config import RunConfig
from align.trainers.sft_config import SftConfig
from envs.errors import UptakeError
from launch import lock

T = TypeVar("T")
CONFIG, START = "config.yaml", "start.json"
FREE_DISK = 500 * 2**20
"""Bytes that must be free at the start for conversations and the report, beside what `plan.disk` knows."""


@contextmanager
def alone(folder: Path, resume: bool) -> Iterator[None]:
    """No other process takes the run folder inside; it is made where it is missing.

    What `claim` then looks at and writes is one step, for whoever else wants the folder.

    Raises:
        UptakeError: as `check_folder`; another process has it, or it cannot be made.
    """
    check_folder(folder, resume)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.take(folder)
    try:
        yield
    finally:
        lock.release(held)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around the first that is written for a run: where that cannot be, `UptakeError` says it of its folder."""
    try:
        yield
    except OSError as error:
        raise UptakeError(
            f"{folder}: cannot be made or written ({error.strerror}); give another with runs=FOLDER"
        ) from error


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
    there = (folder / CONFIG).is_file()
    if there and not resume:
        raise UptakeError(f"{folder} holds a run already: go on with --resume, or start another with name=NAME")
    if resume and not there:
        raise UptakeError(f"{folder}: no run to resume; start it without --resume")


def started_with(folder: Path, load: Callable[[str], T]) -> T:
    """The configuration in a run folder; raises `UptakeError` for a file that is empty, damaged, or of another kind."""
    path = folder / CONFIG
    try:
        return load(str(path))
    except UptakeError as error:
        raise UptakeError(
            f"{path}: not the configuration of this run ({error}); write it again, with what --dry-run prints of the "
            "run as it was started, or start another with name=NAME"
        ) from error


def check_start(folder: Path, resume: bool, contents: Mapping[str, str]) -> None:
    """Keep what a run starts from; with `resume`, raise `UptakeError` if that has changed.

    Args:
        contents: its parts, as a message may call them -> their SHA-256.
    """
    path = folder / START
    if resume and path.is_file():  # runs of older versions have none
        kept = read_json(path)
        if contents and not kept:
            raise UptakeError(f"{path}: empty; delete it, if policy and pack are those that the run was started with")
        for name in sorted(kept.keys() | contents.keys()):
            old, new = (str(found.get(name, "missing"))[:12] for found in (kept, contents))
            if old != new:
                raise UptakeError(
                    f"{folder}: {name} is not what it was when the run was started (SHA-256 {old}, now {new}); bring "
                    "it back, or start another run with name=NAME"
                )
    write_json(path, contents)


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

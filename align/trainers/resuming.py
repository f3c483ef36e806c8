"""Going on with a run: the newest checkpoint that is whole, and that it is of the same run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from align import checkpoints
from align.ranks import watch
from envs.errors import UptakeError


def newest(saved: Path) -> checkpoints.Checkpoint:
    """The newest whole checkpoint of a folder, which one rank looks for and all read.

    Raises:
        UptakeError: there is none.
    """
    rank = torch.distributed.get_rank()
    found = problem = ""
    if rank == 0:
        try:
            found = str(checkpoints.newest_whole(saved))
        except UptakeError as error:
            problem = str(error)
    found, problem = watch().collect((found, problem))[0]
    if problem:
        raise UptakeError(problem)
    return checkpoints.load(Path(found), rank)


def check_same(config: Any, seed: int, done: checkpoints.Checkpoint, free: Collection[str]) -> None:
    """A resumed run must be the run that was interrupted.

    Args:
        config: the dataclass of the algorithm's fields.
        free: names of those that may change.

    Raises:
        UptakeError: another field has another value.
    """
    theirs = {**done.state["config"], "seed": done.state["seed"]}
    for name, value in {**asdict(config), "seed": seed}.items():
        if name not in free and theirs.get(name) != value:
            raise UptakeError(
                f"--resume: {name} is {value!r}, but {done.path.name} was trained with {theirs.get(name)!r}; "
                "give the same value, or start a new run with another name="
            )

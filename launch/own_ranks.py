"""The ranks that `uptake train` starts itself, because its configuration says `ranks: 2`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import takewhile

from align.config import TrainConfig
from align.ranks import check_environment
from launch.children import ALONE, TORCHRUN, Children
from launch.threads import shared

_DEVICE = re.compile(r"[0-9]+|(GPU|MIG)-\S+")


def run_ranks(ranks: int, command: Sequence[str]) -> int:
    """Run a command of `uptake` in several ranks on this machine; the exit status, as of `launch.local`."""
    with Children(shared(ranks)) as children:
        start = [*TORCHRUN, *ALONE, f"--nproc-per-node={ranks}", "-m", "launch.cli", *command]
        return children.told(children.run(start))


def ranks_here(config: TrainConfig) -> int:
    """How many ranks `uptake train` starts itself: as many as the configuration says, but no two on one GPU; 1 in a
    rank that a launcher has started.

    Raises:
        UptakeError: half a launcher's environment.
    """
    check_environment()
    if "RANK" in os.environ:
        return 1
    return min(config.ranks, gpus() or config.ranks)


def gpus() -> int:
    """GPUs that this node shows, without starting CUDA in this process."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        # CUDA stops at the first name that is none of a device, such as -1 or NoDevFiles, and shows none named twice.
        names = list(takewhile(_DEVICE.fullmatch, (name.strip() for name in shown.split(","))))
        return len(names) if len(names) == len(set(names)) else 0
    import torch

    return torch.cuda.device_count()

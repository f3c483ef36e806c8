"""What every node must have in common before a run may start on them: `uptake launch` looks first.

One process a node, over gloo: versions, GPUs and their free memory, a run folder that all of them see, its disk.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from align.loading import load_shape
from align.ranks import of_the_network
from envs.errors import AGAIN, UptakeError
from launch.errors import guarded
from launch.local import MEETING_SECONDS
from launch.named import Named, find
from launch.run_folder import needed_disk, writing

PACKAGES = ("uptake", "torch", "deepspeed", "transformers", "peft", "numpy")
LEAST_GPU_SHARE = 0.9
"""Of a GPU's memory that must be free: another process would be in the way."""


@dataclass(frozen=True)
class Node:
    """What one node says of itself."""

    index: int
    host: str
    versions: dict[str, str]
    gpus: tuple[tuple[str, int, int], ...]
    """Name, free and total bytes."""
    token: str
    """What it reads in the run folder; the first node has written it there."""
    free_disk: int
    needed_disk: int
    """What the run has yet to write."""
    wrong: str = ""
    """Why it cannot read the policy."""


def look(index: int, run: Named) -> Node:
    """This node, its run folder excepted."""
    folder, wrong, needed = run.config.folder, "", 0
    try:
        needed = needed_disk(folder, *load_shape(run.config.policy), run.section)
    except UptakeError as error:
        wrong = str(error)
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    gpus = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        gpus.append((torch.cuda.get_device_name(i), free, total))
    free = shutil.disk_usage(_parent(folder)).free
    return Node(index, socket.gethostname(), versions, tuple(gpus), "", free, needed, wrong)


def problems(nodes: Sequence[Node], ranks: int, token: str) -> list[str]:
    """Why these nodes cannot train together, a line each; empty if they can."""
    first, found = nodes[0], []
    with_gpus = any(node.gpus for node in nodes)
    for node in nodes:
        who = f"node {node.index} ({node.host})"
        for name, version in node.versions.items():
            if version != first.versions[name]:
                found.append(f"{who}: {name} {version}, node 0 has {first.versions[name]}; install the same one")
        if with_gpus and len(node.gpus) < ranks:
            found.append(f"{who}: {len(node.gpus)} GPUs for {ranks} ranks; give --ranks {len(node.gpus)}, or more GPUs")
        for i, (name, free, total) in enumerate(node.gpus[:ranks]):
            if free < LEAST_GPU_SHARE * total:
                found.append(
                    f"{who}: GPU {i} ({name}) has {free / 2**30:.0f} of {total / 2**30:.0f} GiB free; another process "
                    "uses it"
                )
        if node.token != token:
            found.append(f"{who}: does not see the run folder of node 0; put runs= on storage that all nodes share")
        if node.wrong:
            found.append(f"{who}: {node.wrong}")
        if node.free_disk < node.needed_disk:
            found.append(
                f"{who}: {node.free_disk / 2**30:.1f} GiB free for the run folder, this run needs "
                f"{node.needed_disk / 2**30:.1f}; free some"
            )
    return found


def main(
    config: str,
    ranks: Annotated[int, typer.Option()],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
) -> None:
    """Compare all nodes; raises UptakeError on each of them for what is wrong with any."""
    run = find(config, overrides or [])
    folder = run.config.folder
    index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=MEETING_SECONDS))
    except (RuntimeError, dist.DistError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UptakeError(
            f"node {index}: {world} nodes did not meet at {where} within {MEETING_SECONDS} s; is the port open?", AGAIN
        ) from error
    try:
        node = look(index, run)
        mark = folder.with_name(f".{folder.name}.preflight")
        token = [uuid.uuid4().hex]
        dist.broadcast_object_list(token, 0)
        if index == 0:
            with writing(folder):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.write_text(token[0], encoding="utf-8")
        dist.barrier()
        seen = mark.read_text(encoding="utf-8") if mark.is_file() else ""
        nodes: list[Any] = [None] * world
        dist.all_gather_object(nodes, Node(**{**vars(node), "token": seen}))
        if index == 0:
            mark.unlink()
    except RuntimeError as error:
        if not of_the_network(error):
            raise
        raise UptakeError(
            f"node {index}: another node has gone while they were compared; start again", AGAIN
        ) from error
    finally:
        dist.destroy_process_group()
    if found := problems(nodes, ranks, token[0]):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UptakeError(f"preflight: {found[0]}{more}")
    if index == 0 and world > 1:
        print(f"preflight: {world} nodes of one kind, {ranks} ranks each, one run folder")


def _parent(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(guarded(app))

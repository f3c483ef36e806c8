"""`uptake doctor`: what this machine and this installation have, and what a run would miss."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from envs.errors import UptakeError
from launch.terminal import make_console
from launch.threads import available

FREE_DISK = 2 * 2**30  # bytes that a quickstart may need for checkpoints, episodes and the report
FREE_MEMORY = 6 * 2**30


def run_doctor(console: Console | None = None) -> bool:
    """Print one line a check and return whether nothing is wrong."""
    console = console or make_console()
    table = Table(show_header=False, box=None, pad_edge=False)
    good = True
    for name, check in CHECKS:
        try:
            mark, text = "[green]ok[/]", check()
        except UptakeError as error:
            good = False
            mark, text = "[red]fix[/]", str(error)
        table.add_row(mark, f"[bold]{name}[/]", text)
    console.print(table)
    return good


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _dependencies() -> str:
    wrong = []
    requirements = [Requirement(line) for line in importlib.metadata.requires("uptake") or []]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        raise UptakeError(f"{'; '.join(wrong)}; run: pip install -e .")
    return f"{len(needed)} packages inside their tested ranges"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"torch {torch.__version__}, {torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return f"torch {torch.__version__}, no GPU: {available()} CPU cores"


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return "unknown on this system"
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < FREE_MEMORY:
        raise UptakeError(f"{free / 2**30:.1f} GiB of memory; the quickstart is made for {FREE_MEMORY / 2**30:.0f}")
    return f"{free / 2**30:.1f} GiB"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < FREE_DISK:
        raise UptakeError(f"{free / 2**30:.1f} GiB free here; a run may need {FREE_DISK / 2**30:.0f}; free some")
    return f"{free / 2**30:.1f} GiB free here"


def _pack() -> str:
    from envs.pack import Pack

    pack = Pack.load("core")
    return f"core, {len(pack.scenarios())} scenarios, {pack.hash[:12]}"


def _policy() -> str:
    from align.loading import load_policy

    policy = load_policy("pocket")
    count = sum(parameter.numel() for parameter in policy.model.parameters())
    return (
        f"pocket, {count / 1e6:.1f} M parameters, {policy.spec.frame / policy.spec.sample_rate * 1000:.0f} ms a frame"
    )


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("Python", _python),
    ("dependencies", _dependencies),
    ("device", _device),
    ("memory", _memory),
    ("disk", _disk),
    ("pack", _pack),
    ("policy", _policy),
)

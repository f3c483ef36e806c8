"""`uptake sft`: a warm start on recordings of people.

.lock            held by the process that trains (`launch.lock`)
start.json       SHA-256 of the policy's files
config.yaml      every field of the configuration
data/            columns of the recordings, as the policy's codec hears them
metrics.jsonl    one line an iteration
checkpoints/     to go on from
policy/          the trained checkpoint, for `uptake train`, `eval` and `export`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from align import origin, plan, settings
from align.loading import load_policy
from align.policies.base import DuplexPolicy
from align.ranks import start_ranks, stop_ranks, together_from_here, watch
from align.rollout import check_context
from align.trainers import sft
from align.trainers.sft_config import WarmStartConfig, load_config
from envs.corpora.dialogues import Dialogue, find
from envs.corpora.recording import Refusal
from envs.errors import UptakeError
from launch.run_folder import (
    CONFIG,
    alone,
    check_disk,
    check_folder,
    check_start,
    check_unchanged,
    needed_disk,
    started_with,
)
from launch.terminal import make_console


def run_sft(
    name_or_path: str,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> Path | None:
    """Train on recordings and return the trained checkpoint (None for a dry run and on all ranks but the first).

    Raises:
        UptakeError: a mistake in the configuration, the recordings or the checkpoint; a run folder that is in use
            already, or none to resume.
    """
    console = console or make_console()
    config = load_config(name_or_path, overrides)
    if dry_run:
        _, teaching = _prepare(config)
        console.print(settings.dump(config), end="", markup=False, highlight=False)
        for path in filter(None, (config.data.path, config.data.dev)):
            console.print(f"# {_inventory(Path(path), config)}", markup=False, highlight=False, soft_wrap=True)
        for line in _plan(teaching, config):
            console.print(f"# {line}", markup=False, highlight=False, soft_wrap=True)
        return None
    with together_from_here(config.sft.collective_timeout):
        return _run(config, console, resume)


def _prepare(config: WarmStartConfig) -> tuple[DuplexPolicy, sft.Teaching]:
    """Load what a configuration names; raises `UptakeError` for the first thing that is wrong."""
    config.sft.check(int(os.environ.get("WORLD_SIZE", "1")))
    policy = load_policy(config.policy, dtype=torch.bfloat16 if config.sft.bf16 else torch.float32)
    teaching = sft.teach(policy, config.sft)
    check_context(policy.spec, config.sft.frames, "sft.frames")
    return policy, teaching


def _run(config: WarmStartConfig, console: Console, resume: bool) -> Path | None:
    policy, _ = _prepare(config)
    first = os.environ.get("RANK", "0") == "0"
    with alone(config.folder, resume) if first else nullcontext():
        return _train(config, policy, console, resume, first)


def _train(config: WarmStartConfig, policy: DuplexPolicy, console: Console, resume: bool, first: bool) -> Path | None:
    """What is done alone in the run folder."""
    if first:
        _claim(config, policy, resume)
    start_ranks(config.sft.collective_timeout)
    watch().meet("claimed")
    # wandb would print its own summary and listen in on the progress bar; what it logs is not touched.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    sft.train(
        config.sft,
        policy,
        config.data,
        config.folder,
        seed=config.seed,
        resume=resume,
        wandb_mode=config.wandb.mode,
        wandb_project=config.wandb.project,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    stop_ranks()
    if not first:
        return None
    out = config.folder / "policy"
    console.print(f"policy: [bold]{out.resolve()}[/]", soft_wrap=True)
    return out


def _inventory(path: Path, config: WarmStartConfig) -> str:
    """What headers and word times say of recordings; raises UptakeError for one that cannot be used."""
    _, found = find(path, config.data.layout or None, config.data.agent)
    refused = [one for one in found if isinstance(one, Refusal)]
    if refused and not config.data.skip_unusable:
        raise UptakeError(f"recording {refused[0].id}: {refused[0].reason}: {refused[0].detail}")
    usable = [one for one in found if isinstance(one, Dialogue)]
    words = sum(len(one.said) for one in usable)
    return f"{path}: {len(usable)} conversations with {words} words, {len(refused)} left out"


def _plan(teaching: sft.Teaching, config: WarmStartConfig) -> list[str]:
    """What the run will take."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    loading = plan.loading(teaching.model, config.sft)
    written = plan.written(teaching.model, 0, config.sft)
    sft.choose(teaching, config.sft)
    pace = plan.measure_lesson(teaching, config.sft)
    lines = plan.lesson_lines(teaching.model, pace, config.sft, world)
    return [loading, *lines, plan.disk_line(*written, config.sft)]


def _claim(config: WarmStartConfig, policy: DuplexPolicy, resume: bool) -> None:
    """Take the run folder: a new one, or with `resume` the one that is there. Nothing in it is ever overwritten.

    Raises:
        UptakeError: the folder holds a run and `resume` is false, or the other way round; it was started with or from
            something else; the disk is too full.
    """
    folder = config.folder
    check_folder(folder, resume)
    if resume:
        old = started_with(folder, load_config)
        check_unchanged(folder, old, config, ("policy", "data", "seed"))
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, needed_disk(folder, policy.model, policy.spec.hidden, config.sft), config.sft)
    check_start(folder, resume, origin.contents(config.policy, policy))
    settings.save(config, folder / CONFIG)

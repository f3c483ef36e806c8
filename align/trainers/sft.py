"""Supervised warm start on recordings of two people: a policy that speaks like one of them.

    uptake sft pocket data.path=recordings
    torchrun --nproc_per_node 2 -m launch.cli sft pocket data.path=recordings         # the same, on two ranks
    uptake sft pocket data.path=recordings --resume

A Moshi-class policy learns its text and its codes (arXiv 2410.00037, moshi-finetune), on request with delays that
differ and that it is told (arXiv 2509.08753); a chunk policy learns when to answer and what (the dual loss of
Audio-Interaction, arXiv 2606.05121). What differs from the published training: columns are shifted by the policy's
emission lag, so that a policy that streams is in time with the data.

One iteration, top to bottom in `train`: draw examples, losses of every term over their global counts, one optimiser
step, log, measure on the dev recordings, checkpoint. Checkpoints, resume, Ctrl-C and ranks are those of GRPO and PPO:
which examples are met follows from seed and iteration, and a resumed run is bit for bit the one that was not stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from align import checkpoints
from align.engine import Engine
from align.files import write_json, write_tensors
from align.monitor import Monitor
from align.policies.chunk.model import ChunkModel
from align.policies.chunk.policy import ChunkPolicy
from align.policies.chunk.teaching import ChunkTeaching
from align.policies.moshi.delay import WAVES
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.teaching import MoshiTeaching
from align.ranks import start_ranks
from align.signals import Interrupt
from align.tally import Tally
from align.trainers import learner, resuming, sft_data
from align.trainers.learner import choose_trained, engine_config, export_trained
from align.trainers.sft_data import Examples
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy
    from align.trainers.sft_config import DataConfig, SftConfig

Teaching = MoshiTeaching | ChunkTeaching
FREE = frozenset((
    "iterations", "delay", "eval_steps", "save_steps", "save_total_limit", "nan_budget", "per_device_train_batch_size",
    "zero_stage", "offload", "gradient_checkpointing", "collective_timeout", "tensorboard", "learning_rate",
))  # fmt: skip
"""What may change on --resume: what changes no figure of training, its length, how its ranks share the work, and the
learning rate: the run that broke would break again at the old one."""


def train(
    config: SftConfig,
    policy: DuplexPolicy,
    data: DataConfig,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    wandb_mode: str = "disabled",
    wandb_project: str = "uptake",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train a policy in place and write the run folder: `data/`, `metrics.jsonl`, `checkpoints/`, `policy/` at the end.

    Args:
        policy: what training starts from, of the Moshi class or a chunk policy. Afterwards it is the trained policy,
            with whole weights, on every rank.
        data: which recordings.
        folder: the run folder.
        seed: everything random derives from it.
        resume: continue from the newest whole checkpoint of the folder, if it has one.
        say: told, on the first rank, what there is to learn from.

    Returns:
        Metrics of the last iteration that was made; empty if none was left.

    Raises:
        UptakeError: a configuration or a recording that cannot be trained with, a full disk, a checkpoint that does
            not fit, or too many losses that are not numbers.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written. A second Ctrl-C does not wait for it.
    """
    start_ranks(config.collective_timeout)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    config.check(world)
    teaching, saved = teach(policy, config), folder / "checkpoints"
    there = bool(checkpoints.list_checkpoints(saved))
    if there and not resume:
        raise UptakeError(f"{folder}: already holds a run; continue it with --resume, or give another name=")
    done = resuming.newest(saved) if there else None
    examples = sft_data.prepare(teaching, data, data.path, config, folder, say)
    dev = sft_data.prepare(teaching, data, data.dev, config, folder, say) if data.dev else None
    digest = examples.digest()
    if rank == 0:
        say(
            f"{len(examples.starts)} examples of {config.frames} frames; one pass over them is "
            f"{len(examples.starts) / config.train_batch_size:.1f} iterations"
        )
    with torch.random.fork_rng():  # the adapters' first values
        torch.manual_seed(seed)
        choose(teaching, config)
    engine = Engine(teaching, engine_config(config))
    first, skipped = 0, 0
    if done is not None:
        resuming.check_same(config, seed, done, FREE)
        if done.state["data"] != digest:
            raise UptakeError(
                f"--resume: the recordings are not those that {done.path.name} was trained on; bring them back, or "
                "start a new run with another name="
            )
        engine.load_model_tensors(done.model)
        with done.optimizer as optimizer:
            engine.load_optimizer_tensors(optimizer)
        if done.rng is not None:
            checkpoints.set_rng_tensors(done.rng)
        first, skipped = done.iteration, done.state["skipped_updates"]

    monitor = Monitor(
        folder, config.iterations, first=first, active=rank == 0, wandb_mode=wandb_mode, project=wandb_project,
        tensorboard=config.tensorboard, on_phase=engine.watch.doing,
        config={**asdict(config), "seed": seed, "world": world},
    )  # fmt: skip
    metrics: dict[str, float] = {}
    with Interrupt() as interrupt, monitor, engine.watch.telling():
        for iteration in range(first, config.iterations):
            began, tally = time.perf_counter(), Tally()

            # One optimiser step on this rank's share of the iteration's examples --------------------------------
            monitor.phase("updating")
            share = config.train_batch_size // world
            mine = slice(rank * share, (rank + 1) * share)
            chosen = examples.drawn(iteration, config.train_batch_size, seed)[mine]
            late = sft_data.delays(iteration, config.train_batch_size, seed, config.max_delay)[mine]
            if not _update(config, engine, teaching, examples, chosen, late, iteration, tally):
                skipped += 1
                _dump(folder / f"nan-{iteration:06d}-rank{rank}", teaching, examples, chosen, late)
                if skipped > config.nan_budget:
                    raise UptakeError(
                        f"{skipped} updates gave a loss or a gradient that is not a number, more than sft.nan_budget = "
                        f"{config.nan_budget}; see {folder}/nan-*.json, lower sft.learning_rate and --resume from the "
                        "last checkpoint"
                    )
            tally.add("time/update", time.perf_counter() - began)
            tally.add("epoch", (iteration + 1) * config.train_batch_size / len(examples.starts))

            # Measure, log and checkpoint -------------------------------------------------------------------------
            last = iteration + 1 == config.iterations
            if dev is not None and (last or (config.eval_steps and (iteration + 1) % config.eval_steps == 0)):
                monitor.phase("measuring")
                _measure(config, engine, teaching, dev, tally)
            metrics = Tally.merge(engine.collect(tally.state())).means()
            metrics |= {"learning_rate": config.learning_rate_at(iteration), "skipped_updates": float(skipped)}
            monitor.log(iteration, metrics, {})
            stop = not engine.all_true(not interrupt.requested)
            if stop or last or (iteration + 1) % config.save_steps == 0:
                monitor.phase("saving")
                checkpoints.save_checkpoint(
                    saved,
                    iteration + 1,
                    model=engine.model_tensors(),
                    optimizer=engine.optimizer_tensors(),
                    rng=checkpoints.rng_tensors(),
                    state={"config": asdict(config), "seed": seed, "skipped_updates": skipped, "data": digest},
                    keep=config.save_total_limit,
                    rank=rank,
                    world=world,
                    barrier=engine.agree,
                )
            if stop:
                raise KeyboardInterrupt
    if not engine.all_true(not interrupt.requested):  # pressed since, while wandb was finishing
        raise KeyboardInterrupt
    engine.release()
    teaching.settle()
    export_trained(policy, config, folder / "policy" if rank == 0 else None)
    return metrics


def teach(policy: DuplexPolicy, config: SftConfig) -> Teaching:
    """A policy's columns and losses; UptakeError for one that has none, or a configuration that does not fit it."""
    if isinstance(policy, MoshiPolicy):
        return MoshiTeaching(policy, config)
    if isinstance(policy, ChunkPolicy):
        return ChunkTeaching(policy, config)
    raise UptakeError(
        f"a {type(policy).__name__} cannot be warm-started from recordings; give a checkpoint of the Moshi class or of "
        "a chunk policy"
    )


# Learning -------------------------------------------------------------------------------------------------------------


def _update(
    config: SftConfig,
    engine: Engine,
    teaching: Teaching,
    examples: Examples,
    chosen: Sequence[int],
    late: Sequence[int],
    iteration: int,
    tally: Tally,
) -> bool:
    """One optimiser step on this rank's examples; False if it was skipped, on all ranks, for a NaN."""
    size, step_loss = config.per_device_train_batch_size, 0.0
    parts = [
        examples.batch(teaching, chosen[at : at + size], late[at : at + size], engine.device)
        for at in range(0, len(chosen), size)
    ]
    counts = [teaching.counts(codes) for codes, _ in parts]
    terms = list(teaching.weights)
    totals = dict(zip(terms, engine.total([sum(count[term] for count in counts) for term in terms]), strict=True))
    for number, (codes, delays) in enumerate(parts):
        out = engine(codes, delays)
        # The engine sums micro-batches and averages ranks: every term is a mean over what all of them hold of it.
        loss = sum(
            (weight * engine.world / totals[term]) * out[f"sum/{term}"]
            for term, weight in teaching.weights.items()
            if weight and totals[term]
        )
        if not isinstance(loss, torch.Tensor):
            raise UptakeError(f"iteration {iteration}: nothing to learn from in its examples; give more recordings")
        if not engine.all_true(bool(torch.isfinite(loss))):
            engine.discard()
            return False
        engine.backward(loss, last=number + 1 == len(parts))
        step_loss += float(loss.detach())
        _tally(tally, "loss", out, counts[number])
    norm = engine.step(config.learning_rate_at(iteration))
    if not math.isfinite(norm):
        return False
    tally.add("loss", step_loss)
    tally.add("grad_norm", norm)
    return True


@torch.no_grad()
def _measure(config: SftConfig, engine: Engine, teaching: Teaching, dev: Examples, tally: Tally) -> None:
    """Losses on the dev recordings, over all ranks; each makes as many passes, as ZeRO-3 needs them."""
    size = config.per_device_train_batch_size
    every = range(len(dev.starts))
    mine = every[engine.rank :: engine.world]
    for at in range(0, len(every[:: engine.world]), size):
        chosen = mine[at : at + size]
        codes, delays = dev.batch(teaching, chosen or every[:1], [config.delay] * (len(chosen) or 1), engine.device)
        out = engine(codes, delays)
        if chosen:
            _tally(tally, "dev", out, teaching.counts(codes))


def _tally(tally: Tally, name: str, out: dict[str, torch.Tensor], counts: dict[str, float]) -> None:
    for key, value in out.items():
        kind, _, what = key.partition("/")
        if kind == "sum":
            tally.add(f"{name}/{what}", float(value.detach()), counts[what])
        elif kind == "right":
            tally.add(f"{name}/{what}_right", float(value), float(out[f"count/{what}"]))


def _dump(path: Path, teaching: Teaching, examples: Examples, chosen: Sequence[int], late: Sequence[int]) -> None:
    """What a skipped update was about: its examples (`.json`) and their codes (`.safetensors`)."""
    rows = [
        {"recording": examples.names[which], "frame": start, "delay": delay}
        for (which, start), delay in zip((examples.starts[one] for one in chosen), late, strict=True)
    ]
    write_json(path.with_suffix(".json"), {"version": 1, "rows": rows})
    codes, _ = examples.batch(teaching, chosen, late, torch.device("cpu"))
    write_tensors(path.with_suffix(".safetensors"), {"codes": codes})


def trained_parameters(model: nn.Module, config: SftConfig) -> int:
    """Numbers that a warm start trains; the model as of `learner.trained_parameters`."""
    voice = ChunkTeaching.voice if isinstance(model, ChunkModel) else MoshiTeaching.voice
    trained = learner.trained_parameters(model, config, 0, () if config.audio_weight else voice)
    if isinstance(model, MoshiModel) and config.max_delay:
        trained += 2 * WAVES * model.config.dim  # `DelayEmbedding`
    return trained


def choose(teaching: Teaching, config: SftConfig) -> None:
    """Freeze a model, or give it adapters, as the run will."""
    choose_trained(teaching.model, config)
    if not config.audio_weight:  # without a gradient, weight decay would still change it
        for name, parameter in teaching.model.named_parameters():
            if name.startswith(teaching.voice):
                parameter.requires_grad_(False)

"""What every run is round its trainer's arithmetic: start or resume, converse, survive, log, save, export."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import checkpoints, curriculum, rollout
from align.alarms import Alarms, observe
from align.context import Contexts
from align.files import write_tensors
from align.monitor import Monitor
from align.policies.moshi.policy import MoshiPolicy
from align.ranks import start_ranks
from align.signals import Interrupt, Interrupted
from align.tally import Tally
from align.trainers import resuming
from align.trainers.learner import Learner, Old
from align.trainers.run_config import RunConfig
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy


FREE = frozenset((
    "iterations", "save_steps", "save_total_limit", "nan_budget", "per_device_train_batch_size", "zero_stage",
    "offload", "gradient_checkpointing", "collective_timeout", "log_episodes_steps", "tensorboard", "alarms",
    "learning_rate",
))  # fmt: skip
"""What may change on --resume: what changes no figure, the length of the run, how its ranks share the work, and the
learning rate: the run that broke would break again at the old one."""


class Run:
    """One run folder, one policy, and where in its iterations it is.

    A trainer makes one, loops over `run.iterations()` inside `with run`, and calls `finish` after.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: DuplexPolicy,
        folder: Path,
        *,
        seed: int,
        resume: bool,
        tail: float,
        wandb_mode: str,
        wandb_project: str,
        values: bool = False,
        value_learning_rate: float | None = None,
    ) -> None:
        """Check the configuration, join the ranks, load the newest whole checkpoint if asked to.

        Args:
            values: put a value head on the policy (`Learner`).
            value_learning_rate: of the head; None: that of the rest.

        Raises:
            UptakeError: a configuration that cannot be trained with, a folder that holds a run already, a checkpoint
                that does not fit.
        """
        # Before anything is allocated: a second rank must not sit on the first one's GPU.
        start_ranks(config.collective_timeout)
        self.world, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        config.check(self.world)
        saved = folder / "checkpoints"
        done = resuming.newest(saved) if resume else None
        if done is None and checkpoints.list_checkpoints(saved):
            raise UptakeError(f"{folder}: already holds a run; continue it with --resume, or give another name=")
        self.config, self.policy, self.folder, self.seed = config, policy, folder, seed
        with torch.random.fork_rng():  # the adapters' first values
            torch.manual_seed(seed)
            self.learner = Learner(policy, config, values=values, value_learning_rate=value_learning_rate)
        self.engine = self.learner.engine
        self.first, self.skipped = 0, 0
        self.carried: dict[str, float] = {}
        """Numbers that a trainer carries from one iteration to the next."""
        self._axis_rewards: dict[str, float] = {}
        self._alarms = Alarms(config.alarms)
        self._contexts: Contexts | None = None
        if done is not None:
            self._restore(done)
        self.monitor = Monitor(
            folder, config.iterations, first=self.first, tail=tail, active=self.rank == 0, wandb_mode=wandb_mode,
            project=wandb_project, tensorboard=config.tensorboard, on_phase=self.engine.watch.doing,
            config={**asdict(config), "seed": seed, "world": self.world},
        )  # fmt: skip
        self._interrupt = Interrupt()
        self._stack = ExitStack()
        self._began = 0.0

    def __enter__(self) -> Run:
        # In this order: wandb takes seconds to start, and a Ctrl-C may come then.
        with ExitStack() as stack:
            stack.enter_context(self._interrupt)
            stack.enter_context(self.monitor)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            # Before anything else: the others wait, and are told why they need not.
            self.engine.watch.leave(value)
        self._stack.__exit__(kind, value, trace)

    def _restore(self, done: checkpoints.Checkpoint) -> None:
        resuming.check_same(self.config, self.seed, done, FREE)
        self.engine.load_model_tensors(done.model)
        with done.optimizer as saved:
            self.engine.load_optimizer_tensors(saved)
        if done.rng is not None:
            checkpoints.set_rng_tensors(done.rng)
        self.first, self.skipped = done.iteration, done.state["skipped_updates"]
        self._axis_rewards = dict(done.state["axis_rewards"])
        self.carried = dict(done.state["carried"])
        self._alarms.load(done.state["alarms"])

    def iterations(self) -> Iterator[int]:
        """The iterations that are left; none after the reward has stopped rising for `alarms.no_better_for`."""
        for iteration in range(self.first, self.config.iterations):
            if self._alarms.no_better:
                return
            yield iteration

    def converse(self, env: Any, iteration: int, drawn: Sequence[curriculum.Draw], group_size: int) -> rollout.Rollout:
        """Roll out this rank's conversations.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint at the start of this iteration is written.
            UptakeError: the weights are broken.
        """
        self._began = self._began or time.perf_counter()  # an iteration may converse more than once
        rng = checkpoints.rng_tensors()

        def on_frame(frame: int) -> None:
            self.monitor.phase(f"conversing {frame + 1}/{self.config.frames}")
            if self.world == 1:  # several ranks must leave together, below
                self._interrupt.check()

        try:
            with self.engine.gathered():
                played = rollout.collect(
                    self.policy,
                    env,
                    [d.scenario for d in drawn],
                    [d.variant for d in drawn],
                    group_size,
                    [s for d in drawn for s in d.seeds],
                    self.config.frames,
                    env_seed=self.seed,
                    prompts=self._prompts(env, iteration, drawn),
                    on_frame=on_frame,
                )
            if not self.engine.all_true(not self._interrupt.requested):
                raise Interrupted
        except Interrupted:
            self._save(iteration, rng)  # the weights are those of the last boundary: this iteration is done anew
            raise KeyboardInterrupt from None
        except FloatingPointError as error:
            raise UptakeError(
                f"iteration {iteration}: {error}; lower {self.config.section}.learning_rate and --resume from the "
                "last checkpoint"
            ) from error
        return played

    def _prompts(self, env: Any, iteration: int, drawn: Sequence[curriculum.Draw]) -> list[Any] | None:
        """What the conversations begin with, where some begin in the middle."""
        config = self.config
        if not config.max_context_s:
            return None
        if self._contexts is None:
            if not isinstance(self.policy, MoshiPolicy):
                kind = type(self.policy).__name__
                raise UptakeError(
                    f"{config.section}.max_context_s = {config.max_context_s}: {kind} cannot begin in the middle of a "
                    "recording; set it to 0"
                )
            self._contexts = Contexts(
                env.pack, self.policy, longest_s=config.max_context_s, probability=config.context_probability,
                iterations=config.iterations, seed=self.seed,
            )  # fmt: skip
        return self._contexts.prompts(iteration, drawn)

    def skip_update(
        self,
        iteration: int,
        step: int,
        drawn: Sequence[curriculum.Draw],
        rows: Sequence[int],
        old: Old,
        advantages: Tensor,
    ) -> None:
        """Count an update that was skipped for a NaN and write what it was about.

        Raises:
            UptakeError: more of them than `nan_budget`.
        """
        self.skipped += 1
        _dump(self.folder / f"nan-{iteration:06d}-{step}-rank{self.rank}", drawn, rows, old, advantages)
        if self.skipped > self.config.nan_budget:
            section = self.config.section
            raise UptakeError(
                f"{self.skipped} updates gave a loss or a gradient that is not a number, more than "
                f"{section}.nan_budget = {self.config.nan_budget}; see {self.folder}/nan-*.json, lower "
                f"{section}.learning_rate and --resume from the last checkpoint"
            )

    def end_iteration(
        self, iteration: int, tally: Tally, played: rollout.Rollout, step: int, axes: Sequence[str]
    ) -> dict[str, float]:
        """Log one iteration and write a checkpoint if one is due; returns its metrics.

        Args:
            step: optimiser steps of the run so far.
            axes: whose rewards the terminal shows.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the checkpoint is written.
            UptakeError: an alarm that ends the run; the checkpoint is written.
        """
        spec = self.policy.spec
        pace = played.frames_per_second * self.world
        tally.add("rollout/frames_per_second", pace)
        tally.add("rollout/real_time_factor", pace * spec.frame / spec.sample_rate)
        observe(played.episodes, tally)
        tally.add("time/rollout", played.seconds)
        tally.add("step_time", time.perf_counter() - self._began)
        self._began = 0.0
        metrics = Tally.merge(self.engine.collect(tally.state())).means()
        metrics |= {"learning_rate": self.config.learning_rate_at(step - 1), "skipped_updates": float(self.skipped)}
        smooth = self._axis_rewards
        for axis in axes:
            if (value := metrics.get(f"axis/{axis}")) is not None:
                smooth[axis] = value if axis not in smooth else 0.7 * smooth[axis] + 0.3 * value
        alarms = self._alarms.update(metrics)  # every rank has the same metrics
        metrics["alarms"] = float(self._alarms.count)
        self.monitor.log(iteration, metrics, smooth, alarms)
        self._keep(iteration, played)
        stop = not self.engine.all_true(not self._interrupt.requested)
        ends = bool(alarms) and self.config.alarms.stop
        last = iteration + 1 == self.config.iterations or self._alarms.no_better
        if stop or ends or last or (iteration + 1) % self.config.save_steps == 0:
            self.monitor.phase("saving")
            self._save(iteration + 1, checkpoints.rng_tensors())
        if stop:
            raise KeyboardInterrupt
        if ends:
            raise UptakeError(
                f"iteration {iteration}: {alarms[0]}; a checkpoint is written. Look at the conversations in "
                f"{self.folder / 'episodes' / 'training'}, and go on with --resume if nothing "
                "is wrong"
            )
        return metrics

    def _keep(self, iteration: int, played: rollout.Rollout) -> None:
        """Write a conversation every so often, of another row each time, and show it."""
        every = self.config.log_episodes_steps
        if self.rank or not every or iteration % every:
            return
        episode = played.episodes[iteration // every % len(played.episodes)]
        episode.save(self.folder / "episodes" / "training" / f"iteration-{iteration:06d}")
        self.monitor.conversation(iteration, episode)

    def finish(self) -> None:
        """Leave the trained policy with whole weights on every rank, and export it."""
        if not self.engine.all_true(not self._interrupt.requested):  # pressed since, while wandb was finishing
            raise KeyboardInterrupt
        self.learner.finish(self.folder / "policy")

    def _save(self, iteration: int, rng: Mapping[str, Tensor]) -> None:
        checkpoints.save_checkpoint(
            self.folder / "checkpoints",
            iteration,
            model=self.engine.model_tensors(),
            optimizer=self.engine.optimizer_tensors(),
            rng=rng,
            state={
                "config": asdict(self.config),
                "seed": self.seed,
                "skipped_updates": self.skipped,
                "axis_rewards": self._axis_rewards,
                "carried": self.carried,
                "alarms": self._alarms.state(),
                "optimizer_steps": iteration * self.config.updates,
            },
            keep=self.config.save_total_limit,
            rank=self.rank,
            world=self.world,
            barrier=self.engine.agree,
        )


def _dump(path: Path, drawn: Sequence[curriculum.Draw], rows: Sequence[int], old: Old, advantages: Tensor) -> None:
    """What a skipped update was about: its conversations (`.json`) and its tensors (`.safetensors`)."""
    rows_seen = [
        {
            "row": row,
            "scenario": drawn[row // len(drawn[0].seeds)].scenario,
            "variant": drawn[row // len(drawn[0].seeds)].variant,
            "seed": drawn[row // len(drawn[0].seeds)].seeds[row % len(drawn[0].seeds)],
            "active_frames": int(old.mask[row].sum()),
            "finite_old_logp": bool(torch.isfinite(old.logp[row][old.mask[row]]).all()),
            "largest_advantage": float(advantages[row].abs().max()),
        }
        for row in rows
    ]
    path.with_suffix(".json").write_text(json.dumps({"version": 1, "rows": rows_seen}, indent=1) + "\n", "utf-8")
    tensors = {
        "codes": old.trajectory.codes, "valid": old.trajectory.valid, "sampler_logp": old.trajectory.sampler_logp,
        "old_logp": old.logp, "mask": old.mask, "advantages": advantages,
    }  # fmt: skip
    write_tensors(path.with_suffix(".safetensors"), {name: t[list(rows)] for name, t in tensors.items()})

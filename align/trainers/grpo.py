"""GRPO for full-duplex policies: groups of conversations with the same user, rewarded on the audio that was heard.

    uptake train quickstart
    torchrun --nproc_per_node 2 -m launch.cli train quickstart          # the same, on two ranks
    uptake train quickstart --resume

What differs from arXiv 2606.11167 ("Multi-Faceted Interactivity Alignment in Full-Duplex Speech Models"):

1. The user is simulated and hears the policy, so interruptions and yielding can be judged; theirs is a recording.
2. Credit goes to the frames that earned it (`credit: event`); `credit: uniform` spreads it evenly, as published.
3. Old log-probabilities are recomputed with the training forward. The distance to what the sampler said is logged,
   and beyond `max_sampling_logp_difference` the run stops: then the two compute different policies.
4. One optimiser step takes some conversations of *every* group (theirs: one of each), so the batch is the same on any
   number of ranks, and so is the loss: its normaliser is a global count.
5. No context recording is prepended. `Trajectory.valid` masks forced frames, which is where one would go.

One iteration, top to bottom in `train`: draw scenarios, roll out, recompute old log-probabilities, judge, compare
inside groups, update in minibatches, log, checkpoint. The choices are in `align.trainers.grpo_config`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import advantages as adv
from align import checkpoints, curriculum, losses, rollout
from align.judging import begin, judge, shuffled
from align.monitor import Monitor
from align.policies.sampling import truncated_log_probs
from align.signals import Interrupt, Interrupted
from align.tally import Tally
from align.trainers.grpo_config import GrpoConfig
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.engine import Engine
    from align.policies.base import DuplexPolicy, Trajectory
    from rewards.compose import Composition


Scored = tuple[Tensor, ...]
"""logp (B, T) and entropy (B, T) of the text token; log_probs (B, T, V) as well where all of them are asked for."""


def train(
    config: GrpoConfig,
    policy: DuplexPolicy,
    make_env: Callable[[int], Any],
    scenarios: Mapping[str, Sequence[str]],
    composition: Composition,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    tail: float = 0.0,
    wandb_mode: str = "disabled",
    wandb_project: str = "uptake",
) -> dict[str, float]:
    """Train a policy in place and write the run folder: `metrics.jsonl`, `checkpoints/`, and `policy/` at the end.

    Args:
        policy: what training starts from; its `model` is the module that is trained. Afterwards it is the trained
            policy, with whole weights, on every rank.
        make_env: number of rows -> `DuplexVectorEnv`.
        scenarios: axis -> ids of the training scenarios (`align.curriculum.by_axis`).
        composition: what conversations are judged by.
        folder: the run folder.
        seed: everything random derives from it.
        resume: continue from the newest whole checkpoint of the folder.
        tail: seconds that the caller needs after training; part of the time left that is shown.

    Returns:
        Metrics of the last iteration.

    Raises:
        UptakeError: a configuration that cannot be trained with, a full disk, a checkpoint that does not fit, a
            sampler that disagrees with the training forward, or too many losses that are not numbers.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written. A second Ctrl-C does not wait for it.
    """
    from align.engine import Engine, EngineConfig, adapters_off, add_lora, merge_lora, start_ranks

    start_ranks()  # before anything is allocated: a second rank must not sit on the first one's GPU
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    config.check(world)
    done = checkpoints.load_latest(folder / "checkpoints", rank=rank, world=world) if resume else None
    if done is None and checkpoints.list_checkpoints(folder / "checkpoints"):
        raise UptakeError(f"{folder}: already holds a run; continue it with --resume, or give another name=")

    # The policy, its frozen start, and the engine ------------------------------------------------------------------
    if config.use_peft:
        add_lora(policy.model, config.lora_target_modules, config.lora_r, config.lora_alpha)
    else:
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(config.frozen)))
    frozen_copy = None if config.use_peft or not config.beta else copy.deepcopy(policy.model).requires_grad_(False)
    engine = Engine(
        _Scorer(policy),
        EngineConfig(
            zero_stage=config.zero_stage,
            bf16=config.bf16,
            max_grad_norm=config.max_grad_norm,
            learning_rate=config.learning_rate,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            weight_decay=config.weight_decay,
        ),
    )
    frozen_scorer: nn.Module | None = None
    if frozen_copy is not None:
        start = copy.copy(policy)  # shares the codec and the tokenizer; scoring keeps no state
        start.model = frozen_copy.to(engine.device, torch.bfloat16 if config.bf16 else None)
        frozen_scorer = _Scorer(start)

    def score(trajectory: Trajectory, full: bool) -> Scored:
        return engine(trajectory, full)

    @torch.no_grad()
    def score_start(trajectory: Trajectory, full: bool) -> Scored:
        if frozen_scorer is not None:
            return frozen_scorer(trajectory, full)
        with adapters_off(policy.model):
            return engine(trajectory, full)

    first, skipped, smooth = 0, 0, {}
    if done is not None:
        _check_same_run(config, seed, done)
        engine.load_model_tensors(done.model)
        engine.load_optimizer_tensors(done.optimizer)
        checkpoints.set_rng_tensors(done.rng)
        first, skipped, smooth = done.iteration, done.state["skipped_updates"], dict(done.state["axis_rewards"])

    def save(iteration: int, rng: Mapping[str, Tensor]) -> None:
        checkpoints.save_checkpoint(
            folder / "checkpoints",
            iteration,
            model=engine.model_tensors(),
            optimizer=engine.optimizer_tensors(),
            rng=rng,
            state={
                "config": asdict(config),
                "seed": seed,
                "skipped_updates": skipped,
                "axis_rewards": smooth,
                "groups_drawn": iteration * config.num_groups,
                "optimizer_steps": iteration * config.num_iterations * config.steps_per_generation,
            },
            keep=config.save_total_limit,
            rank=rank,
            world=world,
            barrier=engine.agree,
        )

    per_rank = config.num_groups // world
    env = make_env(per_rank * config.num_generations)
    metrics: dict[str, float] = {}
    monitor = Monitor(
        folder, config.iterations, first=first, tail=tail, active=rank == 0, wandb_mode=wandb_mode,
        project=wandb_project, config={**asdict(config), "seed": seed, "world": world},
    )  # fmt: skip
    with Interrupt() as interrupt, monitor:  # in this order: wandb takes seconds to start, and a Ctrl-C may come then
        for iteration in range(first, config.iterations):
            began, rng, tally = time.perf_counter(), checkpoints.rng_tensors(), Tally()

            # Roll out this rank's share of the groups, every conversation of the same length ---------------------
            drawn = curriculum.draw(
                scenarios, iteration, seed=seed, num_groups=config.num_groups, num_generations=config.num_generations
            )[rank * per_rank : (rank + 1) * per_rank]

            def on_frame(frame: int) -> None:
                monitor.phase(f"conversing {frame + 1}/{config.frames}")
                if world == 1:  # several ranks must leave together, below
                    interrupt.check()

            try:
                with engine.gathered():
                    played = rollout.collect(
                        policy,
                        env,
                        [d.scenario for d in drawn],
                        [d.variant for d in drawn],
                        config.num_generations,
                        [s for d in drawn for s in d.seeds],
                        config.frames,
                        env_seed=seed,
                        on_frame=on_frame,
                    )
                if not engine.all_true(not interrupt.requested):
                    raise Interrupted
            except Interrupted:
                save(iteration, rng)  # the weights are those of the last boundary: this iteration is done anew
                raise KeyboardInterrupt from None
            except FloatingPointError as error:
                raise UptakeError(
                    f"iteration {iteration}: {error}; lower grpo.learning_rate and start again, or --resume from the "
                    "last checkpoint"
                ) from error

            # Old log-probabilities, by the forward that will be trained; a judge that was asked answers meanwhile --
            monitor.phase("scoring")
            judging = time.perf_counter()
            pending = begin(composition, played.episodes)
            begun = time.perf_counter()
            old_logp, mask = _recompute(config, engine, policy, score, played.trajectory, iteration, tally)

            # Judge, and compare inside each group ----------------------------------------------------------------
            monitor.phase("judging")
            scored = time.perf_counter()
            conversations, frames = played.trajectory.valid.shape
            credits = judge(composition, played, drawn, policy.spec, frames, tally, pending)
            if config.shuffle_rewards:
                credits = shuffled(credits, seed, iteration)
            compared = adv.frame_advantages(
                credits, conversations, frames, credit=config.credit, baseline=config.baseline,
                aggregation=config.multi_objective_aggregation, scale=config.scale_rewards,
            )  # fmt: skip
            tally.add("frac_reward_zero_std", compared.zero_variance, compared.comparisons)
            batch = _Batch(played.trajectory, old_logp, compared.values.to(old_logp.device), mask)
            judged = time.perf_counter()

            # Update in minibatches: some conversations of every group ---------------------------------------------
            step = iteration * config.num_iterations * config.steps_per_generation
            share = config.num_generations // config.steps_per_generation
            for epoch in range(config.num_iterations):
                orders = [
                    curriculum.permutation(seed, "minibatch", config.num_generations, iteration, epoch, d.group)
                    for d in drawn
                ]
                for turn in range(config.steps_per_generation):
                    monitor.phase(f"updating {epoch * config.steps_per_generation + turn + 1}")
                    rows = [
                        group * config.num_generations + sample
                        for group, order in enumerate(orders)
                        for sample in order[turn * share : (turn + 1) * share]
                    ]
                    rate = config.learning_rate_at(step)
                    step += 1
                    if not _update(config, engine, policy, score, score_start, batch, rows, rate, tally):
                        skipped += 1
                        _dump(folder / f"nan-{iteration:06d}-{step}-rank{rank}.json", drawn, rows, batch)
                        if skipped > config.nan_budget:
                            raise UptakeError(
                                f"{skipped} updates gave a loss or a gradient that is not a number, more than "
                                f"grpo.nan_budget = {config.nan_budget}; see {folder}/nan-*.json, lower "
                                "grpo.learning_rate and --resume from the last checkpoint"
                            )

            # Log and checkpoint ----------------------------------------------------------------------------------
            now = time.perf_counter()
            tally.add("rollout/frames_per_second", played.frames_per_second)
            tally.add("time/rollout", played.seconds)
            tally.add("time/judge", begun - judging + judged - scored)
            tally.add("time/update", scored - begun + now - judged)
            tally.add("step_time", now - began)
            metrics = Tally.merge(engine.collect(tally.state())).means()
            metrics |= {"learning_rate": config.learning_rate_at(step - 1), "skipped_updates": float(skipped)}
            for axis in scenarios:
                if (value := metrics.get(f"axis/{axis}")) is not None:
                    smooth[axis] = value if axis not in smooth else 0.7 * smooth[axis] + 0.3 * value
            monitor.log(iteration, metrics, smooth)
            stop = not engine.all_true(not interrupt.requested)
            if stop or (iteration + 1) % config.save_steps == 0 or iteration + 1 == config.iterations:
                monitor.phase("saving")
                save(iteration + 1, checkpoints.rng_tensors())
            if stop:
                raise KeyboardInterrupt
    if not engine.all_true(not interrupt.requested):  # pressed since, while wandb was finishing
        raise KeyboardInterrupt

    engine.release()
    if config.use_peft:
        merge_lora(policy.model)
    if rank == 0:
        policy.export(folder / "policy")
    return metrics


class _Scorer(nn.Module):
    """The policy's teacher-forced scoring as a module, so that DeepSpeed's hooks see it."""

    def __init__(self, policy: DuplexPolicy) -> None:
        super().__init__()
        self.model = policy.model
        self._policy = [policy]  # in a list: a policy that is a module itself would be registered twice

    def forward(self, trajectory: Trajectory, full: bool) -> Scored:
        if not full:
            scores = self._policy[0].score(trajectory)
            return scores.logp, scores.entropy
        # An exact KL needs the whole vocabulary: outside the top-k of one policy the other may have mass. The action
        # keeps the probability under which it was sampled.
        scores = self._policy[0].score(dataclasses.replace(trajectory, top_k=0), full=True)
        assert scores.log_probs is not None
        logp = scores.logp
        if trajectory.top_k:
            tokens = trajectory.codes[:, 0].clamp(min=0)  # (B, T)
            truncated = truncated_log_probs(scores.log_probs, 1.0, trajectory.top_k, keep=tokens)
            logp = truncated.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).masked_fill(~trajectory.valid, 0.0)
        return logp, scores.entropy, scores.log_probs


@dataclass(frozen=True)
class _Batch:
    """What the updates of one iteration learn from; B = this rank's conversations."""

    trajectory: Trajectory
    old_logp: Tensor  # (B, T)
    advantages: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool


def _recompute(
    config: GrpoConfig,
    engine: Engine,
    policy: DuplexPolicy,
    score: Callable[[Trajectory, bool], Scored],
    trajectory: Trajectory,
    iteration: int,
    tally: Tally,
) -> tuple[Tensor, Tensor]:
    """Recompute the sampler's log-probabilities, log the distance, stop if it is too large.

    Returns:
        Log-probabilities (B, T) of the actions, and bool (B, T): frames that can be learned from.
    """
    rows, size = trajectory.valid.shape[0], config.per_device_train_batch_size
    text, action = [], []
    with torch.no_grad():
        for at in range(0, rows, size):
            part = trajectory.rows(slice(at, at + size))
            scored = score(part, config.streams == "speak")
            text.append(scored[0])
            action.append(_action_logp(config, policy, part, scored))
            tally.add("entropy", float(scored[1][part.valid].sum()), float(part.valid.sum()))
    logp, old_logp = torch.cat(text), torch.cat(action)  # (B, T)
    # A token that a rounding put outside the top-k has no ratio.
    mask = trajectory.valid & ~torch.isneginf(logp) & ~torch.isneginf(trajectory.sampler_logp)
    gap = (logp - trajectory.sampler_logp)[mask].abs()
    total, count, lost = engine.total([float(gap.sum()), gap.numel(), float((trajectory.valid & ~mask).sum())])
    mean = total / max(count, 1.0)
    tally.add("sampling/sampling_logp_difference/mean", float(gap.sum()), gap.numel())
    tally.largest("sampling/sampling_logp_difference/max", float(gap.max()) if gap.numel() else 0.0)
    tally.add("sampling/outside_support", lost / max(count + lost, 1.0))
    if not mean <= config.max_sampling_logp_difference:  # a NaN stops the run as well
        raise UptakeError(
            f"iteration {iteration}: the training forward differs from the sampler by {mean:.3g} nats a frame, more "
            f"than grpo.max_sampling_logp_difference = {config.max_sampling_logp_difference}; the policy's `score` "
            "does not compute what its `step` sampled from"
        )
    return old_logp, mask


def _action_logp(config: GrpoConfig, policy: DuplexPolicy, trajectory: Trajectory, scored: Scored) -> Tensor:
    """(B, T) log-probability of what the objective calls the action."""
    if config.streams == "text":
        return scored[0]
    silent = next(stream.silent_ids for stream in policy.spec.streams if stream.name == "text")
    return losses.speak_logp(scored[2], trajectory.codes[:, 0], silent)


def _update(
    config: GrpoConfig,
    engine: Engine,
    policy: DuplexPolicy,
    score: Callable[[Trajectory, bool], Scored],
    score_start: Callable[[Trajectory, bool], Scored],
    batch: _Batch,
    rows: Sequence[int],
    learning_rate: float,
    tally: Tally,
) -> bool:
    """One optimiser step on some conversations of this rank; False if it was skipped, on all ranks, for a NaN."""
    total_frames, total_rows = engine.total([float(batch.mask[list(rows)].sum()), len(rows)])
    exact = config.beta > 0 and config.kl_estimator == "exact"
    size, step_loss = config.per_device_train_batch_size, 0.0
    for at in range(0, len(rows), size):
        part = list(rows[at : at + size])
        trajectory = batch.trajectory.rows(part)
        old, credit, mask = batch.old_logp[part], batch.advantages[part], batch.mask[part]
        scored = score(trajectory, exact or config.streams == "speak")
        logp = _action_logp(config, policy, trajectory, scored)
        clip = losses.Clip(config.epsilon, config.epsilon_high)
        per_frame = losses.policy_loss(logp, old, credit, mask, clip)
        if config.beta:
            start = score_start(trajectory, exact)
            if exact:
                kl = losses.exact_kl(scored[2], start[2], mask)
            else:
                kl = losses.sampled_kl(scored[0], start[0], mask)
            per_frame = per_frame + config.beta * kl
            tally.add("kl", float(kl.detach().sum()), float(mask.sum()))
        loss = losses.reduce_loss(
            per_frame, mask, loss_type=config.loss_type, total_frames=total_frames, total_rows=total_rows,
            world=engine.world,
        )  # fmt: skip
        if not engine.all_true(bool(torch.isfinite(loss))):
            engine.discard()
            return False
        engine.backward(loss, last=at + size >= len(rows))
        step_loss += float(loss.detach())
        seen = losses.diagnostics(logp.detach(), old, credit, mask, clip)
        for name, key in _DIAGNOSTICS.items():
            tally.add(name, seen[key], seen["frames"])
        tally.largest("ratio/max", seen["ratio_max"])
    norm = engine.step(learning_rate)
    if not math.isfinite(norm):
        return False
    tally.add("loss", step_loss)
    tally.add("grad_norm", norm)
    return True


_DIAGNOSTICS = {
    "ratio/mean": "ratio",
    "approx_kl": "approx_kl",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
}


def _dump(path: Path, drawn: Sequence[curriculum.Draw], rows: Sequence[int], batch: _Batch) -> None:
    """What a skipped update was about: enough to play the same conversations again."""
    rows_seen = [
        {
            "row": row,
            "scenario": drawn[row // len(drawn[0].seeds)].scenario,
            "variant": drawn[row // len(drawn[0].seeds)].variant,
            "seed": drawn[row // len(drawn[0].seeds)].seeds[row % len(drawn[0].seeds)],
            "active_frames": int(batch.mask[row].sum()),
            "finite_old_logp": bool(torch.isfinite(batch.old_logp[row][batch.mask[row]]).all()),
            "largest_advantage": float(batch.advantages[row].abs().max()),
        }
        for row in rows
    ]
    path.write_text(json.dumps({"version": 1, "rows": rows_seen}, indent=1) + "\n", encoding="utf-8")


def _check_same_run(config: GrpoConfig, seed: int, done: checkpoints.Checkpoint) -> None:
    """A resumed run must be the run that was interrupted; its length and its checkpoints may change."""
    free = {"iterations", "save_steps", "save_total_limit", "nan_budget", "per_device_train_batch_size"}
    theirs = {**done.state["config"], "seed": done.state["seed"]}
    for name, value in {**asdict(config), "seed": seed}.items():
        if name not in free and theirs.get(name) != value:
            raise UptakeError(
                f"--resume: {name} is {value!r}, but {done.path.name} was trained with {theirs.get(name)!r}; "
                "give the same value, or start a new run with another name="
            )

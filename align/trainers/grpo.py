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
5. A recorded context is prepended only if `max_context_s` says how long it may grow; theirs grows to 30 s.

One iteration, top to bottom in `train`: draw scenarios, roll out, recompute old log-probabilities, judge, compare
inside groups, update in minibatches, log, checkpoint. The choices are in `align.trainers.grpo_config`; what a run
is apart from its algorithm (resume, Ctrl-C, faults, the engine) in `align.trainers.run` and `learner`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import advantages as adv
from align import curriculum, kl_control, losses, ratios
from align.judging import begin, judge, shuffled
from align.tally import Tally
from align.trainers import resampling
from align.trainers.grpo_config import GrpoConfig
from align.trainers.learner import Learner, Old, moments, tally_ratio
from align.trainers.run import Run

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy
    from rewards.compose import Composition


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
        scenarios: axis -> ids of the training scenarios (`align.curriculum.cards`).
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
    run = Run(
        config, policy, folder, seed=seed, resume=resume, tail=tail, wandb_mode=wandb_mode, wandb_project=wandb_project
    )
    per_rank = config.num_groups // run.world
    env = make_env(per_rank * config.num_generations)
    metrics: dict[str, float] = {}
    with run:
        for iteration in run.iterations():
            tally, terms = Tally(), composition.at(iteration)

            # Roll out this rank's share of the groups, every conversation of the same length ---------------------
            drawn = curriculum.draw(
                scenarios, iteration, seed=seed, num_groups=config.num_groups, num_generations=config.num_generations
            )[run.rank * per_rank : (run.rank + 1) * per_rank]
            played = run.converse(env, iteration, drawn, config.num_generations)
            pending = begin(terms, played.episodes)
            if config.max_num_gen_batches > 1:  # DAPO: replace the groups that would teach nothing
                played, drawn, pending = resampling.replace_flat_groups(
                    run, config, terms, make_env, scenarios, iteration, played, drawn, pending, tally
                )

            # Old log-probabilities, by the forward that will be trained; a judge that was asked answers meanwhile --
            run.monitor.phase("scoring")
            scoring = time.perf_counter()
            old = run.learner.recompute(played.trajectory, iteration, tally, full=config.full_old)

            # Judge, and compare inside each group ----------------------------------------------------------------
            run.monitor.phase("judging")
            judging = time.perf_counter()
            credits = judge(terms, played, drawn, policy.spec, played.trajectory.valid.shape[1], tally, pending)
            if config.shuffle_rewards:
                credits = shuffled(credits, seed, iteration)
            judged = time.perf_counter()
            beta = run.carried.get("beta", config.beta)
            lessons = _lessons(config, run.learner, old, credits, beta, tally)

            # Update in minibatches: some conversations of every group ---------------------------------------------
            step = iteration * config.updates
            share = config.num_generations // config.steps_per_generation
            for epoch in range(config.num_iterations):
                orders = [
                    curriculum.permutation(seed, "minibatch", config.num_generations, iteration, epoch, d.group)
                    for d in drawn
                ]
                for turn in range(config.steps_per_generation):
                    run.monitor.phase(f"updating {epoch * config.steps_per_generation + turn + 1}")
                    rows = [
                        group * config.num_generations + sample
                        for group, order in enumerate(orders)
                        for sample in order[turn * share : (turn + 1) * share]
                    ]
                    rate = config.learning_rate_at(step)
                    step += 1
                    if not _update(config, run.learner, old, lessons, rows, rate, tally):
                        run.skip_update(iteration, step, drawn, rows, old, lessons.advantages)

            # Log and checkpoint ----------------------------------------------------------------------------------
            tally.add("time/judge", judged - judging)
            tally.add("time/update", judging - scoring + time.perf_counter() - judged)
            if config.target_kl is not None:
                total, counted = run.engine.total(tally.sums("kl"))
                kl = total / counted if counted else math.nan  # every update was skipped
                run.carried["beta"] = kl_control.adapted(
                    beta, kl, config.target_kl, config.num_groups * config.num_generations, config.kl_horizon
                )
                tally.add("beta", beta)
            metrics = run.end_iteration(iteration, tally, played, step, list(scenarios))
    run.finish()
    return metrics


@dataclass(frozen=True)
class _Lessons:
    """What the updates of one iteration learn besides `Old`; B = this rank's conversations."""

    advantages: Tensor  # (B, T) float32
    weights: Tensor | None  # of each action: how far the sampler is trusted; None: wholly
    beta: float


def _lessons(
    config: GrpoConfig, learner: Learner, old: Old, credits: Sequence[adv.Credit], beta: float, tally: Tally
) -> _Lessons:
    """Advantages of a rollout from what was said about it."""
    conversations, frames = old.trajectory.valid.shape
    compared = adv.frame_advantages(
        credits, conversations, frames, credit=config.credit, baseline=config.baseline,
        aggregation=config.multi_objective_aggregation, scale=config.scale_rewards,
    )  # fmt: skip
    tally.add("frac_reward_zero_std", compared.zero_variance, compared.comparisons)
    advantages, mask = compared.values, old.token_mask.any(1).cpu()
    if config.use_kl_in_reward:
        kl = learner.kl_rewards(old).cpu().double()
        tally.add("kl", float(kl.sum()), float(mask.sum()))
        drift = adv.cost_advantages(kl, config.num_generations, baseline=config.baseline)
        advantages = (advantages + beta * drift).float()
    if config.normalize_advantages:
        advantages = adv.whitened(advantages, mask, *moments(learner.engine, advantages[mask].double()))
    weights = None
    if config.sampler_importance_sampling_mode != "none":
        high, low = config.sampler_importance_sampling_clip_max, config.sampler_importance_sampling_clip_min
        mode = config.sampler_importance_sampling_mode
        weights = ratios.sampler_weights(old.logp, old.sampler_logp, old.mask, mode, high, low)
        seen, free = weights[old.mask], ratios.ratio(old.logp, old.sampler_logp, old.mask)[old.mask]
        tally.add("sampling/importance_sampling_ratio/mean", float(free.sum()), free.numel())
        tally.largest("sampling/importance_sampling_ratio/max", float(free.max()) if free.numel() else 1.0)
        tally.add("sampling/importance_sampling_weight/mean", float(seen.sum()), seen.numel())
    return _Lessons(advantages.to(old.logp.device), weights, beta)


def _update(
    config: GrpoConfig,
    learner: Learner,
    old: Old,
    lessons: _Lessons,
    rows: Sequence[int],
    learning_rate: float,
    tally: Tally,
) -> bool:
    """One optimiser step on some conversations of this rank; False if it was skipped, on all ranks, for a NaN."""
    engine, clip, level = learner.engine, config.clip, config.importance_sampling_level
    objective = (
        losses.cispo_loss if config.loss_type == "cispo" else partial(losses.policy_loss, by_frame=config.by_frame)
    )
    total_actions, total_rows = engine.total([float(old.mask[list(rows)].sum()), len(rows)])
    size, step_loss = config.per_device_train_batch_size, 0.0
    for at in range(0, len(rows), size):
        part = list(rows[at : at + size])
        seen, credit = old.rows(part), lessons.advantages[part]
        scored = learner.score(seen.trajectory, config.full)
        logp = learner.action_logp(seen.trajectory, scored, seen.token_mask)
        per_action = objective(logp, seen.logp, credit, seen.mask, clip, level)
        if lessons.weights is not None:
            per_action = per_action * lessons.weights[part]
        if config.kl_in_loss:
            kl = learner.kl(seen.trajectory, scored, seen.token_mask)
            drift = float(kl.detach().sum())
            if config.use_bias_correction_kl:
                kl = kl * ratios.ratio(logp, seen.logp, seen.mask, level, config.by_frame)
            per_action = per_action + lessons.beta * kl
        loss = losses.reduce_loss(
            per_action, seen.mask, loss_type=config.loss_type, total_frames=total_actions, total_rows=total_rows,
            world=engine.world, length=config.frames,
        )  # fmt: skip
        if not engine.all_true(bool(torch.isfinite(loss))):
            engine.discard()
            return False
        engine.backward(loss, last=at + size >= len(rows))
        step_loss += float(loss.detach())
        if config.kl_in_loss:
            tally.add("kl", drift, float(seen.token_mask.any(1).sum()))
        tally_ratio(tally, logp, seen.logp, credit, seen.mask, clip, level)
    norm = engine.step(learning_rate)
    if not math.isfinite(norm):
        return False
    tally.add("loss", step_loss)
    tally.add("grad_norm", norm)
    return True

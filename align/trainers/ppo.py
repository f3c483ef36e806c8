"""PPO for full-duplex policies: every frame's action is compared with what a value function expected there.

    uptake train recipes/ppo
    torchrun --nproc_per_node 2 -m launch.cli train recipes/ppo
    uptake train recipes/ppo --resume

The algorithm is PPO with clipped ratio and clipped value loss (arXiv 1707.06347) and generalised advantage estimates
(arXiv 1506.02438). What differs from PPO on text:

1. A step is a frame of 80 ms, not a token: one action, one value, one ratio a frame.
2. Rewards are dense. Each verdict arrives in the frame of the last action that it could depend on
   (`align.advantages.frame_rewards` says why there), instead of one score at the end.
3. Conversations have one length and masks; frames that were forced or came after the end are no steps at all.
4. The value head reads the policy's own temporal transformer instead of a second model. It predicts before the frame's
   action is drawn, is checkpointed with the run, and is not exported.
5. A conversation that `frames` cuts off is treated as over: no verdict falls after it, so nothing is bootstrapped.
6. The KL to the start is a term of the loss, exact over the text vocabulary; with `use_kl_in_reward: true` the
   log-ratio of what was said is taken off each frame's reward (`kl_estimator: k1`).

One iteration, top to bottom in `train`: draw scenarios, roll out, recompute old log-probabilities and values, judge,
estimate advantages, update in minibatches for some epochs, log, checkpoint. The choices are in
`align.trainers.ppo_config`; what a run is apart from its algorithm (resume, Ctrl-C, faults, the engine) in
`align.trainers.run` and `learner`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import advantages as adv
from align import curriculum, losses
from align.judging import begin, judge, shuffled, ungrouped
from align.tally import Tally
from align.trainers.learner import Learner, Old, moments, tally_ratio
from align.trainers.ppo_config import PpoConfig
from align.trainers.run import Run

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy
    from rewards.compose import Composition


def train(
    config: PpoConfig,
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
    """Train a policy in place and write the run folder. Arguments, result and errors are those of `grpo.train`.

    Raises:
        UptakeError: also for a policy that shows no hidden state to put a value head on.
    """
    run = Run(
        config, policy, folder, seed=seed, resume=resume, tail=tail, wandb_mode=wandb_mode,
        wandb_project=wandb_project, values=True, value_learning_rate=config.value_learning_rate,
    )  # fmt: skip
    learner = run.learner
    per_rank = config.train_batch_size // run.world
    env = make_env(per_rank)
    metrics: dict[str, float] = {}
    with run:
        for iteration in run.iterations():
            tally, terms = Tally(), composition.at(iteration)

            # Roll out this rank's share of the conversations, all of the same length -----------------------------
            drawn = curriculum.draw(
                scenarios, iteration, seed=seed, num_groups=config.train_batch_size, num_generations=1
            )[run.rank * per_rank : (run.rank + 1) * per_rank]
            played = run.converse(env, iteration, drawn, 1)

            # Old log-probabilities and values; a judge that was asked answers meanwhile ---------------------------
            run.monitor.phase("scoring")
            asking = time.perf_counter()
            pending = begin(terms, played.episodes)
            scoring = time.perf_counter()
            old = learner.recompute(played.trajectory, iteration, tally, full=config.full)

            # Judge, put the judgements on the clock, and compare with what was expected ---------------------------
            run.monitor.phase("judging")
            judging = time.perf_counter()
            credits = judge(terms, played, drawn, policy.spec, played.trajectory.valid.shape[1], tally, pending)
            if config.shuffle_rewards:
                credits = shuffled(ungrouped(credits), seed, iteration)
            judged = time.perf_counter()
            lessons = _lessons(config, learner, old, adv.frame_rewards(credits, old.mask), tally)

            # Update in minibatches, for some epochs --------------------------------------------------------------
            step = iteration * config.updates
            for epoch in range(config.num_ppo_epochs):
                for turn, rows in enumerate(_minibatches(config, seed, iteration, epoch, drawn)):
                    run.monitor.phase(f"updating {epoch * config.num_mini_batches + turn + 1}")
                    rate = config.learning_rate_at(step)
                    step += 1
                    if not _update(config, learner, old, lessons, rows, rate, tally):
                        run.skip_update(iteration, step, drawn, rows, old, lessons.advantages)

            # Log and checkpoint ----------------------------------------------------------------------------------
            tally.add("time/judge", scoring - asking + judged - judging)
            tally.add("time/update", judging - scoring + time.perf_counter() - judged)
            metrics = run.end_iteration(iteration, tally, played, step, list(scenarios))
    run.finish()
    return metrics


@dataclass(frozen=True)
class _Lessons:
    """What the updates of one iteration learn besides `Old`; B = this rank's conversations."""

    values: Tensor  # (B, T) float32: the predictions at the start of the iteration
    advantages: Tensor  # (B, T) float32, whitened over the frames of all ranks
    returns: Tensor  # (B, T) float32


def _lessons(config: PpoConfig, learner: Learner, old: Old, rewards: Tensor, tally: Tally) -> _Lessons:
    """Advantages and returns of a rollout, (B, T) rewards given; logs how good the value function was."""
    assert old.values is not None
    mask = old.mask.cpu()
    if config.kl_coef and config.use_kl_in_reward:
        kl = learner.kl_rewards(old).cpu().double()
        rewards = rewards - config.kl_coef * kl
        tally.add("kl", float(kl.sum()), float(mask.sum()))
    values = old.values.cpu().double()
    advantages, returns = adv.gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    mean, variance = moments(learner.engine, advantages[mask])
    whitened = adv.whitened(advantages, mask, mean, variance)
    # cleanrl's and TRL's diagnostic: 1 is a perfect critic, 0 one that says a constant, below 0 a worse one.
    spread, unexplained = (moments(learner.engine, x[mask])[1] for x in (returns, returns - values))
    tally.add("value/explained_variance", 1.0 - unexplained / spread if spread > 0 else 0.0)
    tally.add("value/mean", float(values[mask].sum()), float(mask.sum()))
    tally.add("value/returns_mean", float(returns[mask].sum()), float(mask.sum()))
    tally.add("advantages_std", math.sqrt(variance))
    device = old.logp.device
    return _Lessons(old.values, whitened.float().to(device), returns.float().to(device))


def _minibatches(
    config: PpoConfig, seed: int, iteration: int, epoch: int, drawn: Sequence[curriculum.Draw]
) -> list[list[int]]:
    """This rank's rows of each minibatch of an epoch.

    Of every `num_mini_batches` neighbours in the global batch each minibatch gets one, by a permutation of their own.
    So minibatches are the same on any number of ranks, and every rank has as much of each.
    """
    size = config.num_mini_batches
    out: list[list[int]] = [[] for _ in range(size)]
    for block in range(0, len(drawn), size):
        order = curriculum.permutation(seed, "minibatch", size, iteration, epoch, drawn[block].group)
        for minibatch, place in zip(out, order, strict=True):
            minibatch.append(block + place)
    return out


def _update(
    config: PpoConfig,
    learner: Learner,
    old: Old,
    lessons: _Lessons,
    rows: Sequence[int],
    learning_rate: float,
    tally: Tally,
) -> bool:
    """One optimiser step on some conversations of this rank; False if it was skipped, on all ranks, for a NaN."""
    engine = learner.engine
    total_frames, total_rows = engine.total([float(old.mask[list(rows)].sum()), len(rows)])
    size, step_loss = config.per_device_train_batch_size, 0.0
    clip = losses.Clip(config.cliprange)
    for at in range(0, len(rows), size):
        part = list(rows[at : at + size])
        seen = old.rows(part)
        mask, frames = seen.mask, float(seen.mask.sum())
        scored = learner.score(seen.trajectory, config.full)
        assert scored.values is not None
        logp = learner.action_logp(seen.trajectory, scored, seen.token_mask)
        surrogate = losses.policy_loss(logp, seen.logp, lessons.advantages[part], mask, clip)
        value = losses.value_loss(
            scored.values, lessons.values[part], lessons.returns[part], mask, config.cliprange_value
        )
        per_frame = surrogate + config.vf_coef * value
        if config.entropy_coeff:
            per_frame = per_frame - config.entropy_coeff * scored.entropy.masked_fill(~mask, 0.0)
        if config.kl_in_loss:
            kl = learner.kl(seen.trajectory, scored, seen.token_mask)
            per_frame = per_frame + config.kl_coef * kl
        loss = losses.reduce_loss(
            per_frame, mask, loss_type="dapo", total_frames=total_frames, total_rows=total_rows, world=engine.world
        )
        if not engine.all_true(bool(torch.isfinite(loss))):
            engine.discard()
            return False
        engine.backward(loss, last=at + size >= len(rows))
        step_loss += float(loss.detach())
        tally_ratio(tally, logp, seen.logp, lessons.advantages[part], mask, clip)
        if config.kl_in_loss:
            tally.add("kl", float(kl.detach().sum()), frames)
        tally.add("loss/policy", float(surrogate.detach().sum()), frames)
        tally.add("loss/value", float(value.detach().sum()), frames)
        if config.cliprange_value is not None:
            moved = (scored.values.detach() - lessons.values[part])[mask].abs()
            tally.add("value/clip_ratio", float((moved > config.cliprange_value).sum()), frames)
    norm = engine.step(learning_rate)
    if not math.isfinite(norm):
        return False
    tally.add("loss", step_loss)
    tally.add("grad_norm", norm)
    return True

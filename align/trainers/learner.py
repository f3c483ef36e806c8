"""A policy under the engine, next to what it was at the start: everything that a trainer asks of weights.

A trainer scores conversations with it, under the policy as it is and under the frozen start, and steps its engine.
With `values` a value head sits on the policy's hidden state. The head belongs to the learner, not to the policy: it is
trained, saved and resumed with the rest, and what the policy exports does not hold it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import losses, ratios
from align.engine import Engine, EngineConfig
from align.lora import adapted_layers, adapters_off, add_lora, merge_lora
from align.policies.sampling import truncated_log_probs
from align.tally import Tally
from align.trainers.run_config import RunConfig
from align.value_head import ValueHead
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy, DuplexSpec, Trajectory
    from align.trainers.sft_config import SftConfig


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of B conversations."""

    logp: Tensor
    """(B, T) of the text token."""
    entropy: Tensor
    """(B, T) nats of the text distribution."""
    values: Tensor | None
    """(B, T) float32: the value head's prediction before each frame's action; None without a head."""
    log_probs: Tensor | None
    """(B, T, V) of the whole text distribution, where it was asked for."""
    audio_logp: Tensor | None
    """(B, Q, T) of the tokens of the Q agent codebooks in the objective; None if there are none."""
    audio_log_probs: Tensor | None
    """(B, Q, T, card), where it was asked for."""

    @property
    def tokens(self) -> Tensor:
        """(B, S, T) log-probability of each token in the objective: text first."""
        text = self.logp.unsqueeze(1)
        return text if self.audio_logp is None else torch.cat([text, self.audio_logp.to(text.dtype)], 1)


@dataclass(frozen=True)
class Old:
    """An iteration's conversations under the policy that played them, recomputed by the forward that is trained.

    An action is what has one ratio (`align.ratios.actions`): tensors of actions are (B, T), or (B, S, T) where each of
    S streams is one.
    """

    trajectory: Trajectory
    logp: Tensor
    """Of each action."""
    sampler_logp: Tensor
    """Of each action, as the sampler told it; of its text token where the objective is `speak`."""
    values: Tensor | None
    """(B, T) float32; None without a value head."""
    mask: Tensor
    """bool, actions that are learned from."""
    token_mask: Tensor
    """(B, S, T) bool, their tokens."""

    def rows(self, index: Sequence[int]) -> Old:
        """The conversations that `index` picks."""
        at = list(index)
        return Old(
            self.trajectory.rows(at),
            self.logp[at],
            self.sampler_logp[at],
            None if self.values is None else self.values[at],
            self.mask[at],
            self.token_mask[at],
        )


def choose_trained(model: nn.Module, config: RunConfig | SftConfig) -> None:
    """Freeze a model, or give it adapters, and let it recompute its activations, as the run will."""
    if config.gradient_checkpointing:
        recompute_activations(model, config.section)
    if config.use_peft:
        add_lora(model, config.lora_target_modules, config.lora_r, config.lora_alpha)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(config.frozen)))


def engine_config(config: RunConfig | SftConfig, rate_factors: Mapping[str, float] | None = None) -> EngineConfig:
    """What a run's configuration says of its engine; `rate_factors` as in `EngineConfig`."""
    return EngineConfig(
        zero_stage=config.zero_stage,
        bf16=config.bf16,
        offload=config.offload,
        timeout=config.collective_timeout,
        max_grad_norm=config.max_grad_norm,
        learning_rate=config.learning_rate,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        rate_factors=rate_factors or {},
    )


def export_trained(policy: DuplexPolicy, config: RunConfig | SftConfig, folder: Path | None) -> None:
    """Write a trained policy, if this rank has a folder to write it to, and merge its adapters.

    In bfloat16 they stay beside the weights, where nothing of them is rounded away: what is measured after training is
    what was trained. The folder has them merged in float32 in either case.
    """
    if folder is not None:
        policy.export(folder)
    if config.use_peft and not config.bf16:
        merge_lora(policy.model)


def codebooks_learned(spec: DuplexSpec, config: RunConfig) -> int:
    """Agent codebooks in the objective; UptakeError where the policy does not train the ones that are wanted."""
    audio = sum(stream.trainable for stream in spec.streams[1:])
    if config.streams in ("semantic", "all") and not audio:
        raise UptakeError(
            f"{config.section}.streams = {config.streams}: this policy has no trainable audio stream; use text or speak"
        )
    return {"semantic": 1, "all": audio}.get(config.streams, 0)


def trained_parameters(
    model: nn.Module, config: RunConfig | SftConfig, hidden: int, still: tuple[str, ...] = ()
) -> int:
    """Numbers that a run trains: weights, or adapters, and the value head of PPO.

    Args:
        model: as it was loaded, before `choose_trained`; may lie on the meta device.
        hidden: the policy's `spec.hidden`.
        still: starts of the names of parameters, adapters included, that stay as they are besides.
    """
    if config.use_peft:
        layers = adapted_layers(model, config.lora_target_modules)
        chosen = [layer for name, layer in layers.items() if not name.startswith(still)]
        trained = sum(config.lora_r * (layer.in_features + layer.out_features) for layer in chosen)
    else:
        start = (*config.frozen, *still)
        trained = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(start))
    head = hidden * hidden + 2 * hidden + 1  # `ValueHead`
    return trained + (head if config.section == "ppo" else 0)


class Learner:
    """The policy that is trained, its engine, and its frozen start."""

    def __init__(
        self, policy: DuplexPolicy, config: RunConfig, *, values: bool = False, value_learning_rate: float | None = None
    ) -> None:
        """Freeze what stays, add what is new, keep the start, and hand the rest to DeepSpeed.

        Raises:
            UptakeError: nothing is left to train, a value head is wanted on a policy without a hidden state, or audio
                streams in the objective of one that does not train any.
        """
        self.policy, self.config = policy, config
        self._codebooks = codebooks_learned(policy.spec, config)
        if config.bf16:  # before anything is copied
            policy.model.to(torch.bfloat16)
        choose_trained(policy.model, config)
        keep = config.kl_weight and not config.use_peft
        frozen_copy = copy.deepcopy(policy.model).requires_grad_(False) if keep else None
        if values and not policy.spec.hidden:
            raise UptakeError(
                f"{config.section}: this policy shows no hidden state (spec.hidden is 0) for a value head; train it "
                "with grpo, which needs none"
            )
        head = ValueHead(policy.spec.hidden) if values else None
        self.engine = Engine(
            _Scorer(policy, self._codebooks, head),
            engine_config(
                config,
                None if value_learning_rate is None else {"value_head.": value_learning_rate / config.learning_rate},
            ),
        )
        self._start: nn.Module | None = None
        if frozen_copy is not None:
            start = copy.copy(policy)  # shares the codec and the tokenizer; scoring keeps no state
            start.model = frozen_copy.to(self.engine.device)
            self._start = _Scorer(start, self._codebooks)

    # Scores ---------------------------------------------------------------------------------------------------------

    def score(self, trajectory: Trajectory, full: bool) -> Scored:
        """Under the policy as it is, with gradient unless the caller turned it off."""
        return _scored(self.engine(trajectory, full))

    @torch.no_grad()
    def score_start(self, trajectory: Trajectory, full: bool) -> Scored:
        """Under the policy that training started from."""
        if self._start is not None:
            return _scored(self._start(trajectory, full))
        with adapters_off(self.policy.model):
            return _scored(self.engine(trajectory, full))

    def action_logp(self, trajectory: Trajectory, scored: Scored, token_mask: Tensor) -> Tensor:
        """Log-probability of each action: (B, T), or (B, S, T) where each of S streams is one.

        Args:
            token_mask: (B, S, T) bool, the tokens that count.
        """
        if self.config.streams != "speak":
            return ratios.actions(scored.tokens, token_mask, self.config.importance_sampling_level)[0]
        assert scored.log_probs is not None
        silent = self.policy.spec.streams[0].silent_ids
        return losses.speak_logp(scored.log_probs, trajectory.codes[:, 0], silent)

    def kl(self, trajectory: Trajectory, scored: Scored, token_mask: Tensor) -> Tensor:
        """KL to the start of each action, differentiable; `kl_estimator` says how. A frame's is the sum of its tokens'.

        An exact one is over the vocabulary of each token, given the tokens that were sampled before it. Arguments and
        shape are those of `action_logp`.
        """
        estimator = self.config.kl_estimator
        start = self.score_start(trajectory, estimator == "exact")
        if estimator != "exact":
            per_token = losses.sampled_kl(scored.tokens, start.tokens, token_mask, estimator)
        else:
            assert scored.log_probs is not None and start.log_probs is not None
            per_token = losses.exact_kl(scored.log_probs, start.log_probs, token_mask[:, 0]).unsqueeze(1)
            if scored.audio_log_probs is not None and start.audio_log_probs is not None:
                audio = losses.exact_kl(scored.audio_log_probs, start.audio_log_probs, token_mask[:, 1:])
                per_token = torch.cat([per_token, audio], 1)
        return ratios.actions(per_token, token_mask, self.config.importance_sampling_level)[0]

    @torch.no_grad()
    def kl_rewards(self, old: Old) -> Tensor:
        """(B, T) KL to the start as a cost of each frame: k1 of what was sampled.

        As a reward only that has the policy gradient of the KL. k2 and k3 have another one. An exact KL is the same
        whatever was sampled in its frame: no action is charged for its own distance, only for those it leads to.
        """
        parts = []
        for at in range(0, old.mask.shape[0], self.config.per_device_train_batch_size):
            part = old.rows(range(old.mask.shape[0])[at : at + self.config.per_device_train_batch_size])
            scored = self.score(part.trajectory, False)
            kl = self.kl(part.trajectory, scored, part.token_mask)
            parts.append(kl if kl.dim() == 2 else kl.sum(1))
        return torch.cat(parts)

    def recompute(self, trajectory: Trajectory, iteration: int, tally: Tally, *, full: bool) -> Old:
        """Score a rollout by the training forward, log the distance to what the sampler said, stop if it is too large.

        With the same `full` as the updates, the ratio of the first update is exactly 1 under top-k as well.

        Raises:
            UptakeError: the sampler and the training forward compute different policies.
        """
        config = self.config
        rows, size = trajectory.valid.shape[0], config.per_device_train_batch_size
        valid, sampler_logp = self._sampled(trajectory)
        scores, values = [], []
        with torch.no_grad():
            for at in range(0, rows, size):
                part = trajectory.rows(slice(at, at + size))
                scored = self.score(part, full)
                tokens = scored.tokens
                # A token that a rounding put outside the top-k has no ratio.
                known = valid[at : at + size] & ~torch.isneginf(tokens) & ~torch.isneginf(sampler_logp[at : at + size])
                scores.append((tokens, known, self.action_logp(part, scored, known)))
                if scored.values is not None:
                    values.append(scored.values)
                tally.add("entropy", float(scored.entropy[part.valid].sum()), float(part.valid.sum()))
        logp, token_mask, action = (torch.cat(list(parts)) for parts in zip(*scores, strict=True))
        told, mask = ratios.actions(sampler_logp, token_mask, config.importance_sampling_level)
        gap = (logp - sampler_logp)[token_mask].abs()
        total, count, lost = self.engine.total([float(gap.sum()), gap.numel(), float((valid & ~token_mask).sum())])
        mean = total / max(count, 1.0)
        tally.add("sampling/sampling_logp_difference/mean", float(gap.sum()), gap.numel())
        tally.largest("sampling/sampling_logp_difference/max", float(gap.max()) if gap.numel() else 0.0)
        tally.add("sampling/outside_support", lost / max(count + lost, 1.0))
        if not mean <= config.max_sampling_logp_difference:  # a NaN stops the run as well
            raise UptakeError(
                f"iteration {iteration}: the training forward differs from the sampler by {mean:.3g} nats a token, "
                f"more than {config.section}.max_sampling_logp_difference = {config.max_sampling_logp_difference}; the "
                "policy's `score` does not compute what its `step` sampled from"
            )
        return Old(trajectory, action, told, torch.cat(values) if values else None, mask, token_mask)

    def _sampled(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Which tokens in the objective the policy sampled itself, and their log-probabilities then: (B, S, T) each."""
        valid, logp = trajectory.valid.unsqueeze(1), trajectory.sampler_logp.unsqueeze(1)
        if not self._codebooks:
            return valid, logp
        audio, q = trajectory.audio, self._codebooks
        assert audio is not None
        return torch.cat([valid, audio.valid[:, :q]], 1), torch.cat([logp, audio.sampler_logp[:, :q]], 1)

    # Weights --------------------------------------------------------------------------------------------------------

    def finish(self, folder: Path) -> None:
        """Leave the policy with whole weights on every rank, for use without the other ranks, and export it."""
        self.engine.release()
        export_trained(self.policy, self.config, folder if self.engine.rank == 0 else None)


def recompute_activations(model: nn.Module, section: str) -> None:
    """Have a model compute activations again in its backward pass.

    Raises:
        UptakeError: it does not say that it can.
    """
    if not hasattr(model, "recompute"):
        raise UptakeError(f"{section}.gradient_checkpointing: {type(model).__name__} cannot; set it to false")
    model.recompute = True  # type: ignore[assignment]


def tally_ratio(
    tally: Tally,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: losses.Clip,
    level: str = "token",
) -> None:
    """Log what one micro-batch's ratios looked like; arguments as `losses.policy_loss`."""
    seen = losses.diagnostics(logp.detach(), old_logp, advantages, mask, clip, level)
    for name, key in _DIAGNOSTICS.items():
        tally.add(name, seen[key], seen["frames"])
    tally.largest("ratio/max", seen["ratio_max"])


_DIAGNOSTICS = {
    "ratio/mean": "ratio",
    "approx_kl": "approx_kl",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
}


def moments(engine: Engine, x: Tensor) -> tuple[float, float]:
    """Mean and variance of the (n,) values of all ranks."""
    count, total, squares = engine.total([x.numel(), float(x.sum()), float(x.square().sum())])
    mean = total / max(count, 1.0)
    return mean, max(squares / max(count, 1.0) - mean * mean, 0.0)


def _scored(tensors: dict[str, Tensor]) -> Scored:
    optional = (tensors.get(name) for name in ("values", "log_probs", "audio_logp", "audio_log_probs"))
    return Scored(tensors["logp"], tensors["entropy"], *optional)


class _Scorer(nn.Module):
    """The policy's teacher-forced scoring, and the value head, as one module, so that DeepSpeed's hooks see them."""

    def __init__(self, policy: DuplexPolicy, codebooks: int, value_head: ValueHead | None = None) -> None:
        super().__init__()
        self.model = policy.model
        self.value_head = value_head
        self._options: dict[str, Any] = {"codebooks": codebooks} if codebooks else {}
        self._policy = [policy]  # in a list: a policy that is a module itself would be registered twice

    def forward(self, trajectory: Trajectory, full: bool) -> dict[str, Tensor]:
        if not full:
            scores = self._policy[0].score(trajectory, **self._options)
            out = {"logp": scores.logp, "entropy": scores.entropy}
            if scores.audio_logp is not None:
                out["audio_logp"] = scores.audio_logp
        else:
            # An exact KL needs the whole vocabulary: outside the top-k of one policy the other may have mass. The
            # action keeps the probability under which it was sampled.
            audio = trajectory.audio
            whole = dataclasses.replace(trajectory, top_k=0, audio=audio and dataclasses.replace(audio, top_k=0))
            scores = self._policy[0].score(whole, full=True, **self._options)
            assert scores.log_probs is not None
            tokens = trajectory.codes[:, 0]
            logp = _truncated(scores.logp, scores.log_probs, tokens, trajectory.valid, trajectory.top_k)
            out = {"logp": logp, "entropy": scores.entropy, "log_probs": scores.log_probs}
            if scores.audio_logp is not None:
                assert audio is not None and scores.audio_log_probs is not None
                q = scores.audio_logp.shape[1]
                out["audio_logp"] = _truncated(
                    scores.audio_logp, scores.audio_log_probs, audio.tokens[:, :q], audio.valid[:, :q], audio.top_k
                )
                out["audio_log_probs"] = scores.audio_log_probs
        if self.value_head is not None:
            assert scores.hidden is not None
            out["values"] = self.value_head(scores.hidden)
        return out


def _truncated(logp: Tensor, log_probs: Tensor, tokens: Tensor, valid: Tensor, top_k: int) -> Tensor:
    """Log-probabilities of tokens (...) under the top k of (..., V), where `logp` are those under all of it."""
    if not top_k:
        return logp
    tokens = tokens.clamp(min=0)
    truncated = truncated_log_probs(log_probs, 1.0, top_k, keep=tokens)
    return truncated.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).masked_fill(~valid, 0.0)

"""Train a full-duplex policy with TRL's own `GRPOTrainer`, in our environments, on our rewards.

    trainer = duplex_trainer(policy, env_of, composition, scenarios, GRPOConfig("out", num_generations=4, ...))
    trainer.train()

For who has a TRL set-up already, and for comparing the two. TRL owns the loop, the loss, the advantages and the
optimiser; a conversation is one of its completions: a token a frame, those that the policy did not choose masked out
(`env_mask`). A prompt is a scenario's id. Each term of the composition is one of TRL's reward functions, with its
weight; None where it does not apply.

What TRL's format cannot say, `align.trainers.grpo` has: credit on the frames that earned it, an exact KL, more than the
text stream, importance correction of the sampler, resume in the middle of an iteration.

Only one of the trainer's methods is overridden, the one that scores tokens: a duplex policy cannot be scored from
tokens alone, so the rollout keeps its trajectory and a completion's "prompt token" is its row in there. That method has
changed in six of nine TRL releases, hence `TESTED`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor

from align.rollout import collect
from envs.errors import UptakeError
from rewards.compose import term_values

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

    from align.policies.base import DuplexPolicy, Trajectory
    from rewards.compose import Composition

TESTED = SpecifierSet(">=1.16,<1.17")
"""Versions of TRL that the bridge was tested with."""


def duplex_trainer(
    policy: DuplexPolicy,
    make_env: Callable[[int], Any],
    composition: Composition,
    scenarios: Sequence[str],
    args: GRPOConfig,
    *,
    frames: int = 150,
    seed: int = 0,
    **options: Any,
) -> GRPOTrainer:
    """TRL's trainer on `policy`, whose `model` it trains in place. One process.

    Args:
        make_env: number of rows -> `DuplexVectorEnv`.
        composition: its terms become TRL's reward functions.
        scenarios: ids to train on.
        args: TRL's own; `beta` must be 0.
        frames: the longest that a conversation may be.
        seed: of the users and of the policy's sampling.
        options: further arguments of `GRPOTrainer`, such as `callbacks`.

    Raises:
        UptakeError: a version of TRL that the bridge was not tested with, more than one process, or `beta`, for which
            TRL would load a second model by name.
    """
    check_version(metadata.version("trl"))
    if args.world_size > 1:
        raise UptakeError(f"TRL bridge: {args.world_size} ranks; it runs in one process, use grpo for more")
    if args.beta:
        raise UptakeError(
            f"TRL bridge: beta = {args.beta} makes TRL load its reference by name, which a duplex policy has none of; "
            "use beta=0, or train with grpo, which keeps the start"
        )
    # `rollout_func` is what TRL calls experimental; the range of versions above answers for it.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
    from trl import GRPOTrainer

    class DuplexModel(PreTrainedModel):
        """What `transformers` wants round a module; its forward scores a trajectory."""

        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.generation_config = GenerationConfig()
            self.policy_model = policy.model

        def forward(self, trajectory: Trajectory) -> dict[str, Tensor]:
            scores = policy.score(trajectory)
            return {"logp": scores.logp, "entropy": scores.entropy}

    class DuplexTrainer(GRPOTrainer):
        """Scores a rollout's rows instead of tokens."""

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            compute_entropy: bool = False,
            **_: Any,
        ) -> tuple[Tensor, Tensor | None, None]:
            rows = input_ids[:, 0]  # (B,) the "prompt"
            parts = [model(played.rows(part)) for part in rows.split(batch_size or len(rows))]
            logp = torch.cat([part["logp"] for part in parts])[:, :logits_to_keep]
            entropy = torch.cat([part["entropy"] for part in parts])[:, :logits_to_keep]
            return logp, entropy if compute_entropy else None, None

    played: Trajectory
    round_ = 0

    def converse(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """One conversation a prompt; those of one scenario meet the same user."""
        nonlocal played, round_
        seeds = np.random.default_rng(np.random.SeedSequence([seed, round_])).integers(0, 2**63 - 1, len(prompts))
        rollout = collect(
            policy, make_env(len(prompts)), prompts, [round_] * len(prompts), 1, seeds.tolist(), frames, env_seed=seed
        )
        round_ += 1
        played = rollout.trajectory
        values = [term_values(composition.score(episode)) for episode in rollout.episodes]
        columns = {_column(term): [found.get(term) for found in values] for term in composition.weights}
        return {
            "prompt_ids": [[row] for row in range(len(prompts))],
            "completion_ids": played.codes[:, 0].clamp(min=0).tolist(),
            "logprobs": played.sampler_logp.tolist(),
            "env_mask": played.valid.int().tolist(),
            **columns,
        }

    if args.reward_weights is None:
        args.reward_weights = list(composition.weights.values())
    return DuplexTrainer(
        model=DuplexModel(),
        reward_funcs=[_reward(term) for term in composition.weights],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": list(scenarios)}),
        processing_class=_tokenizer(policy),
        rollout_func=converse,
        **options,
    )


def check_version(version: str) -> None:
    """Raise UptakeError for a version of TRL outside `TESTED`."""
    if version not in TESTED:
        raise UptakeError(
            f"TRL bridge: trl {version} is installed, tested is {TESTED}; pip install 'trl{TESTED}', or train with grpo"
        )


def _column(term: str) -> str:
    return f"reward {term}"


def _reward(term: str) -> Callable[..., list[float | None]]:
    """A reward function of TRL's that hands over what the rollout found."""

    def reward(**columns: Any) -> list[float | None]:
        return columns[_column(term)]

    reward.__name__ = term
    return reward


def _tokenizer(policy: DuplexPolicy) -> Any:
    """What TRL decodes completions with for its logs: a word for each token of the text stream."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    text = policy.spec.streams[0]
    names = {f"<{token}>": token for token in range(text.vocab)}
    pad = f"<{min(text.silent_ids)}>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(names, unk_token=pad)), pad_token=pad, eos_token=pad, unk_token=pad
    )

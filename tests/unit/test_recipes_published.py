"""A recipe that names a paper has its published values, and says in its header what it does not do as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.config import load_config
from align.curriculum import cards, of_axes
from align.policies.sampling import Sampling
from envs.pack import Pack

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"

OBJECTIVE = {
    "streams": "text", "importance_sampling_level": "token", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": None,
    "beta": 0.01, "kl_estimator": "exact", "use_kl_in_reward": False, "credit": "uniform", "baseline": "mean",
    "scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum", "normalize_advantages": False,
    "num_iterations": 1, "lr_scheduler_type": "cosine", "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.1,
    "max_grad_norm": 2.0,
}  # fmt: skip
"""arXiv 2606.11167: section 3 (the loss: 1/G sum over conversations of 1/N sum over frames) and appendix A."""
SCALE = {
    "iterations": 100, "num_groups": 32, "num_generations": 16, "steps_per_generation": 16, "learning_rate": 2e-7,
    "max_context_s": 30.0, "context_probability": 0.5,
}  # fmt: skip
"""The same, of 7 billion parameters."""
FOUR = {f"published_{axis}": 1.0 for axis in ("pause", "turn", "backchannel", "interruption")}
FIVE = FOUR | {"published_judge": 1.0}

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "moshi": (OBJECTIVE | SCALE, FIVE),
    "personaplex": (OBJECTIVE | SCALE, FIVE),
    "published": (OBJECTIVE, FOUR),
    "published_judge": (OBJECTIVE, FIVE),
    "aspirin": (  # arXiv 2604.10065
        {
            "use_peft": True, "lora_r": 256, "learning_rate": 1e-5, "num_generations": 2, "beta": 1e-3,
            "streams": "speak", "credit": "uniform",
        },
        {"aspirin": 1.0},
    ),
    "duplexpo": (  # arXiv 2607.07148
        {
            "num_generations": 4, "frames": 200, "learning_rate": 1e-5, "warmup_steps": 100, "beta": 0.2,
            "credit": "event",
        },
        {f"duplexpo_{part}": 1.0 for part in ("onset", "backchannel", "stop", "events")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_values(name: str) -> None:
    config, (fields, rewards) = load_config(f"recipes/{name}"), PUBLISHED[name]
    assert {field: getattr(config.grpo, field) for field in fields} == fields
    assert config.rewards == rewards


def test_conversations_are_sampled_and_begin_as_published() -> None:
    assert Sampling() == Sampling(text_temperature=0.7, audio_temperature=0.8, audio_top_k=250)
    assert load_config("recipes/moshi").prompt.silence_s == 3.0
    assert load_config("recipes/personaplex").prompt.text == "You enjoy having a good conversation."
    for name in ("moshi", "personaplex"):
        judge = load_config(f"recipes/{name}").judge
        assert (judge.model, judge.transcript) == ("Qwen/Qwen3-235B-A22B", "asr")


def test_aspirin_meets_three_epochs_of_its_clips() -> None:
    grpo = load_config("recipes/aspirin").grpo
    assert grpo is not None
    assert 0 <= grpo.iterations * grpo.num_groups - 3 * 1300 < grpo.num_groups


def said_in(name: str) -> tuple[str, str]:
    """What a recipe's header says before and after "Not as published"."""
    header = (RECIPES / f"{name}.yaml").read_text("utf-8").split("\nname:")[0]
    before, _, after = " ".join(header.replace("#", " ").split()).partition("Not as published")
    return before, after


@pytest.mark.parametrize(
    ("name", "departures"),
    [
        ("moshi", ["parakeet-tdt-0.6b-v2", "FSDP", "fp32 master weights", "simulated users"]),
        ("personaplex", ["parakeet-tdt-0.6b-v2", "FSDP", "fp32 master weights", "simulated users"]),
        ("published", ["learning rate", "batch", "context", "silence", "users"]),
        ("published_judge", ["parakeet-tdt-0.6b-v2"]),
        ("aspirin", ["logsumexp", "simulated users", "60 s", "clip"]),
        ("duplexpo", ["temperature 1.0", "top-p 0.9", "1e-6", "advantages at 5", "lambdas"]),
    ],
)
def test_what_is_not_as_published_stands_in_the_header(name: str, departures: list[str]) -> None:
    for departure in departures:
        assert departure in said_in(name)[1], departure


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("moshi", ["adapters", "segment", "axis sampling probabilities", "text top-k", "judge's sampling"]),
        ("personaplex", ["as there", "wise and friendly teacher", "whose voice"]),
        ("published", ["axis sampling probabilities"]),
        ("published_judge", ["as there", "judge's sampling"]),
    ],
)
def test_what_the_paper_leaves_open_stands_in_the_header(name: str, points: list[str]) -> None:
    said = said_in(name)[0].partition("Open in the paper")[2]
    for point in points:
        assert point in said, point


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"aspirin", "duplexpo"}))
def test_groups_are_drawn_from_the_four_axes_that_the_paper_has(name: str) -> None:
    config = load_config(f"recipes/{name}")
    training = of_axes(Pack.load(config.pack, config.users).scenarios("train"), config.axes)
    assert set(cards(training)) == {"pause", "turn", "backchannel", "interruption"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_asks_no_judge_when_it_is_small_and_says_so(name: str) -> None:
    small = load_config(f"recipes/{name}", ["small=true"])
    assert small.policy == "pocket"
    assert not small.rewards.get("published_judge")
    if "published_judge" in small.rewards:
        assert "without the judge" in said_in(name)[0]

"""The plan that `--dry-run` prints: counted from shapes, measured on the run's own conversations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align import checkpoints, plan, rollout
from align.policies.base import DuplexSpec
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.prompt import PromptConfig, make_prompt
from align.trainers import sft
from align.trainers.grpo_config import GrpoConfig
from align.trainers.learner import Learner, choose_trained, trained_parameters
from align.trainers.ppo_config import PpoConfig
from align.trainers.run_config import RunConfig
from align.trainers.sft_config import SftConfig
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from tests import tiny_moshi
from tests.checkpoints import mimi_policy
from tests.packs import write_tiny_pack
from tests.unit.test_policy_chunk import tiny as tiny_chunk

CONFIG = GrpoConfig(frames=30, num_groups=2, num_generations=4, per_device_train_batch_size=2)


def spec(model: MoshiModel, lived: int = 0) -> DuplexSpec:
    c = model.config
    return DuplexSpec(24000, 1920, (), context=c.context, lived=lived, cached=2 * c.num_layers * c.dim)


def memory(
    model: MoshiModel, config: RunConfig, world: int = 1, activations: int = 0, lived: int = 0
) -> dict[str, int]:
    return plan.memory(model, spec(model, lived), config, world, activations)


@pytest.fixture(scope="module")
def seven_billion() -> MoshiModel:
    with torch.device("meta"):
        return MoshiModel(MoshiConfig())


def test_the_published_shape_has_its_published_size(seven_billion):
    """15.4 GB in bfloat16: 6.97 billion weights in the temporal transformer and .72 in the depth transformer."""
    needs = memory(seven_billion, GrpoConfig(bf16=True, zero_stage=1, beta=0.0))
    assert needs["weights"] == pytest.approx(15.4e9, rel=0.01)
    assert "reference" not in needs


def test_adapters_need_no_copy_of_the_weights_and_hardly_any_optimiser(seven_billion):
    config = GrpoConfig(bf16=True, zero_stage=2, use_peft=True, lora_r=16)
    choose_trained(seven_billion, config)
    needs = memory(seven_billion, config)
    assert "reference" not in needs
    assert needs["optimiser"] < 0.05 * needs["weights"]
    assert needs["weights"] == pytest.approx(15.4e9, rel=0.02)


def test_a_frame_of_a_conversation_keeps_half_a_mebibyte_of_keys_and_values_its_prompt_included(seven_billion):
    config = GrpoConfig(bf16=True, zero_stage=1, frames=250, num_groups=5, num_generations=8)
    kept = memory(seven_billion, config, lived=38)["conversations"]
    assert kept == 40 * 288 * 2**19
    assert memory(seven_billion, GrpoConfig(bf16=True, frames=9000), lived=38)["conversations"] % 3000 == 0


def test_a_codec_that_computes_with_torch_is_part_of_the_plan_with_what_each_conversation_makes_it_remember():
    policy = mimi_policy()
    none, one, two = (plan.codec_memory(policy, rows)["codec"] for rows in (0, 1, 2))
    weights = policy.codec.model
    assert none == sum(tensor.nbytes for tensor in (*weights.parameters(), *weights.buffers()))
    ring = 20 + 2 - 1  # a frame is two steps of a transformer that sees 20
    assert two - one == one - none > 2 * 2 * 2 * ring * 16 * 4  # both ways, layers, keys and values, width, bytes
    assert plan.codec_memory(tiny_moshi.policy(), 2) == {}


@pytest.mark.parametrize(("stage", "shared"), [(0, ()), (1, ("optimiser",)), (2, ("optimiser", "gradients"))])
def test_each_zero_stage_shares_what_it_shards(stage, shared):
    model, config = MoshiModel(tiny_moshi.config()), GrpoConfig(zero_stage=stage)
    choose_trained(model, config)
    one, two = memory(model, config, 1, 100), memory(model, config, 2, 100)
    for name in one:
        assert two[name] == (one[name] // 2 if name in (*shared, "conversations") else one[name]), name


def test_what_does_not_train_has_no_gradient_and_no_moments():
    model = MoshiModel(tiny_moshi.config())
    choose_trained(model, CONFIG)
    trained = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(tuple(CONFIG.frozen)))
    needs = memory(model, CONFIG)
    assert needs["gradients"] == 4 * trained
    assert needs["optimiser"] == 8 * trained
    assert needs["reference"] == needs["weights"] > needs["gradients"]


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> tuple[plan.Pace, MoshiModel]:
    pack = Pack.load(str(write_tiny_pack(tmp_path_factory.mktemp("plan") / "pack")))
    policy, env = tiny_moshi.policy(), DuplexVectorEnv(pack, CONFIG.conversations, frames=CONFIG.frames)
    choose_trained(policy.model, CONFIG)
    names = [scenario.id for scenario in pack.scenarios("train")]
    return plan.measure(policy, env, names, CONFIG), policy.model


def test_the_pace_is_measured_and_nothing_of_it_stays_in_the_model(pace):
    found, model = pace
    assert min(dataclasses.astuple(found)[:4]) > 0
    assert found.update > found.score
    assert all(p.grad is None for p in model.parameters())


def test_what_autograd_keeps_is_at_least_every_layers_input(pace):
    found, model = pace
    c = model.config
    assert found.activations > 4 * c.dim * 2 * c.num_layers
    assert found.activations < 4 * 400 * c.dim * c.num_layers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], DuplexVectorEnv]:
    pack = Pack.load(str(write_tiny_pack(tmp_path_factory.mktemp("plan") / "pack")))
    return [scenario.id for scenario in pack.scenarios("train")][:2], DuplexVectorEnv(pack, 2, frames=40)


@pytest.mark.parametrize(
    ("silence", "choice"),
    [
        (0.0, {}), (0.0, {"gradient_checkpointing": True}), (0.0, {"max_context_s": 2.0}),
        (0.0, {"streams": "all", "frozen": []}), (1.0, {}),
        (1.0, {"max_context_s": 1.0, "gradient_checkpointing": True}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_planned_for_a_way_back_is_what_one_of_full_length_keeps(world, silence, choice):
    names, env = world
    batch = {"num_groups": 1, "num_generations": 2, "steps_per_generation": 1, "per_device_train_batch_size": 2}
    config = GrpoConfig(**{"frames": 40, **batch, **choice})
    policy = tiny_moshi.policy(context=200)
    if silence:
        policy = policy.prompted(make_prompt(policy, PromptConfig(silence_s=silence)))
    choose_trained(policy.model, config)
    pace = plan.measure(policy, env, names, config)
    found = plan.memory(policy.model, policy.spec, config, 1, pace.activations, pace.lived_activations)["activations"]
    before = policy.spec.lived + config.context_frames
    prompt = np.zeros((policy.model.config.num_streams, before - 1), np.int64) if before else None
    played = rollout.collect(policy, env, names, [0, 0], 1, [0, 1], 40, prompts=[prompt] * 2 if before else None)
    kept = plan._Kept(policy.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        policy.score(played.trajectory, full=True, codebooks=8 if "streams" in choice else 0)
    assert found == pytest.approx(kept.bytes, rel=0.15)


def test_the_rollout_is_the_most_where_whole_weights_are_gathered_for_it(seven_billion):
    config = GrpoConfig(bf16=True, zero_stage=3)
    needs = memory(seven_billion, config, world=8, activations=2**20)
    said = plan.peak(needs, seven_billion, config)
    assert said.startswith("and while it converses: ") and "whole weights 14." in said and said.endswith("its most")
    config = GrpoConfig(bf16=True, zero_stage=1)
    assert plan.peak(memory(seven_billion, config), seven_billion, config).startswith("which is its most")


@pytest.mark.parametrize(
    "config", [GrpoConfig(), GrpoConfig(use_peft=True, lora_r=4), PpoConfig()], ids=["whole", "adapters", "ppo"]
)
def test_a_checkpoint_takes_the_bytes_that_were_planned_for_it(config, tmp_path):
    policy = tiny_moshi.policy()
    config.frozen = ["linears"]
    trained = trained_parameters(policy.model, config, policy.spec.hidden)
    engine = Learner(policy, config, values=config.section == "ppo").engine
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    engine.step(1e-6)
    written = checkpoints.save_checkpoint(
        tmp_path, 1, model=engine.model_tensors(), optimizer=engine.optimizer_tensors(), rng={}, state={}, keep=1
    )
    tensors = {name: tensor for file in written.glob("*.safetensors") for name, tensor in load_file(file).items()}
    places = (".start", ".step")  # of a few bytes each: what a rank holds, and how often it was updated
    assert plan.checkpoint(trained, config) == sum(
        tensor.nbytes for name, tensor in tensors.items() if not name.endswith(places)
    )


@pytest.mark.parametrize("kind", [tiny_moshi.policy, tiny_chunk], ids=["moshi", "chunk"])
@pytest.mark.parametrize("adapters", [{}, {"use_peft": True, "lora_r": 4}], ids=["whole", "adapters"])
@pytest.mark.parametrize("voice", [1.0, 0.0])
def test_what_a_warm_start_trains_is_counted_before_it_is_chosen(kind, adapters, voice):
    policy = kind(context=64)
    config = SftConfig(frames=40, audio_weight=voice, max_delay=2 if kind is tiny_moshi.policy else 0, **adapters)
    teaching = sft.teach(policy, config)
    every, trained = plan.written(policy.model, 0, config)
    assert every == sum(p.numel() for p in policy.model.parameters())
    sft.choose(teaching, config)
    assert trained == sum(p.numel() for p in teaching.parameters() if p.requires_grad)


def test_the_disk_of_the_published_recipe_holds_three_checkpoints_and_the_policy():
    config = GrpoConfig(bf16=True, zero_stage=3)
    with torch.device("meta"):
        model = MoshiModel(MoshiConfig())
    trained = trained_parameters(model, config, 4096)
    assert plan.checkpoint(trained, config) == pytest.approx(97.6e9, rel=0.01)
    every = sum(p.numel() for p in model.parameters())
    assert plan.disk(every, trained, config) == 3 * plan.checkpoint(trained, config) + 4 * every
    assert plan.disk(every, trained, config, kept=2) == plan.checkpoint(trained, config) + 4 * every
    assert "3 checkpoints of 90.9" in plan.disk_line(every, trained, config)


def test_twice_the_epochs_are_twice_the_update():
    pace = plan.Pace(frame=0.1, score=0.001, update=0.003, activations=1)
    once, twice = (plan.seconds(pace, PpoConfig(kl_coef=0.0, num_ppo_epochs=n), 10) for n in (1, 2))
    assert twice["update"] == pytest.approx(2 * once["update"])
    assert twice["rollout"] == once["rollout"]


def test_the_plan_says_sums_that_are_sums():
    said = plan.lines({"weights": 2**30, "gradients": 2**29}, {"rollout": 2.0, "update": 1.0}, 10, 30.0)
    assert said[0].endswith("weights 1.00 + gradients 0.50 = 1.50 GiB")
    assert said[1].endswith("rollout 2.0 + update 1.0 = 3.0 s")
    assert "10 iterations and 30 s of measuring, about 1 min" in said[2]


def test_loading_a_7b_checkpoint_for_a_bfloat16_run_takes_the_card_no_more_than_its_own_copy():
    with torch.device("meta"):
        model = MoshiModel(MoshiConfig())
    said = plan.loading(model, GrpoConfig(bf16=True, zero_stage=1))
    assert said.endswith("28.64 GiB of the host's memory, then 14.32 GiB on its device")

"""A cascade's turn control: the contract, the thresholds it starts from, and what a user of the class can get wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.loading import load_policy
from align.policies import checks
from align.policies.cascade.config import CascadeConfig
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import ACT, CascadePolicy
from align.policies.moshi.prompt import PromptConfig
from align.policies.sampling import Sampling
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.pack import Pack
from tests.packs import write_tiny_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack.load(write_tiny_pack(tmp_path_factory.mktemp("pack")))


def soft(pack, **options):
    """Thresholds that noise bursts of a few frames reach."""
    return CascadePolicy(pack, TurnHead(0.3, 0.2), **options)


@pytest.mark.parametrize("sampling", [None, Sampling(text_temperature=2.5)], ids=["plain", "hot"])
def test_a_cascade_passes_every_check(pack, sampling):
    policy = soft(pack, sampling=sampling)
    checks.check_policy(policy, load=lambda folder: CascadePolicy.load(folder, policy.sampling), frames=60)


def converse(policy, loud, seeds=(0,)):
    """Play noise where `loud` says so; returns the steps."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(loud), len(seeds), CLOCK.frame)).astype(np.float32)
    policy.reset(np.ones(len(seeds), bool), list(seeds))
    return checks.play(policy, noise * np.array(loud, np.float32)[:, None, None])


def test_greedy_it_answers_at_its_threshold_and_stops_at_its_threshold(pack):
    policy = CascadePolicy(pack, TurnHead(0.7, 0.3), sampling=Sampling(text_temperature=1.0, text_top_k=1))
    steps = converse(policy, [1] * 10 + [0] * 14 + [1] * 6 + [0] * 2)
    acts = [n for n, step in enumerate(steps) if step.tokens[0, 0] == ACT]
    # Silence begins with frame 10: 0.7 s of it are heard with frame 18 (0.72 s). Speech of 0.3 s: frame 24 + 3.
    assert acts == [18, 27]
    sounding = [n for n, step in enumerate(steps) if np.abs(step.audio[0]).max() > 1e-3]
    assert min(sounding) == 18 + 3, "0.24 s after the decision"
    assert max(sounding) <= 28
    assert "".join(step.text[0] for step in steps).split()


def test_weights_of_16_bits_do_not_round_what_was_measured():
    head = TurnHead(0.7, 0.3)  # weights of 1 and -7, which bfloat16 has
    silences = torch.arange(600.0)
    measures = torch.stack((silences, *torch.zeros(3, 600)), dim=-1)
    exact = head(measures)
    rounded = head.bfloat16()(measures)
    assert rounded.dtype == torch.float32
    assert (rounded[:, 0] == exact[:, 0]).all()
    assert (rounded[:, 0].diff() > 0).all(), "a hop more of silence is a hop more"


def test_an_answer_that_is_being_prepared_is_withdrawn_when_the_user_goes_on(pack):
    policy = CascadePolicy(
        pack, TurnHead(0.2, 0.1), CascadeConfig(response_s=0.8), sampling=Sampling(text_temperature=1.0, text_top_k=1)
    )
    steps = converse(policy, [1] * 6 + [0] * 5 + [1] * 12)
    assert not any(np.abs(step.audio).max() > 1e-3 for step in steps)


def test_without_a_user_there_is_nothing_to_decide(pack):
    policy = soft(pack)
    steps = converse(policy, [0] * 30, seeds=(1, 2))
    assert not policy.trajectory().valid.any()
    assert all((step.tokens == -1).all() and not step.audio.any() for step in steps)


def test_the_threshold_has_a_gradient(pack):
    policy = soft(pack)
    converse(policy, [1] * 6 + [0] * 12, seeds=range(8))
    scores = policy.score(policy.trajectory())
    scores.logp.sum().backward()
    assert policy.model.answer.bias.grad.abs().item() > 0
    assert TurnHead(0.7, 0.3).thresholds_s() == pytest.approx((0.7, 0.3))


def test_it_cannot_answer_without_clips(pack, tmp_path):
    folder = write_tiny_pack(tmp_path / "mute")
    index = json.loads((folder / "pack.json").read_text())
    for clip in index["clips"].values():
        clip["kind"] = "agent_backchannel" if clip["kind"] == "agent" else clip["kind"]
    (folder / "pack.json").write_text(json.dumps(index))
    with pytest.raises(UptakeError, match="no clips of kind 'agent'"):
        CascadePolicy(Pack.load(folder))
    with pytest.raises(UptakeError, match="response_s = -1"):
        CascadePolicy(pack, config=CascadeConfig(response_s=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "other"}, "not of model_type"),
        ({"respond_s": 1}, "did you mean 'response_s'"),
        ({"response_s": "soon"}, "response_s"),
        ({"pack": "/nowhere"}, "no pack '/nowhere'"),
    ],
)
def test_a_folder_that_is_no_cascade_is_one_clear_line(pack, tmp_path, change, message):
    CascadePolicy(pack).export(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UptakeError, match=message) as error:
        CascadePolicy.load(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_and_broken_weights_and_broken_audio_are_named(pack, tmp_path):
    CascadePolicy(pack).export(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    for answer, message in ((torch.full((1, 4), torch.nan), "NaN or infinite"), (torch.ones(1, 4).char(), "is int8")):
        save_file(whole | {"answer.weight": answer}, weights)
        with pytest.raises(UptakeError, match=rf"model\.safetensors: answer\.weight .*{message}"):
            CascadePolicy.load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UptakeError, match=r"model.safetensors: truncated"):
        CascadePolicy.load(tmp_path)
    policy = soft(pack)
    policy.reset(np.ones(2, bool), [1, 2])
    mic = np.zeros((2, CLOCK.frame), np.float32)
    mic[1, 3] = np.nan
    with pytest.raises(UptakeError, match="row 1"):
        policy.step(mic, np.ones(2, bool))
    assert torch.isfinite(policy.model.answer.bias).all()


def test_another_sampling_counts_from_the_next_reset_on(pack):
    policy = soft(pack)
    policy.reset(np.ones(2, bool), [1, 2])
    user = checks.noise_user(policy, 2, 60)
    checks.play(policy, user[:30])
    before, policy.sampling = policy.sampling, Sampling(text_temperature=3.0)
    checks.play(policy, user[30:])
    for temperature in (before.text_temperature, 3.0):
        trajectory = policy.trajectory()
        assert trajectory.temperature == temperature and trajectory.valid.any()
        torch.testing.assert_close(policy.score(trajectory).logp, trajectory.sampler_logp, rtol=0, atol=1e-4)
        policy.reset(np.ones(2, bool), [1, 2])
        checks.play(policy, user)


def test_a_run_without_a_prompt_takes_a_policy_that_has_none():
    assert isinstance(load_policy("cascade", PromptConfig()), CascadePolicy)
    with pytest.raises(UptakeError, match="a CascadePolicy takes no prompt"):
        load_policy("cascade", PromptConfig(silence_s=1.0))

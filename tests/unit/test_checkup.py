"""`uptake doctor CHECKPOINT` tells a policy that streams as it scores from one that only loads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.codecs.mimi_kyutai import MIMI
from align.policies.base import DuplexPolicy
from align.policies.checks import TOLERANCE, audio_difference, streaming_difference
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from launch.checkup import run_checkup
from launch.terminal import make_console
from tests import tiny_moshi
from tests.checkpoints import mimi_policy


@pytest.fixture
def folder(tmp_path):
    mimi_policy().export(tmp_path)
    return tmp_path


def refused(folder, *words: str) -> None:
    with pytest.raises(UptakeError) as caught:
        run_checkup(str(folder), console=make_console())
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told


def test_text_and_voice_are_both_measured_and_said(folder, capsys):
    assert run_checkup(str(folder), console=make_console())
    said = " ".join(capsys.readouterr().out.split())
    assert "nats apart in 72 actions of the text and" in said
    assert "in 555 of the voice on cpu, 1e-04 is allowed" in said


def test_a_voice_that_is_scored_otherwise_than_it_was_sampled_is_found(folder, monkeypatch, capsys):
    score = MoshiPolicy.score

    def wrong(self: MoshiPolicy, trajectory, full=False, codebooks=0):
        scores = score(self, trajectory, full, codebooks)
        if codebooks:
            scores.audio_logp = scores.audio_logp - 0.01
        return scores

    monkeypatch.setattr(MoshiPolicy, "score", wrong)
    assert not run_checkup(str(folder), console=make_console())
    assert "fix streaming and scoring" in " ".join(capsys.readouterr().out.split())
    policy: DuplexPolicy = tiny_moshi.policy()
    assert streaming_difference(policy)[0] < TOLERANCE < audio_difference(policy)[0]


def test_a_codec_that_makes_no_sound_is_named(folder):
    tensors = load_file(folder / MIMI)
    name = next(name for name in tensors if name.startswith("decoder.model.0."))
    save_file(tensors | {name: torch.full_like(tensors[name], 3e38)}, folder / MIMI)
    refused(folder, f"{folder}: its codec mimi: 24000 Hz", "makes NaN or infinite sound")


def test_weights_whose_scores_are_not_finite_are_one_line(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"text_linear.weight": torch.full_like(weights["text_linear.weight"], 3e38)}, path)
    with np.errstate(all="ignore"):
        refused(folder, f"{folder}: a text log-probability is not finite")

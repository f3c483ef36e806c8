"""The commands that made pocket, run small: compose, train, load what came out."""

import sys
from pathlib import Path

import numpy as np
import pytest

from align.codecs.train_pocket import describe, material
from align.codecs.train_pocket import train as train_codec
from align.policies.moshi.policy import MoshiPolicy
from align.trainers import pocket
from envs.pack import Pack


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pocket", *words])
    pocket.main()


def test_composing_and_training_make_a_policy_that_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, shards, out = tmp_path / "codec.safetensors", tmp_path / "shards", tmp_path / "policy"
    train_codec(describe(material(Pack.load("core"), 8)), card=pocket.POCKET.card, steps=2).save(codec)
    compose = ("compose", "--pack", "core", "--codec", str(codec), "--out", str(shards), "--frames", "30")
    run(monkeypatch, *compose, "--count", "32")
    train = ("train", "--shards", str(shards), "--codec", str(codec), "--out", str(out), "--threads", "1")
    run(monkeypatch, *train, "--listen-steps", "1", "--answer-steps", "1", "--talk-steps", "1")
    assert sorted(p.name for p in out.iterdir()) == [
        "codec.safetensors", "config.json", "model.safetensors", "tokenizer_spm.model",
    ]  # fmt: skip
    policy = MoshiPolicy.load(out)
    policy.reset(np.ones(2, bool), [1, 2])
    for _ in range(3):
        step = policy.step(np.zeros((2, policy.spec.frame), np.float32), np.ones(2, bool))
    assert step.audio.shape == (2, policy.spec.frame) and np.isfinite(step.audio).all()

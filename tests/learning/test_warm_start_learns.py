"""From a handful of recordings a chunk policy of random weights learns whom to answer, and with what words; and one of
the Moshi class to be as late as it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from align.policies.sampling import Sampling
from align.trainers import sft, sft_data
from align.trainers.sft_config import DataConfig, SftConfig
from envs.clock import CLOCK
from tests import tiny_moshi
from tests.dialogues import ANSWER, place, write_dialogues
from tests.unit.test_policy_chunk import tiny

FRAMES = 50
LEARNING = {
    "iterations": 120, "frames": FRAMES, "train_batch_size": 16, "per_device_train_batch_size": 16,
    "learning_rate": 5e-3, "weight_decay": 0.0, "eval_steps": 0, "save_steps": 120,
}  # fmt: skip


def recordings(folder):
    """Dialogues to learn from, and others to be measured on."""
    return DataConfig(
        path=str(write_dialogues(folder / "train", 8, 400)),
        dev=str(write_dialogues(folder / "dev", 2, 400, seed=1)),
    )


def test_a_chunk_policy_learns_to_answer_a_question_and_to_be_silent_otherwise(tmp_path):
    data = recordings(tmp_path)
    config = SftConfig(**LEARNING, first_codebook_weight=1.0)
    policy = tiny(Sampling(1.0, 1, 0.8, 1), context=64)
    sft.train(config, policy, data, tmp_path / "run", seed=0, say=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/control"] < 0.3 * lines[0]["loss/control"]
    # Of recordings that it has not learned from; an answer that is half over where an example begins cannot be known.
    assert lines[-1]["dev/silent_right"] > 0.9 and lines[-1]["dev/response_right"] > 0.6
    # And as a policy that lives: what it hears it has never heard, and nobody tells it what came before.
    rows = 16
    heard = np.zeros((rows, CLOCK.sample_of(FRAMES)), np.float32)
    for row in range(rows):
        place(heard[row], 8 + row // 2, 6, 0.2 if row % 2 else 0.02, np.random.default_rng([9, row]))
    policy.reset(np.ones(rows, bool), range(rows))
    said = [""] * rows
    for frame in range(FRAMES):
        step = policy.step(heard[:, CLOCK.sample_of(frame) : CLOCK.sample_of(frame + 1)])
        said = [before + now for before, now in zip(said, step.text, strict=True)]
    assert not any(said[::2]) and all(text.strip() for text in said[1::2]), said
    assert [text.split() for text in said[1::2]].count(list(ANSWER)) >= 2, said


def test_a_moshi_class_policy_learns_to_be_as_late_as_it_is_told(tmp_path):
    """Told one delay, it is surprised by words that come with another."""
    data = recordings(tmp_path)
    config = SftConfig(**LEARNING, audio_weight=0.0, max_delay=4)
    loss = {}
    for told in (0, 4):
        policy = tiny_moshi.policy(context=64)
        settled = replace(config, delay=told)
        sft.train(settled, policy, data, tmp_path / "run", resume=told > 0, say=lambda line: None)
        teaching = sft.teach(policy, replace(config, max_delay=0))
        dev = sft_data.prepare(teaching, data, data.dev, config, tmp_path / "run", lambda line: None)
        chosen = range(len(dev.starts))
        for late in (0, 4):
            codes, _ = dev.batch(teaching, chosen, [late] * len(chosen), torch.device("cpu"))
            with torch.no_grad():
                out = teaching(codes, torch.zeros(len(chosen), dtype=torch.long))
            loss[told, late] = float(out["sum/text"]) / teaching.counts(codes)["text"]
    assert loss[0, 0] < 0.7 * loss[0, 4] and loss[4, 4] < 0.7 * loss[4, 0], loss

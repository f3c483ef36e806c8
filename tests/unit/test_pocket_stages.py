"""The warm start: alignment of what is learned with what is heard, losses, and that both stages learn."""

import json

import numpy as np
import pytest
import torch

from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.streams import PAD
from align.trainers.pocket import (
    EMISSION_FRAMES,
    Examples,
    StagesConfig,
    audio_loss,
    compose,
    fit,
    load_examples,
    text_loss,
)
from envs.clock import CLOCK
from envs.conversations import Conversation
from envs.errors import UptakeError
from envs.event import Word

FRAMES = 12


class LoudnessCodec:
    """Code 1 in all codebooks where the frame sounds, else 0."""

    sample_rate, frame, codebooks, card = CLOCK.sample_rate, CLOCK.frame, 8, 4

    def init_state(self, batch: int) -> None:
        return None

    def encode(self, state: None, pcm: np.ndarray) -> np.ndarray:
        loud = (np.abs(pcm).max(axis=1) > 0.05).astype(np.int64)
        return np.repeat(loud[:, None], 8, axis=1)


class Letters:
    def encode(self, text: str) -> list[int]:
        return [4 + ord(c) - ord("a") for c in text]


def conversation(user_frame: int, agent_frame: int) -> Conversation:
    talk = Conversation(np.zeros(CLOCK.sample_of(FRAMES), np.float32), np.zeros(CLOCK.sample_of(FRAMES), np.float32))
    start = CLOCK.sample_of(user_frame)
    talk.hear(np.full(CLOCK.frame, 0.5, np.float32), [Word("a", 0, CLOCK.frame)], start)
    onset = CLOCK.sample_of(agent_frame)
    talk.agent[onset : onset + CLOCK.frame] = 0.5
    talk.agent_words.append(Word("b", onset, onset + CLOCK.frame))
    return talk


def test_columns_are_in_time_with_a_policy_that_streams() -> None:
    """A token sampled after hearing frame k sounds in frame k + EMISSION_FRAMES, and so it stands in the data."""
    got = compose([conversation(4, 6)], LoudnessCodec(), Letters(), np.random.default_rng(0))
    codes = got.codes[0]
    text = int((codes[0] == 5).nonzero()[0])
    agent = int(codes[1].nonzero()[0])
    user = int(codes[9].nonzero()[0])
    assert text == agent == 6 - EMISSION_FRAMES
    assert user == 4 - 1  # column t holds the frame that is heard after text t is sampled
    assert got.sounding[0].nonzero().flatten().tolist() == [6 - EMISSION_FRAMES]


def test_stage_one_writes_a_word_after_it_was_heard() -> None:
    got = compose([conversation(4, 6)], LoudnessCodec(), Letters(), np.random.default_rng(0))
    assert int((got.listen[0] == 4).nonzero()[0]) == 4 + 1 + 2


def test_the_first_words_after_a_silence_count_more() -> None:
    logits, text = torch.zeros(1, 16, 8), torch.full((1, 16), PAD)
    text[0, 4:14] = 5
    early, late = logits.clone(), logits.clone()
    early[0, 5, 5], late[0, 12, 5] = 9.0, 9.0
    gain = [float(text_loss(logits, text, 0.3, 4.0) - text_loss(x, text, 0.3, 4.0)) for x in (early, late)]
    assert gain[0] > 3 * gain[1] > 0


def test_padding_counts_less_in_the_text_loss() -> None:
    logits, text = torch.zeros(1, 2, 8), torch.tensor([[PAD, 5]])
    logits[0, 1, 5] = 9.0
    heavy, light = (float(text_loss(logits, text, w)) for w in (1.0, 0.1))
    assert heavy > light > 0


def test_what_is_masked_never_changes_the_audio_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, 8, 4, generator=generator), torch.randint(4, (5, 8), generator=generator)
    mask = torch.rand(5, 8, generator=generator) < 0.6
    garbage = logits.where(mask[..., None], torch.randn(5, 8, 4, generator=generator) * 50)
    nonsense = targets.where(mask, -1)
    assert torch.equal(audio_loss(logits, targets, mask, 2.0), audio_loss(garbage, nonsense, mask, 2.0))


@pytest.mark.parametrize("stage", ["listen", "talk"])
def test_a_stage_learns_what_it_is_shown(tmp_path, stage: str) -> None:
    torch.set_num_threads(1)
    config = MoshiConfig(
        dim=32, num_layers=2, num_heads=2, context=32, card=4, text_card=8, depformer_dim=16, depformer_num_layers=1,
        depformer_num_heads=2,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    talks = [conversation(k, k + 3) for k in rng.integers(1, 7, 64)]
    for split in ("train", "dev"):
        (tmp_path / split / stage).mkdir(parents=True)
        compose(talks, LoudnessCodec(), Letters(), rng).save(tmp_path / split / stage / "00.safetensors")
    assert isinstance(load_examples(tmp_path / "train" / stage), Examples)
    model = MoshiModel(config)
    steps = StagesConfig(
        listen_steps=250, talk_steps=250, batch=16, warmup=5, learning_rate=5e-3, depth_share=1.0, bf16=False
    )
    fit(model, tmp_path, steps, stage, tmp_path / "log.jsonl", tmp_path / "model.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["text"] < 0.35 * lines[0]["text"] and lines[-1]["dev_words"] > 0.9
    if stage == "talk":
        assert lines[-1]["audio"] < 0.5 * lines[0]["audio"]


def test_no_conversations_is_one_line(tmp_path) -> None:
    with pytest.raises(UptakeError, match="no composed conversations"):
        load_examples(tmp_path)


def test_the_gradient_of_each_loss_is_its_weights_times_what_is_too_likely() -> None:
    """d/dlogits of a weighted mean cross-entropy: weight / sum of weights x (softmax - one hot)."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 9, 8, generator=generator, requires_grad=True)
    text = torch.tensor([[PAD] * 5 + [5, 6, PAD, 7], [5, PAD, PAD, PAD, PAD, PAD, 6, 5, 4]])
    weight = torch.where(text == PAD, 0.3, 1.0)
    weight[0, 5], weight[0, 6], weight[0, 8], weight[1, 0], weight[1, 6:] = 4.0, 4.0, 4.0, 4.0, 4.0  # after a silence
    text_loss(logits, text, 0.3, 4.0).backward()
    wrong = logits.detach().softmax(-1) - torch.nn.functional.one_hot(text, 8)
    assert torch.allclose(logits.grad, wrong * (weight / weight.sum())[..., None], atol=1e-6)
    codes = torch.randn(5, 8, 4, generator=generator, requires_grad=True)
    targets, mask = torch.randint(4, (5, 8), generator=generator), torch.rand(5, 8, generator=generator) < 0.6
    audio_loss(codes, targets, mask, 2.0).backward()
    weight = mask * torch.tensor([2.0] + [1.0] * 7)
    wrong = codes.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 4)
    assert torch.allclose(codes.grad, wrong * (weight / weight.sum())[..., None], atol=1e-6)

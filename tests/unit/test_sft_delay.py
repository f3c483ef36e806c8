"""Random delays: what is late, what the model is told, and that no delay is no difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.policies.moshi.delay import DelayEmbedding, settle
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.teaching import MoshiTeaching
from align.streams import PAD, align, text_stream
from align.trainers import sft_data
from align.trainers.sft_config import SftConfig
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word
from tests import tiny_moshi


def teaching(**changes: object) -> MoshiTeaching:
    return MoshiTeaching(tiny_moshi.policy(), SftConfig(**({"frames": 16, "max_delay": 6} | changes)))  # type: ignore[arg-type]


def trained(dim: int = 32) -> DelayEmbedding:
    embedding = DelayEmbedding(dim)
    torch.nn.init.normal_(embedding.linear.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return embedding


def codes(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, tiny_moshi.CARD, (3, 17, 12)))


def test_columns_are_those_of_the_streams_that_pocket_learned_from() -> None:
    pupil = teaching()
    rng = np.random.default_rng(0)
    user, agent = rng.integers(0, 20, (2, 8, 30))
    words = [Word("quick fox", CLOCK.sample_of(9) + 100, CLOCK.sample_of(14))]
    got = pupil.columns(words, user, agent)
    text = text_stream(words, tiny_moshi.tokenizer(), 30)
    assert np.array_equal(got, align(text[None, 2:], agent[None, :, 2:], user[None, :, :-2])[0])
    # A word that is heard from frame 9 on is written two calls earlier; column t holds the user's frame t + 1.
    assert got[0, 7] == tiny_moshi.tokenizer().encode("quick fox")[0] and np.array_equal(got[9:, 7], user[:, 8])


def test_without_a_delay_an_example_is_a_piece_of_the_columns() -> None:
    columns = np.random.default_rng(0).integers(0, 20, (17, 50)).astype(np.int32)
    assert np.array_equal(teaching().window(columns, 16, 16, 0), columns[:, 16:32])


@pytest.mark.parametrize("start", [0, 4, 16, 40])
def test_with_a_delay_only_the_agent_is_late_and_silent_before_the_recording(start: int) -> None:
    pupil, delay = teaching(), 5
    columns = np.random.default_rng(0).integers(4, 20, (17, 50)).astype(np.int32)
    got, length = pupil.window(columns, start, 16, delay), min(16, 50 - start)
    assert np.array_equal(got[9:, :length], columns[9:, start : start + length])
    for t in range(length):
        if start + t < delay:
            assert got[0, t] == PAD and np.array_equal(got[1:9, t], pupil._silence)
        else:
            assert np.array_equal(got[:9, t], columns[:9, start + t - delay])
    assert (got[:, length:] == -1).all()


def test_a_model_that_is_told_no_delay_is_told_nothing() -> None:
    model = tiny_moshi.policy().model
    embedding = trained()
    told = embedding(torch.zeros(3, dtype=torch.long))
    assert torch.equal(told, torch.zeros_like(told))
    plain, zero = model.text_forward(codes()), model.text_forward(codes(), told)
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settle(model, embedding, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_before_training_every_delay_is_told_as_none_and_then_each_as_its_own() -> None:
    fresh = DelayEmbedding(32)(torch.arange(7))
    assert torch.equal(fresh, torch.zeros_like(fresh))
    told = trained()(torch.arange(7))
    distances = torch.cdist(told, told) + torch.eye(7)
    assert distances.min() > 1e-3


def test_a_settled_model_is_the_one_that_is_told_in_every_frame(tmp_path) -> None:  # type: ignore[no-untyped-def]
    embedding, delay = trained(), 4
    model = MoshiModel(tiny_moshi.config(), seed=5)
    expected = model.text_forward(codes(), embedding(torch.full((3,), delay)))
    policy = MoshiPolicy(model, tiny_moshi.BlurCodec(), tiny_moshi.tokenizer())
    settle(model, embedding, delay)
    policy.export(tmp_path)
    again = MoshiPolicy.load(tmp_path, codec=tiny_moshi.BlurCodec()).model.text_forward(codes())
    for a, b in zip(expected, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_delays_are_uniform_up_to_the_longest_and_follow_from_seed_and_iteration() -> None:
    drawn = [sft_data.delays(iteration, 50, 3, 4) for iteration in range(40)]
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts[5] == 0 and (np.abs(counts[:5] / 2000 - 0.2) < 0.04).all()
    assert drawn[7] == sft_data.delays(7, 50, 3, 4) != sft_data.delays(7, 50, 4, 4)
    assert set(sft_data.delays(0, 50, 3, 0)) == {0}


def test_a_delay_that_was_never_trained_is_refused() -> None:
    with pytest.raises(UptakeError, match=r"sft\.delay = 3: .*sft\.max_delay = 2"):
        SftConfig(max_delay=2, delay=3).check()


def test_each_example_comes_once_before_any_comes_again() -> None:
    columns = [np.zeros((17, frames), np.int32) for frames in (64, 40, 16, 90, 10)]
    examples = sft_data.Examples.of(columns, list("abcde"), 32)
    # Of 40 frames the last 8 are no example, of 90 the last 26 are one, and a recording of 10 is one.
    assert examples.starts == [(0, 0), (0, 32), (1, 0), (2, 0), (3, 0), (3, 32), (3, 64), (4, 0)]
    drawn = [one for iteration in range(4) for one in examples.drawn(iteration, 6, seed=0)]
    assert [sorted(drawn[at : at + 8]) for at in (0, 8, 16)] == [list(range(8))] * 3
    assert drawn[:8] != drawn[8:16]

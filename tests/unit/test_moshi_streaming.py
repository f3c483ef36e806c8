"""Sampling and stepping: what is drawn, when, and where it is recorded."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.policies.checks import noise_user, play
from align.policies.sampling import SAMPLE, Sampling, draw, truncate, truncated_log_probs, uniforms
from envs.errors import UptakeError
from tests.random_policy import random_policy
from tests.tiny_moshi import CARD, policy

GREEDY = Sampling(text_top_k=1, audio_top_k=1)
ALL = np.ones(3, bool)


def test_uniform_numbers_are_uniform_and_uncorrelated():
    numbers = uniforms(np.arange(50, dtype=np.uint64), np.full(50, 7), 400).ravel().astype(np.float64)
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom, p < 1e-3
    grid = np.stack([uniforms(np.arange(200, dtype=np.uint64), np.full(200, step), 3) for step in range(50)])
    for shifted in (grid[1:, :, :], grid[:, 1:, :], grid[:, :, 1:]):
        same = grid[: shifted.shape[0], : shifted.shape[1], : shifted.shape[2]]
        assert abs(np.corrcoef(same.ravel(), shifted.ravel())[0, 1]) < 0.03


def test_a_rows_uniform_numbers_are_its_own():
    seeds, steps = np.array([3, 9, 2**64 - 1], np.uint64), np.array([0, 5, 10**9])
    together = uniforms(seeds, steps, 9)
    for row in range(3):
        assert np.array_equal(uniforms(seeds[row : row + 1], steps[row : row + 1], 9)[0], together[row])


def test_tokens_are_drawn_with_their_probability():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]).expand(20000, -1)
    uniform = torch.from_numpy(uniforms(np.arange(20000, dtype=np.uint64), np.zeros(20000, np.int64), 1)[:, 0])
    shares = torch.bincount(draw(probs, uniform), minlength=5) / 20000
    torch.testing.assert_close(shares, probs[0], rtol=0, atol=0.015)
    assert shares[1] == shares[4] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-40, 40, width=32), min_size=3, max_size=30),
    st.integers(0, 2**23 - 1),
    st.integers(0, 5),
    st.sampled_from([0.1, 0.7, 3.0]),
)
def test_a_token_outside_the_top_k_is_never_drawn(values, number, top_k, temperature):
    logits = torch.tensor([values])
    truncated = truncate(logits, temperature, top_k)
    for uniform in (number * 2.0**-23, 0.0, 1 - 2.0**-23):
        token = draw(truncated.softmax(-1), torch.tensor([uniform]))
        assert 0 <= int(token) < len(values)
        assert truncated[0, token] > -torch.inf


def test_the_taken_token_stays_inside_the_top_k_whatever_its_rank():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert truncated_log_probs(logits, 1.0, 2)[0, 3] == -torch.inf
    kept = truncated_log_probs(logits, 1.0, 2, torch.tensor([3]))[0]
    torch.testing.assert_close(kept[[0, 1, 3]], torch.log_softmax(torch.tensor([3.0, 2.0, 0.0]), 0))


@pytest.mark.parametrize("change", [{"text_temperature": 0.0}, {"audio_temperature": -1.0}, {"text_top_k": -1}])
def test_a_sampling_that_cannot_work_is_refused_by_name(change):
    with pytest.raises(UptakeError, match=next(iter(change))):
        Sampling(**change)


@pytest.mark.parametrize("variant", [{}, {"depformer_weights_per_step": False}, {"delays": (0,) * 17}])
def test_greedy_streaming_takes_what_teacher_forcing_ranks_first(variant):
    p = policy(GREEDY, **variant)
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 40))  # more than two windows of context
    codes = p.trajectory().codes
    with torch.no_grad():
        out = p.model(codes)
    assert torch.equal(out.text_logits.argmax(-1), codes[:, 0])
    lag = p.spec.emission_lag
    assert out.audio_mask[:, :, : 40 - lag].all()
    assert torch.equal(out.audio_logits.argmax(-1)[:, :, : 40 - lag], codes[:, 1:9, : 40 - lag])


@torch.no_grad()
def test_greedy_streaming_equals_the_published_generator():
    os.environ["NO_TORCH_COMPILE"] = "1"
    lm = pytest.importorskip("moshi.models.lm")
    p = policy(GREEDY)
    theirs = lm.LMModel(**p.model.config.to_dict()).eval()
    theirs.load_state_dict(p.model.state_dict())
    generator = lm.LMGen(theirs, use_sampling=False, support_out_of_sync=True)
    user = np.random.default_rng(0).integers(0, CARD, (30, 3, 8))
    p.reset(ALL, [1, 2, 3])
    p.codec.encode = lambda state, pcm: heard  # the user's codes as they are
    spoken = []
    with generator.streaming(3):
        for heard in user:  # read by the codec above
            p.step(np.arange(3, dtype=np.float32)[:, None].repeat(1920, axis=1))  # rows that hear the same are one
            spoken.append(generator.step(torch.from_numpy(heard)[:, :, None])[:, :, 0])
    codes = p.trajectory().codes
    assert torch.equal(torch.stack(spoken[1:], dim=2), codes[:, :9, :29])
    assert torch.equal(codes[:, 9:, :29], torch.from_numpy(user[1:]).permute(1, 2, 0))


def test_the_first_call_is_silent_and_each_later_one_speaks_the_frame_before():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    steps = play(p, noise_user(p, 3, 6))
    assert not steps[0].audio.any()
    codes, state = p.trajectory().codes, p.codec.init_state(3)
    for n in range(1, 6):
        assert np.array_equal(steps[n].audio, p.codec.decode(state, codes[:, 1:9, n - 1].numpy()))


def test_the_last_column_holds_only_what_has_happened():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 5))
    codes = p.trajectory().codes
    assert codes.shape == (3, 17, 5)
    assert (codes[:, :2] >= 0).all() and (codes[:, :, :4] >= 0).all()
    assert (codes[:, 2:, 4] == -1).all()


def test_rows_of_different_age_are_padded_with_invalid_frames():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 7))
    p.reset([1], [0, 5, 0])
    play(p, noise_user(p, 3, 3))
    t = p.trajectory()
    assert t.valid.sum(dim=1).tolist() == [10, 3, 10]
    assert (t.codes[1, :, 3:] == -1).all() and not t.sampler_logp[1, 3:].any()
    with torch.no_grad():
        torch.testing.assert_close(p.score(t).logp, t.sampler_logp, rtol=0, atol=1e-4)


def test_a_prompt_is_spoken_as_written_and_is_no_action():
    p = policy()
    prompt = np.full((9, 4), SAMPLE)
    prompt[0] = [3, 3, 20, 21]
    prompt[1:, :2] = np.arange(16).reshape(8, 2)
    user = noise_user(p, 3, 10)
    p.reset(ALL, [1, 2, 3], prompts=[None, prompt, None])
    steps = play(p, user)
    t = p.trajectory()
    assert t.codes[1, 0, :4].tolist() == prompt[0].tolist()
    assert np.array_equal(t.codes[1, 1:9, :2], prompt[1:, :2])
    assert t.valid.sum(dim=1).tolist() == [10, 6, 10] and not t.valid[1, :4].any()
    assert not t.sampler_logp[1, :4].any() and np.isfinite([step.text_logp for step in steps]).all()
    p.reset(ALL, [1, 2, 3])
    play(p, user)
    free = p.trajectory()
    assert torch.equal(free.codes[[0, 2]], t.codes[[0, 2]]) and not torch.equal(free.codes[1], t.codes[1])


@pytest.mark.parametrize("prompt", [np.zeros((8, 2)), np.zeros(9), np.full((9, 1), -1), np.full((9, 1), CARD)])
def test_a_prompt_of_the_wrong_shape_or_vocabulary_is_refused_before_anything_changes(prompt):
    p = policy()
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 2))
    before = p.trajectory().codes
    with pytest.raises(ValueError, match="prompt"):
        p.reset(ALL, [1, 2, 3], prompts=[None, None, prompt])
    assert torch.equal(p.trajectory().codes, before)


def test_text_is_the_pieces_of_the_sampled_tokens_without_the_silent_ones():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    steps = play(p, noise_user(p, 3, 30))
    for row in range(3):
        spoken = [int(step.tokens[row, 0]) for step in steps if step.tokens[row, 0] > 3]
        assert "".join(step.text[row] for step in steps) == "".join(
            p.tokenizer.id_to_piece(token).replace("\u2581", " ") for token in spoken
        )


@pytest.mark.parametrize("made", [policy, random_policy], ids=["toy codec", "mimi"])
def test_rollouts_in_inference_mode_can_be_trained_on_and_go_on_outside_of_it(made):
    p = made()
    user = noise_user(p, 3, 20)
    with torch.inference_mode():
        p.reset([0, 1, 2], [1, 2, 3])
        play(p, user[:10])
        p.reset([1], [0, 5, 0])
        t = p.trajectory()
    p.score(t).logp.sum().backward()
    play(p, user[10:])
    p.fork(0, [1])
    p.reset([2], [0, 0, 3])
    play(p, user[:2])


def test_another_sampling_counts_from_the_next_reset_on():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    user = noise_user(p, 3, 10)
    play(p, user[:5])
    before, p.sampling = p.sampling, Sampling(text_temperature=2.0, text_top_k=5, audio_temperature=1.5)
    play(p, user[5:])
    t = p.trajectory()
    assert (t.temperature, t.top_k) == (before.text_temperature, before.text_top_k)
    assert t.audio is not None and t.audio.temperature == before.audio_temperature
    torch.testing.assert_close(p.score(t).logp, t.sampler_logp, rtol=0, atol=1e-4)
    p.reset(ALL, [1, 2, 3])
    play(p, user)
    t = p.trajectory()
    assert (t.temperature, t.top_k) == (2.0, 5)
    torch.testing.assert_close(p.score(t).logp, t.sampler_logp, rtol=0, atol=1e-4)


@pytest.mark.parametrize("codebooks", [-1, 9])
def test_scores_of_codebooks_that_are_not_there_are_refused(codebooks):
    p = policy()
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 3))
    with pytest.raises(ValueError, match=f"codebooks = {codebooks}: the agent has 8"):
        p.score(p.trajectory(), codebooks=codebooks)


def test_a_microphone_with_nan_is_refused_by_row_unless_the_row_sits_out():
    p = policy()
    p.reset(ALL, [1, 2, 3])
    mic = np.zeros((3, 1920), np.float32)
    mic[1, 7] = np.nan
    with pytest.raises(UptakeError, match="row 1"):
        p.step(mic, ALL)
    p.step(mic, np.array([True, False, True]))
    assert p.trajectory().valid.sum(dim=1).tolist() == [1, 0, 1]


def test_misuse_is_told_by_what_was_given():
    p = policy()
    with pytest.raises(ValueError, match="reset opens the rows"):
        p.step(np.zeros((3, 1920), np.float32), ALL)
    p.reset(ALL, [1, 2, 3])
    with pytest.raises(ValueError, match="1 of 2 rows, but 3 are open"):
        p.reset([0], [1, 2])
    with pytest.raises(ValueError, match=r"\[3\] are not all in 0..2"):
        p.fork(0, [3])
    with pytest.raises(ValueError, match="mask of shape"):
        p.reset(np.ones(2, bool), [1, 2, 3])


def test_a_model_that_changed_its_precision_streams_on_with_the_same_number_of_rows():
    p, changed = policy(sampling=GREEDY), policy(sampling=GREEDY)
    changed.model.to(torch.bfloat16)
    p.reset(ALL, [1, 2, 3])
    p.step(np.zeros((3, 1920), np.float32), ALL)
    p.model.to(torch.bfloat16)
    for one in (p, changed):
        one.reset(ALL, [1, 2, 3])
    for frame in range(4):
        mic = np.full((3, 1920), 0.01 * frame, np.float32)
        ours, theirs = p.step(mic, ALL), changed.step(mic, ALL)
        assert np.array_equal(ours.tokens, theirs.tokens)


def test_in_bf16_what_was_sampled_is_scored_alike_and_the_top_k_are_k(monkeypatch):
    """Streaming and scoring round the hidden state apart; their heads do not add to it."""
    wide: list[int] = []

    def seen(logits, temperature, top_k, keep=None):
        assert logits.dtype == torch.float32
        out = truncate(logits, temperature, top_k, keep)
        wide.extend((out > -torch.inf).sum(-1).flatten().tolist())
        return out

    monkeypatch.setattr("align.policies.moshi.frame.truncate", seen)
    p = policy(sampling=Sampling(text_top_k=12, audio_top_k=12))
    p.model.to(torch.bfloat16)
    p.reset(ALL, [1, 2, 3])
    play(p, noise_user(p, 3, 40))
    assert set(wide) == {12}
    trajectory = p.trajectory()
    with torch.no_grad():
        scores = p.score(trajectory, codebooks=8)
    assert scores.logp.dtype == torch.float32
    assert (scores.logp - trajectory.sampler_logp)[trajectory.valid].abs().mean() < 5e-3

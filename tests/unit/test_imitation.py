"""Supervised losses: against values worked out by hand, finite differences, and what must not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from align.imitation import codebook_weights, text_weights, weighted_nll
from align.policies.chunk.teaching import ChunkTeaching
from align.policies.moshi.teaching import MoshiTeaching
from align.trainers.sft_config import SftConfig
from tests import tiny_moshi
from tests.unit.test_policy_chunk import tiny

PAD, EPAD = 3, 0


def test_a_weighted_sum_of_cross_entropies_is_what_is_worked_out_by_hand() -> None:
    # Even odds over 4, then odds of e to 1 for the first of two that count among 4.
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]])
    loss = weighted_nll(logits, torch.tensor([[2, 0]]), torch.tensor([[0.5, 2.0]]))
    assert float(loss) == pytest.approx(0.5 * math.log(4) + 2.0 * (math.log(math.e + 3) - 1), rel=1e-6)


def test_its_gradient_is_that_of_finite_differences() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, 3], [4, 4, -1, 0]])
    weights = torch.tensor([[1.0, 0.5, 0.0, 100.0], [1.0, 0.3, 0.0, 1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: weighted_nll(x, targets, weights), logits)


def test_padding_weighs_what_it_is_told_and_both_kinds_of_it_alike() -> None:
    text = torch.tensor([[PAD, EPAD, 7, 9, -1]])
    assert text_weights(text, (PAD, EPAD), 0.5).tolist() == [[0.5, 0.5, 1.0, 1.0, 0.0]]
    # The loss of a PAD to that of an EPAD, where both are as likely, and of either to a word.
    logits = torch.zeros(1, 5, 12)
    sums = [
        float(weighted_nll(logits, text, text_weights(text, (PAD, EPAD), 0.3) * (torch.arange(5) == place)))
        for place in range(4)
    ]
    assert sums[0] == sums[1] == pytest.approx(0.3 * sums[2]) and sums[2] == sums[3]


def test_the_first_codebook_weighs_a_hundred_others() -> None:
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert codebook_weights(mask, 100.0).tolist() == [[100.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_what_has_no_weight_changes_neither_loss_nor_gradient(garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, generator=generator)
    targets = torch.randint(5, (2, 6), generator=generator)
    weights = torch.tensor([[1.0, 0.0, 0.5, 0.0, 1.0, 0.0]]).expand(2, 6)
    results = []
    for dirty in (False, True):
        x, y = logits.clone(), targets.clone()
        if dirty:
            x[weights == 0], y[weights == 0] = garbage, -1
        x.requires_grad_()
        loss = weighted_nll(x, y, weights)
        loss.backward()
        results.append((loss.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


# -- whole policies ----------------------------------------------------------------------------------------------------


def moshi(**changes: object) -> tuple[MoshiTeaching, Tensor]:
    teaching = MoshiTeaching(tiny_moshi.policy(), SftConfig(**({"frames": 12} | changes)))  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.integers(0, tiny_moshi.CARD, (2, 17, 12)))
    codes[:, 0, ::3] = PAD
    codes[1, :, 9:] = -1  # a shorter one
    return teaching, codes


def chunk(**changes: object) -> tuple[ChunkTeaching, Tensor]:
    policy = tiny()
    c = policy.model.config
    teaching = ChunkTeaching(policy, SftConfig(**({"frames": 15} | changes)))  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.integers(0, tiny_moshi.CARD, (2, 17, 15)))
    codes[:, :9] = -1
    codes[0, 0, 4::5] = torch.tensor([c.silent, c.response, c.silent])
    codes[0, 0, 10:14] = torch.tensor([PAD, EPAD, 7, 8])
    codes[0, 1:9, 9:14] = 5
    codes[1, 0, 4], codes[1, 0, 5], codes[1, 0, 6], codes[1, 1:9, 4:6] = c.response, 9, c.end, 2
    codes[1, :, 9:] = -1
    return teaching, codes


def terms(teaching: MoshiTeaching | ChunkTeaching, codes: Tensor) -> dict[str, Tensor]:
    out = teaching(codes, torch.zeros(len(codes), dtype=torch.long))
    counts = teaching.counts(codes)
    return {term: out[f"sum/{term}"] / counts[term] for term in teaching.weights if f"sum/{term}" in out}


def test_the_moshi_losses_are_weighted_means_token_by_token() -> None:
    teaching, codes = moshi(first_codebook_weight=100.0, text_padding_weight=0.5)
    hidden, logits = (x.detach() for x in teaching.model.text_forward(codes))
    with torch.no_grad():
        audio_logits, valid = teaching.model.depth_forward(hidden, codes)
    total = {"text": [0.0, 0.0], "audio": [0.0, 0.0]}
    for b in range(2):
        for t in range(12):
            text = int(codes[b, 0, t])
            if text >= 0:
                weight = 0.5 if text in (PAD, EPAD) else 1.0
                total["text"][0] -= weight * float(logits[b, t].log_softmax(-1)[text])
                total["text"][1] += weight
            for k in range(8):
                if valid[b, k, t]:
                    weight = 100.0 if k == 0 else 1.0
                    total["audio"][0] -= weight * float(audio_logits[b, k, t].log_softmax(-1)[codes[b, 1 + k, t]])
                    total["audio"][1] += weight
    got = terms(teaching, codes)
    counts = teaching.counts(codes)
    for term, (value, weight) in total.items():
        assert counts[term] == pytest.approx(weight, rel=1e-9)
        assert float(got[term].detach()) == pytest.approx(value / weight, rel=1e-5)


def test_the_dual_loss_is_a_mean_over_text_and_a_mean_over_decisions_of_what_is_legal() -> None:
    teaching, codes = chunk(text_padding_weight=0.5)
    c = teaching.model.config
    logits = teaching.model.decode(codes)[1].detach()
    language, control = [0.0, 0.0], [0.0, 0.0]
    for b in range(2):
        for t in range(15):
            token = int(codes[b, 0, t])
            if token < 0:
                continue
            decision = [c.silent, c.response]
            legal = decision if t % 5 == 4 else [v for v in range(c.vocab) if v not in decision]
            loss = -float(logits[b, t, legal].log_softmax(-1)[legal.index(token)])
            kind, weight = (control, 1.0) if t % 5 == 4 else (language, 0.5 if token in (PAD, EPAD) else 1.0)
            kind[0] += weight * loss
            kind[1] += weight
    got = terms(teaching, codes)
    assert control[1] == 4 and language[1] == 5
    assert float(got["text"].detach()) == pytest.approx(language[0] / language[1], rel=1e-5)
    assert float(got["control"].detach()) == pytest.approx(control[0] / control[1], rel=1e-5)
    assert teaching.weights == {"text": 1.0, "control": 1.0, "audio": 1.0}
    assert chunk(control_weight=0.25)[0].weights["control"] == 0.25


@pytest.mark.parametrize("make", [moshi, chunk])
def test_gradients_of_the_whole_loss_are_its_finite_differences(make: object) -> None:
    torch.manual_seed(0)
    teaching, codes = make()  # type: ignore[operator]
    teaching = teaching.double()

    def loss() -> Tensor:
        # norms and rotations work in float32: differences are taken at their precision
        return torch.stack([teaching.weights[term] * value for term, value in terms(teaching, codes).items()]).sum()

    loss().backward()
    names = ["text_linear.weight", "text_emb.weight"]
    names += (
        ["linears.0.weight", "depformer_in.0.weight"] if make is moshi else ["talker.heads.0.weight", "ear.0.weight"]
    )
    parameters = dict(teaching.model.named_parameters())
    for name in names:
        weight = parameters[name]
        direction = torch.randn_like(weight)
        expected = float((weight.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(direction, alpha=sign * 1e-3)
                values.append(float(loss()))
                weight.sub_(direction, alpha=sign * 1e-3)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(expected, rel=2e-2, abs=2e-3), name


def test_the_voice_is_left_alone_without_a_weight() -> None:
    for make in (moshi, chunk):
        teaching, codes = make(audio_weight=0.0)
        assert "audio" not in terms(teaching, codes)

"""The model's mathematics: causality, windows, delays, masks, and parity with the published implementation."""

from __future__ import annotations

import os

import pytest
import torch

from align.policies.moshi.model import ZERO, Head, MoshiModel, RMSNorm
from tests.tiny_moshi import CARD, TEXT_CARD, config

VARIANTS = [
    {},
    {"context": 5},
    {"depformer_weights_per_step": False},
    {"depformer_multi_linear": False},
    {"depformer_weights_per_step_schedule": (0, 1, 2, 2, 3, 3, 3, 3)},
    {"hidden_scale": 4.0, "depformer_dim_feedforward": 40},
    {"delays": (0,) * 17},
]


def codes(batch: int = 2, frames: int = 12, seed: int = 0) -> torch.Tensor:
    """(B, 17, T) random codes."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(TEXT_CARD, (batch, 1, frames), generator=generator)
    return torch.cat((text, torch.randint(CARD, (batch, 16, frames), generator=generator)), dim=1)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(v) or "published")
@torch.no_grad()
def test_logits_equal_those_of_the_published_implementation(variant):
    os.environ["NO_TORCH_COMPILE"] = "1"
    lm = pytest.importorskip("moshi.models.lm")
    model = MoshiModel(config(**variant), seed=3)
    values = model.config.to_dict()
    theirs = lm.LMModel(**values)
    theirs.load_state_dict(model.state_dict())
    batch = codes(3, 20)
    batch[1, :, 15:] = ZERO
    batch[0, 0, 3] = batch[0, 5, 7] = ZERO
    expected = theirs(batch)
    ours = model(batch)
    torch.testing.assert_close(ours.text_logits, expected.text_logits[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(ours.audio_mask, expected.mask)
    torch.testing.assert_close(ours.audio_logits[ours.audio_mask], expected.logits[expected.mask], rtol=0, atol=1e-5)


@torch.no_grad()
def test_text_logits_see_only_the_frames_before_theirs():
    model, batch = MoshiModel(config()), codes()
    _, before = model.text_forward(batch)
    changed = batch.clone()
    changed[:, :, 6] = (changed[:, :, 6] + 1) % CARD
    _, after = model.text_forward(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


@torch.no_grad()
def test_attention_looks_back_exactly_context_frames_a_layer():
    model, batch = MoshiModel(config(num_layers=1, context=4, delays=(0,) * 17)), codes(frames=14)
    changed = batch.clone()
    changed[:, :, 2] = (changed[:, :, 2] + 1) % CARD  # enters the network at step 3
    moved = (model.text_forward(batch)[1] - model.text_forward(changed)[1]).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6]


@torch.no_grad()
def test_a_codebook_is_predicted_from_text_and_the_codebooks_before_it():
    model, batch = MoshiModel(config()), codes()
    hidden, _ = model.text_forward(batch)
    before, mask = model.depth_forward(hidden, batch)
    changed = batch.clone()
    changed[:, 1 + 4, 6] = (changed[:, 1 + 4, 6] + 1) % CARD  # agent codebook 4, delayed like its followers
    after, _ = model.depth_forward(hidden, changed)
    moved = ((before - after).abs().amax(dim=(0, 3)) > 1e-6) & mask[0]
    assert moved.nonzero().tolist() == [[5, 6], [6, 6], [7, 6]]


@torch.no_grad()
def test_depth_scores_of_a_subset_are_those_of_the_whole():
    model, batch = MoshiModel(config()), codes(3, 10)
    hidden, _ = model.text_forward(batch)
    frames = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.4
    whole, some = model.depth_scores(hidden, batch), model.depth_scores(hidden, batch, frames)
    torch.testing.assert_close(some.logits, whole.logits[frames.flatten()])
    assert torch.equal(some.targets, whole.targets[frames.flatten()])
    assert torch.equal(some.mask, whole.mask[frames.flatten()])
    dense, mask = model.depth_forward(hidden, batch)
    thin, thin_mask = model.depth_forward(hidden, batch, frames)
    assert thin_mask.sum() == some.mask.sum() and not (thin_mask & ~mask).any()
    torch.testing.assert_close(thin[thin_mask], dense[thin_mask])
    assert thin[~thin_mask].isnan().all()


@torch.no_grad()
def test_depth_targets_are_the_codes_that_step_predicts():
    model, batch = MoshiModel(config()), codes(1, 6)
    hidden, _ = model.text_forward(batch)
    scores = model.depth_scores(hidden, batch)
    assert not scores.mask[0, 1:].any() and scores.mask[0, 0]  # delayed codebooks have no target in the first step
    assert torch.equal(scores.targets[:, 0], batch[0, 1])
    assert torch.equal(scores.targets[1:, 1:], batch[0, 2:9, :-1].T)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it():
    model, batch = MoshiModel(config()), codes(frames=8)
    padded = torch.cat((batch, torch.full((2, 17, 5), ZERO)), dim=2)
    torch.testing.assert_close(model.text_forward(padded)[1][:, :8], model.text_forward(batch)[1], rtol=0, atol=1e-5)
    mask = model(padded).audio_mask
    assert not mask[:, :, 8:].any() and mask[:, :, :7].all()


def test_a_text_loss_leaves_the_depth_transformer_without_gradient():
    model = MoshiModel(config())
    model.text_forward(codes())[1].sum().backward()
    without = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {"depformer", "depformer_in", "depformer_emb", "depformer_text_emb", "linears"}


def test_initial_weights_follow_the_seed_and_leave_the_global_rng_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (MoshiModel(config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text_linear.weight"], other["text_linear.weight"])


def test_a_norm_in_bf16_is_the_norm_in_fp32_rounded_once():
    norm = RMSNorm(64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.alpha.copy_(1 + torch.rand(norm.alpha.shape, generator=generator))
    norm.to(torch.bfloat16)
    x = (3 * torch.randn(5, 7, 64, generator=generator)).to(torch.bfloat16)
    exact = torch.nn.functional.rms_norm(x.float(), (64,), norm.alpha.view(-1).float(), eps=1e-8)
    assert torch.equal(norm(x), exact.to(torch.bfloat16))


@torch.no_grad()
def test_logits_of_a_bf16_model_are_those_of_its_last_state_in_fp32():
    model = MoshiModel(config()).to(torch.bfloat16)
    hidden, text = model.text_forward(codes())
    assert hidden.dtype == torch.bfloat16 and text.dtype == torch.float32
    torch.testing.assert_close(text, hidden.float() @ model.text_linear.weight.float().T, rtol=0, atol=1e-6)
    inputs: list[torch.Tensor] = []
    model.linears[3].register_forward_hook(lambda module, given, out: inputs.append(given[0]))
    audio = model.depth_scores(hidden, codes()).logits
    assert audio.dtype == torch.float32 and model(codes()).audio_logits.dtype == torch.float32
    exact = inputs[0].float() @ model.linears[3].weight.float().T
    torch.testing.assert_close(audio[:, 3], exact, rtol=0, atol=1e-6)
    assert not torch.equal(exact, exact.bfloat16().float()), "rounded, they would be others"


def test_the_way_back_through_a_bf16_head_is_that_of_a_bf16_layer():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 5, 16, generator=generator).bfloat16()
    weight = torch.randn(40, 16, generator=generator).bfloat16()
    up = torch.randn(2, 5, 40, generator=generator).bfloat16()
    grads = []
    for kind in (Head, torch.nn.Linear):
        layer, x = kind(16, 40, bias=False).to(torch.bfloat16), given.clone().requires_grad_()
        layer.weight.data.copy_(weight)
        layer(x).backward(up.to(layer(x).dtype))
        grads.append((x.grad, layer.weight.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("trained", [True, False])
def test_a_head_passes_gradients_to_what_wants_them(trained):
    head = Head(4, 3, bias=False).to(torch.bfloat16).requires_grad_(trained)
    x = torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=not trained)
    head(x).sum().backward()
    assert (head.weight.grad is not None) == trained and (x.grad is not None) != trained


def test_codes_with_a_wrong_number_of_streams_are_refused():
    with pytest.raises(ValueError, match="16 streams, the model has 17"):
        MoshiModel(config()).text_forward(codes()[:, :16])

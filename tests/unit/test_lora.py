"""LoRA adapters in a Moshi-class model: merged, they do what they did beside it; unmerged, nothing has happened."""

from __future__ import annotations

import copy

import pytest
import torch

from align.lora import adapters_off, add_lora, merge_lora, unmerge_lora
from tests import tiny_moshi

TARGETS = r"transformer\.layers\.1\..*"


def adapted(dtype=torch.float32):
    """A small model with adapters that do something, and codes (2, 17, 12)."""
    generator = torch.Generator().manual_seed(0)
    model = tiny_moshi.policy().model.to(dtype)
    add_lora(model, TARGETS, r=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model, torch.randint(0, tiny_moshi.CARD, (2, 17, 12), generator=generator)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def logits(model, codes):
    return model.text_forward(codes)[1].float()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)], ids=str)
def test_merged_it_computes_what_the_adapters_did(dtype, rounding):
    model, codes = adapted(dtype)
    beside = logits(model, codes)
    with adapters_off(model):
        without = logits(model, codes)
    merge_lora(model)
    assert (beside - without).abs().max() > 0.2, "the adapters do nothing here"
    assert (logits(model, codes) - beside).abs().max() < rounding
    assert model.state_dict().keys() == tiny_moshi.policy().model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unmerged_it_has_every_bit_of_its_weights_and_adapters(dtype):
    model, codes = adapted(dtype)
    before, said = weights(model), logits(model, codes)
    for _ in range(3):
        unmerge_lora(model, merge_lora(model, keep=True))
    assert same(weights(model), before)
    assert torch.equal(logits(model, codes), said)
    with adapters_off(model):
        without = logits(model, codes)
    assert torch.equal(without, logits(tiny_moshi.policy().model.to(dtype), codes))


def step(model, optimiser, codes):
    optimiser.zero_grad()
    model.text_forward(codes)[1].float().logsumexp(-1).sum().backward()
    optimiser.step()


def test_training_goes_on_after_it_as_if_it_had_not_been():
    model, codes = adapted()
    other = copy.deepcopy(model)
    for one, merges in ((model, True), (other, False)):
        optimiser = torch.optim.AdamW((p for p in one.parameters() if p.requires_grad), lr=1e-2)
        for _ in range(2):
            step(one, optimiser, codes)
            if merges:
                merged = merge_lora(one, keep=True)
                assert not any(p.requires_grad for p in one.parameters())
                unmerge_lora(one, merged)
    assert same(weights(model), weights(other))


def test_what_is_done_to_the_merged_weights_is_not_kept():
    model, _ = adapted()
    before = weights(model)
    merged = merge_lora(model, keep=True)
    for parameter in model.transformer.layers[1].parameters():
        parameter.data.add_(1.0)
    untouched = {name for name, _ in model.named_parameters()} & before.keys()
    unmerge_lora(model, merged)
    after = weights(model)
    layers = [name for name in before if "base_layer" in name or "lora_" in name]
    assert layers and all(torch.equal(after[name], before[name]) for name in layers)
    assert any(not torch.equal(after[name], before[name]) for name in untouched), "only merged layers are put back"


def test_a_broken_adapter_is_named_and_nothing_is_merged():
    model, _ = adapted()
    last = [parameter for name, parameter in model.named_parameters() if "lora_B" in name][-1]
    last.data[0, 0] = torch.nan
    before = weights(model)
    with pytest.raises(ValueError, match=r"transformer\.layers\.1\..* holds NaN or infinity; nothing was merged"):
        merge_lora(model, keep=True)
    after = weights(model)
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before if "base_layer" in n)

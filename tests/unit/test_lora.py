"""LoRA adapters in a Moshi-class model: merged, they do what they did beside it; unmerged, nothing has happened."""

from __future__ import annotations

import copy

import pytest
import torch

from align.lora import adapters, adapters_off, add_lora, merge_lora, merged_weights, unmerge_lora
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


def test_weights_that_are_written_are_those_that_merging_gives_and_the_model_stays():
    model, _ = adapted()
    before, written = weights(model), merged_weights(model)
    assert same(weights(model), before)
    merge_lora(model)
    assert same(written, weights(model)) and not adapters(model)
    assert same(merged_weights(model), weights(model)), "merged already"


def test_small_changes_of_a_bfloat16_model_are_written_whole():
    """The reviewer's case: adapters of a first run, whose change is far below the rounding of the weights."""
    model, _ = adapted(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e-3)
    start = weights(tiny_moshi.policy().model.to(torch.bfloat16))
    learned, written = adapters(model), merged_weights(model)
    assert len(learned) == 4 and written.keys() == start.keys()
    for name, value in written.items():
        assert value.dtype == torch.float32
        change = value - start[name].float()
        if (adapter := learned.get(name.removesuffix(".weight"))) is None:
            assert not change.any()
        else:
            assert (change - adapter.change()).norm() < 2e-3 * adapter.change().norm()
    merge_lora(model)
    name = next(iter(learned)) + ".weight"
    rounded, change = model.state_dict()[name].float() - start[name].float(), learned[next(iter(learned))].change()
    assert (rounded - change).norm() > 0.3 * change.norm(), "merged in bfloat16 it would be lost"


@torch.no_grad()
def test_a_reference_inside_a_reference_ends_with_its_own_end():
    model, codes = adapted()
    trained = logits(model, codes)
    with adapters_off(model):
        reference = logits(model, codes)
        with adapters_off(model):
            assert torch.equal(logits(model, codes), reference)
        assert torch.equal(logits(model, codes), reference)
        assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model, codes), trained) and not torch.equal(trained, reference)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


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

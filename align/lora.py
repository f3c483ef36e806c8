"""LoRA adapters in a model (PEFT): put in, left out for the reference, added to the weights and taken out again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from envs.errors import UptakeError


def add_lora(model: nn.Module, targets: str, r: int, alpha: int) -> None:
    """Freeze a model and put LoRA adapters into it, in place; its class and its methods stay as they are.

    Args:
        targets: regular expression for the full names of the linear layers that get one.

    Raises:
        UptakeError: it matches no linear layer, or is no regular expression.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = list(adapted_layers(model, targets))
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0), model)


def adapted_layers(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear layers of a model without adapters that would get one, by name; arguments and errors of `add_lora`."""
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UptakeError(f"lora_target_modules = '{targets}' is no regular expression: {error}") from error
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: module for name, module in linear.items() if pattern.fullmatch(name)}
    if not chosen:
        raise UptakeError(f"lora_target_modules = '{targets}' matches no linear layer; one is '{next(iter(linear))}'")
    return chosen


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its LoRA adapters, bit for bit what it was before training: the frozen reference."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer, layer.disable_adapters, [p.requires_grad for p in layer.parameters()]) for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, were_off, flags in before:
            layer.enable_adapters(not were_off)
            for parameter, flag in zip(layer.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


class Adapter(NamedTuple):
    """What is added to the weights of a linear layer, (out, in): `scaling` * up @ down."""

    down: Tensor  # (r, in)
    up: Tensor  # (out, r)
    scaling: float

    def change(self) -> Tensor:
        """(out, in) float32, on the CPU."""
        down, up = (one.detach().to("cpu", torch.float32) for one in (self.down, self.up))
        return up @ down * self.scaling


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters in a model by the full names of their layers; merged ones are in it no more."""
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            (key,) = layer.active_adapters
            found[name] = Adapter(layer.lora_A[key].weight, layer.lora_B[key].weight, layer.scaling[key])
    return found


def merged_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All parameters under their published names as `dtype`, on the CPU, with the adapters added; the model stays.

    They are added in float32: bfloat16, in which a large model trains, rounds each weight by up to 2e-3 of its size,
    and adapters change it by less. On the CPU, so that the model's own device needs no memory for it.
    """
    learned = adapters(model)
    out = {}
    for name, value in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        published = name.replace(".base_layer.", ".")
        whole = value.detach().cpu()
        if (adapter := learned.get(published.removesuffix(".weight"))) is not None:
            whole = whole.float() + adapter.change()
        out[published] = whole.to(dtype)
    return out


@dataclass(frozen=True)
class Merged:
    """What `merge_lora` took out of a model: the layers with their adapters, and the weights that they were added to.

    The weights are kept as they were, once more the memory of the layers that have adapters and on their device: to
    subtract the adapters again would give them back to rounding only, and what the rounding lost is as large to keep.
    """

    layers: Mapping[str, Any]
    """PEFT's, by their full names."""
    weights: Mapping[str, Tensor]


def merge_lora(model: nn.Module, keep: bool = False) -> Merged | None:
    """Add the adapters to the weights and remove them, in place: parameter names are the published ones again.

    The sum has the precision of the weights: in bfloat16 most of a small change is lost, see `merged_weights`. The
    weights must be whole: under ZeRO-3, gather them first.

    Args:
        keep: return what `unmerge_lora` needs to undo it. While merged, nothing is trainable that was an adapter, and
            `adapters_off` finds none to leave out.

    Raises:
        ValueError: an adapter holds NaN or infinity; nothing was changed.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        if not all(bool(torch.isfinite(p).all()) for n, p in layer.named_parameters() if "lora_" in n):
            raise ValueError(f"the adapter of '{name}' holds NaN or infinity; nothing was merged")
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if keep:
            weights[name] = layer.get_base_layer().weight.data  # PEFT merges into a copy
        layer.merge(safe_merge=True)
        _put(model, name, layer.get_base_layer())
    return Merged(layers, weights) if keep else None


def unmerge_lora(model: nn.Module, merged: Merged) -> None:
    """Undo `merge_lora(model, keep=True)`: the weights bit for bit as they were, and the adapters in their places.

    Adapters, and the optimiser that knows them, go on as if nothing had been; what was changed in the merged weights
    meanwhile is lost. A model that moved to another device takes them along.
    """
    for name, layer in merged.layers.items():
        weight: Any = model.get_submodule(name).weight
        device = weight.device
        weight.data = merged.weights[name].to(device)
        layer.merged_adapters.clear()
        _put(model, name, layer.to(device))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of this full name."""
    setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)

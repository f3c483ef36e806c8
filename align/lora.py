"""LoRA adapters in a model (PEFT): put in, left out for the reference, and added to the weights at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from envs.errors import UptakeError


def add_lora(model: nn.Module, targets: str, r: int, alpha: int) -> None:
    """Freeze a model and put LoRA adapters into it, in place; its class and its methods stay as they are.

    Args:
        targets: regular expression for the full names of the linear layers that get one.

    Raises:
        UptakeError: it matches no linear layer, or is no regular expression.
    """
    from peft import LoraConfig, inject_adapter_in_model

    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UptakeError(f"lora_target_modules = '{targets}' is no regular expression: {error}") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if pattern.fullmatch(name)]
    if not chosen:
        raise UptakeError(f"lora_target_modules = '{targets}' matches no linear layer; one is '{linear[0]}'")
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0), model)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its LoRA adapters, bit for bit what it was before training: the frozen reference."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer, [p.requires_grad for p in layer.parameters()]) for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, flags in before:
            layer.enable_adapters(True)
            for parameter, flag in zip(layer.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights and remove them, in place: parameter names are the published ones again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())

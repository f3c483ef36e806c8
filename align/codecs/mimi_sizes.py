"""The sizes that a Mimi may have and the codewords that it must: what no library tells before something breaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.models.mimi.configuration_mimi import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook, MimiModel

from envs.errors import UptakeError

FAULTS = (ArithmeticError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError, StrictDataclassError)
"""What transformers raises for a shape that cannot be."""
MOST, MOST_LAYERS = 10**6, 1000
_FIX = "copy the file again"
_LAYERS = ("num_layers", "num_hidden_layers", "num_residual_layers", "n_residual_layers", "n_q", "num_quantizers")
_SIZES = tuple(name for name in MimiConfig.__annotations__ if type(getattr(MimiConfig, name, None)) is int)


def check_config(values: Any, path: Path) -> None:
    """Raise UptakeError if the config.json of a transformers Mimi has sizes that cannot be."""
    values = values if isinstance(values, dict) else {}
    rope = values.get("rope_parameters")
    period = rope.get("rope_theta", 1) if isinstance(rope, dict) else 1
    sizes = {name: values[name] for name in _SIZES if values.get(name) is not None}
    check_sizes(sizes, values.get("upsampling_ratios", [1]), period, path)


def check_sizes(sizes: Mapping[str, Any], ratios: Any, period: Any, path: Path) -> None:
    """Raise UptakeError if there can be no network with these sizes, by the names that they have in the file `path`."""
    for name, size in sizes.items():
        most = MOST_LAYERS if name.rpartition(".")[2] in _LAYERS else MOST
        if type(size) is not int or not 1 <= size <= most:
            raise UptakeError(f"{path}: {name} = {size!r:.40}: must be a whole number of 1 to {most}; {_FIX}")
    good = isinstance(ratios, list) and 0 < len(ratios) <= 16
    if not good or not all(type(ratio) is int and 1 <= ratio <= MOST for ratio in ratios):
        raise UptakeError(f"{path}: ratios of upsampling {ratios!r:.40}: must be 1 to 16 whole numbers above 0; {_FIX}")
    if isinstance(period, bool) or not isinstance(period, (int, float)) or not 0 < period < 1e18:
        raise UptakeError(f"{path}: period of the positions {period!r:.40}: must be above 0, and no giant; {_FIX}")


def check_codewords(model: MimiModel, path: Path) -> None:
    """Raise UptakeError if a codeword, the sum of what it stood for over how often it did, is NaN or infinite."""
    for name, module in model.named_modules():
        if isinstance(module, MimiEuclideanCodebook):
            words = module.embed_sum / module.cluster_usage.clamp(min=module.epsilon)[:, None]
            if not torch.isfinite(words).all():
                raise UptakeError(
                    f"{path}: {name}: embed_sum over cluster_usage, its codewords, are NaN or infinite; copy the file "
                    "again"
                )

"""LoRA adapters as `python -m moshi.server --lora-weight` reads them (`moshi` 0.2.13, `modules/lora.py`).

    config.json        the base model's, with lora, lora_rank and lora_scaling; moshi_name is the base's weights
    lora.safetensors   X.lora_A.weight (rank, in), X.lora_B.weight (out, rank) for every linear layer X

Their loader builds all adapters without memory and then fills in what the file has, so that a missing one crashes it:
layers that did not change get zeros. Whatever else changed (embeddings, norms) is in the file as it is, which it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor as Tokenizer
from torch import Tensor, nn

from align.codecs import load_codec
from align.files import read_weights, write_tensors
from align.lora import adapters, merged_weights
from align.policies.moshi.layouts import kyutai
from align.policies.moshi.model import MoshiModel
from envs.codec import Codec
from envs.errors import UptakeError

LORA = "lora.safetensors"


def is_adapter(values: dict[str, Any]) -> bool:
    """Whether a config.json is that of an adapter."""
    return bool(values.get("lora"))


def load(folder: Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """The base model with the adapter added to its weights, codec and tokenizer; see `kyutai.load`."""
    values = kyutai.read_config(folder)
    network = {key: value for key, value in values.items() if not key.startswith("lora")}
    config = kyutai.model_config(folder, network)
    tokenizer = kyutai.load_tokenizer(folder, network, config.text_card)
    codec = codec or load_codec(folder, config.dep_q, network)
    path = kyutai.named_file(folder, values.get("moshi_name", kyutai.WEIGHTS))
    if not path.is_file():
        raise UptakeError(
            f"{path}: missing: {folder} is a LoRA adapter, its base model's weights are expected there; name them in "
            f"{folder / kyutai.CONFIG} as moshi_name = file://PATH"
        )
    model = kyutai.load_model(path, config)
    adapter_path = kyutai.named_file(folder, values.get("lora_name", LORA))
    scaling = values.get("lora_scaling", 2.0)
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)) or not abs(scaling) < 1e18:
        raise UptakeError(f"{folder / kyutai.CONFIG}: lora_scaling={scaling!r:.80}: must be a number, and no giant")
    if not adapter_path.is_file():
        raise UptakeError(
            f"{adapter_path}: missing: {folder} is a LoRA adapter, its weights are expected there; copy the file there "
            f"or name it in {folder / kyutai.CONFIG} as lora_name"
        )
    _add(model, read_weights(adapter_path), scaling, adapter_path)
    return model, codec, tokenizer


def save(
    folder: Path,
    base: Path,
    model: MoshiModel,
    codec: Codec,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    learned: Mapping[str, Tensor],
) -> int:
    """Write what `model` has learned since it was the one in the folder `base`; returns the adapter's rank.

    Args:
        learned: the adapters that were merged into `model`, as `kyutai.read_adapter` has them; those that are still in
            it count as well. Where they are what `base` lacks of a layer, they are written as they are. Another
            layer's are the smallest that give its weights back to their rounding.

    Raises:
        UptakeError: `base` is of other sizes, or a layer changed in more than half of its dimensions: then an adapter
            saves nothing.
    """
    values = kyutai.read_config(base)
    path = kyutai.weights_path(base, values)
    start = kyutai.load_model(path, model.config)
    learned = {**learned, **kyutai.moshi_adapter(adapters(model))}
    linear = {name for name, module in start.named_modules() if isinstance(module, nn.Linear)}
    original = start.state_dict()
    adapter: dict[str, Tensor] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, now in merged_weights(model).items():
        module, before = name.removesuffix(".weight"), original[name]
        if module in linear:
            a = learned.get(f"{module}.lora_A.weight", now.new_zeros(0, now.shape[1])).cpu()
            b = learned.get(f"{module}.lora_B.weight", now.new_zeros(now.shape[0], 0)).cpu()
            factors[module] = (a, b) if _explains(before, now, a, b) else _factors(before, now, module)
        elif not any(torch.equal(one, now) for one in _starts(before)):
            adapter[name] = now.to(dtype)
    rank = max(1, *(a.shape[0] for a, _ in factors.values()))
    for module, (a, b) in factors.items():
        adapter[f"{module}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, rank - len(a))).to(dtype)
        adapter[f"{module}.lora_B.weight"] = nn.functional.pad(b, (0, rank - b.shape[1])).to(dtype)
    write_tensors(folder / LORA, adapter)
    extra = {"lora": True, "lora_rank": rank, "lora_scaling": 1.0, "lora_name": LORA}
    kyutai.save_beside(folder, model.config, codec, tokenizer, extra | {"moshi_name": f"file://{path.resolve()}"})
    return rank


def _add(model: MoshiModel, adapter: dict[str, Tensor], scaling: float, path: Path) -> None:
    """Add an adapter to the weights, in place."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in adapter.items():
            module, low, _ = name.partition(".lora_A.weight")
            target = weights.get(f"{module}.weight" if low else name)
            if name.endswith(".lora_B.weight"):
                if name.replace(".lora_B.", ".lora_A.") not in adapter:
                    raise UptakeError(f"{path}: {name} has no lora_A beside it; copy the file again")
                continue
            if target is None:
                raise UptakeError(
                    f"{path}: found {name!r}, expected X.lora_A.weight and X.lora_B.weight for layers X of the model; "
                    "a PEFT adapter has other names: merge it into its base model first"
                )
            high = adapter.get(f"{module}.lora_B.weight")
            if low and (high is None or high.shape[1] != len(value)):
                shape = None if high is None else tuple(high.shape)
                raise UptakeError(f"{path}: {module}: lora_A has shape {tuple(value.shape)}, lora_B {shape}")
            change = value.float() if not low or high is None else scaling * (high.float() @ value.float())
            if change.shape != target.shape:
                raise UptakeError(
                    f"{path}: {module} is for a layer of shape {tuple(change.shape)}, the model's has "
                    f"{tuple(target.shape)}; is the adapter of another base model?"
                )
            if not change.isfinite().all():
                raise UptakeError(f"{path}: {module} has NaN or infinite values; give a checkpoint from before that")
            target.copy_(target + change if low else change)


def _starts(before: Tensor) -> tuple[Tensor, Tensor]:
    """What training may have started from: the weights, or in bfloat16 the rounded ones."""
    return before, before.bfloat16().float()


def _rounding(now: Tensor) -> float:
    """Adding an adapter to the weights rounded each of them by at most half of this, in the norm of them all."""
    return torch.finfo(now.dtype).eps * now.norm().item()


def _explains(before: Tensor, now: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether A (r, in) and B (out, r) are what was learned, up to the rounding of `now`."""
    fits = a.shape[1:] == now.shape[1:] and b.shape[:1] == now.shape[:1] and len(a) == b.shape[1]
    return fits and any(bool((now - one - b @ a).norm() <= _rounding(now)) for one in _starts(before))


def _factors(before: Tensor, now: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with before + B A equal to now, up to the rounding of `now`."""
    change, rounding = now.double() - before.double(), _rounding(now)
    limit = min(change.shape) // 2
    tried = 4
    while tried < limit:
        tried = min(2 * tried, limit)
        with torch.random.fork_rng(devices=[]):  # the subspace is found with random vectors
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=tried, niter=4)
        missed = (change - (u * s) @ v.T).norm()
        left = (missed.square() + s.square().flip(0).cumsum(0).flip(0)).sqrt()  # of dropping directions from here on
        rank = int((left > rounding).sum())
        if missed <= rounding and rank < tried:
            root = s[:rank].sqrt()
            return (v[:, :rank] * root).T.to(now.dtype), (u[:, :rank] * root).to(now.dtype)
    raise UptakeError(
        f"{name}: changed in more than {limit} of its {min(change.shape)} dimensions, which no small adapter holds: "
        "the policy was trained in full, or --base is another model (use --format kyutai), or its weights were rounded "
        "since (export from the run's own folder)"
    )

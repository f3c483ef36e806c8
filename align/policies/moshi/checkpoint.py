"""A policy as a folder in the published layout.

    config.json            keys of MoshiConfig; names the other files
    model.safetensors      parameter names of `moshi` 0.2.13
    tokenizer_spm.model    sentencepiece
    codec.safetensors      the pocket codec, or mimi/ (config.json, model.safetensors) with Mimi in transformers' layout

Only safetensors, JSON and sentencepiece are read: no pickle. Every fault is one line that names the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor as Tokenizer

from align.codecs import load_codec, save_codec
from align.codecs.base import Codec
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from envs.errors import UptakeError, nearest

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_spm.model"


def load_checkpoint(folder: str | Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """Model (fp32, on the CPU), codec and tokenizer; with `codec` given, the folder needs none.

    Raises UptakeError, one line, for a missing, truncated or mismatching file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UptakeError(f"{folder}: no such checkpoint folder; one holds {CONFIG}, {WEIGHTS} and {TOKENIZER}")
    config = MoshiConfig.load(folder / CONFIG)
    tokenizer = load_tokenizer(folder / config.extra.get("tokenizer_name", TOKENIZER))
    if codec is None:
        codec = load_codec(folder, config.dep_q)
    return load_model(folder / config.extra.get("moshi_name", WEIGHTS), config), codec, tokenizer


def load_model(path: str | Path, config: MoshiConfig) -> MoshiModel:
    """The model of `config` with the weights of a safetensors file, whatever float type they have, as fp32."""
    path = Path(path)
    _needed(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UptakeError(f"{path}: truncated or not safetensors ({_line(error)}); copy the file again") from error
    with torch.device("meta"):
        model = MoshiModel(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = _unpacked(weights, wanted)
    if missing := sorted(wanted.keys() - weights.keys()):
        raise UptakeError(f"{path}: {len(missing)} tensors missing, e.g. {missing[0]!r}; is {CONFIG} of another model?")
    if surplus := sorted(weights.keys() - wanted.keys()):
        hint = nearest(surplus[0], wanted)
        raise UptakeError(f"{path}: {len(surplus)} tensors that the model does not have, e.g. {surplus[0]!r}{hint}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise UptakeError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, {CONFIG} asks for {tuple(shape)}"
            )
        if not weights[name].is_floating_point():
            raise UptakeError(f"{path}: {name} is {weights[name].dtype}; quantised weights are not implemented")
        if not weights[name].isfinite().all():
            raise UptakeError(f"{path}: {name} has NaN or infinite values; give a checkpoint from before that")
    # A copy: how weights mapped from a file are aligned decides how a kernel rounds.
    model.load_state_dict({name: weights[name].float().clone() for name in wanted}, assign=True)
    return model.requires_grad_(True)


def _unpacked(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Split the packed projections of older checkpoints (`in_proj_weight`, `out_proj.weight`) into one per step."""
    unpacked: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        stem, _, last = name.rpartition(".self_attn.")
        parts = {"in_proj_weight": "in_projs", "in_proj.weight": "in_projs", "out_proj.weight": "out_projs"}.get(last)
        if parts is None:
            unpacked[name] = weight
            continue
        prefix = f"{stem}.self_attn.{parts}."
        number = sum(key.startswith(prefix) for key in wanted)
        for i, part in enumerate(weight.chunk(max(number, 1))):
            unpacked[f"{prefix}{i}.weight"] = part
    return unpacked


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A sentencepiece model."""
    path = Path(path)
    _needed(path)
    try:
        return Tokenizer(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UptakeError(f"{path}: not a sentencepiece model ({_line(error)}); copy the file again") from error


def save_checkpoint(
    folder: str | Path, model: MoshiModel, codec: Codec, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32
) -> None:
    """Write the folder that `load_checkpoint` reads. Each file replaces its predecessor in one step."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"moshi_name": WEIGHTS, "tokenizer_name": TOKENIZER}
    values = model.config.to_dict() | names
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.named_parameters()}
    _replace(folder / WEIGHTS, lambda path: save_file(weights, path))
    _replace(folder / TOKENIZER, lambda path: path.write_bytes(tokenizer.serialized_model_proto()))
    save_codec(folder, codec)
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UptakeError(f"{path}: cannot be written ({_line(error)})") from error
    finally:
        partial.unlink(missing_ok=True)


def _needed(path: Path) -> None:
    if not path.is_file():
        raise UptakeError(f"{path}: missing; a checkpoint folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

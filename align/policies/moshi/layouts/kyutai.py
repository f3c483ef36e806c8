"""The layout of the `moshi` package, in which Uptake itself keeps its policies.

config.json              keys of MoshiConfig; names the other files
model.safetensors        parameter names of `moshi` 0.2.13
adapter.safetensors      of a policy that was trained with LoRA: the adapters that model.safetensors has in its weights
tokenizer_spm*.model     sentencepiece
tokenizer-….safetensors  Mimi; or codec.safetensors, the pocket codec; or mimi/, Mimi in transformers' layout
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor as Tokenizer
from torch import Tensor

from align.codecs import load_codec, save_codec
from align.files import check_weights, one_line, read_json, read_tensors, write_json, write_tensors, write_whole
from align.lora import Adapter, adapters, merged_weights
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.layouts.shapes import check_layout, config_of_weights
from align.policies.moshi.model import MoshiModel
from envs.codec import Codec
from envs.errors import UptakeError, nearest

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_spm.model"
RELEASED_TOKENIZER = "tokenizer_spm_32k_3.model"
ADAPTER = "adapter.safetensors"

_FILES = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name"}
_PACKED = {"in_proj_weight": "in_projs", "in_proj.weight": "in_projs", "out_proj.weight": "out_projs"}


def load(folder: Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """Model (fp32, on the CPU), codec and tokenizer; with `codec` given, the folder needs none."""
    values = read_config(folder)
    config = model_config(folder, values)
    tokenizer = load_tokenizer(folder, values, config.text_card)
    codec = codec or load_codec(folder, config.dep_q, values)
    return load_model(weights_path(folder, values), config), codec, tokenizer


def save(folder: Path, model: MoshiModel, codec: Codec, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Write the folder that `load` and `python -m moshi.server` read."""
    write_tensors(folder / WEIGHTS, merged_weights(model, dtype))
    if learned := moshi_adapter(adapters(model)):
        write_tensors(folder / ADAPTER, learned)
    save_beside(folder, model.config, codec, tokenizer, {"moshi_name": WEIGHTS})


def save_beside(
    folder: Path, config: MoshiConfig, codec: Codec, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write everything but the weights; `extra` goes into config.json."""
    write_whole(folder / TOKENIZER, lambda path: path.write_bytes(tokenizer.serialized_model_proto()))
    kept = {key: value for key, value in config.to_dict().items() if not key.endswith("_name")}
    write_json(folder / CONFIG, kept | {"tokenizer_name": TOKENIZER} | save_codec(folder, codec) | dict(extra))


def moshi_adapter(learned: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Adapters under the names that `moshi` has for them, float32, for a scaling of 1."""
    out = {}
    for name, adapter in learned.items():
        out[f"{name}.lora_A.weight"] = adapter.down.detach().float()
        out[f"{name}.lora_B.weight"] = adapter.up.detach().float() * adapter.scaling
    return out


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The adapters that were added to the weights of a folder that `save` wrote; empty if there were none."""
    return read_tensors(folder / ADAPTER) if (folder / ADAPTER).is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says; nothing if there is none, or an empty one. A file's name that is null counts as left out.

    Raises UptakeError if a file's name is no text.
    """
    values = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    for key in _FILES & values.keys():
        if values[key] is None:
            del values[key]
        elif not isinstance(values[key], str) or "\0" in values[key]:
            raise UptakeError(f"{folder / CONFIG}: {key}={values[key]!r}: must be the name of a file")
        else:
            try:
                (folder / values[key]).is_file()
            except (OSError, ValueError) as error:
                raise UptakeError(
                    f"{folder / CONFIG}: {key}={values[key]!r:.40}: must be the name of a file "
                    f"({getattr(error, 'strerror', error)})"
                ) from error
    return values


def model_config(folder: Path, values: Mapping[str, Any]) -> MoshiConfig:
    """The model's shape, from config.json or, where that says nothing, from the weights."""
    if not values.keys() & {field.name for field in dataclasses.fields(MoshiConfig)}:
        return config_of_weights(weights_path(folder, values), values)
    try:
        return MoshiConfig.from_dict(values)
    except UptakeError as error:
        raise UptakeError(f"{folder / CONFIG}: {error}") from error


def weights_path(folder: Path, values: Mapping[str, Any]) -> Path:
    """Where the model's weights are; raises UptakeError that says what the folder holds instead."""
    path = named_file(folder, values.get("moshi_name", WEIGHTS))
    if path.is_file():
        return path
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    pickled = next((entry for suffix in ("*.pt", "*.pth", "*.bin", "*.ckpt") for entry in folder.glob(suffix)), None)
    fix = f"give the folder that holds {CONFIG}, {WEIGHTS}, the tokenizer and the codec"
    if pickled is not None:
        fix = f"{pickled.name} may be pickled and is never opened: convert it to safetensors where you trust it"
    if not (folder / CONFIG).exists():
        raise UptakeError(f"{folder}: no checkpoint: found {found}; expected {CONFIG} and {WEIGHTS}; {fix}")
    raise UptakeError(f"{path}: missing: found {found}; expected the model's weights; {fix}")


def named_file(folder: Path, name: str) -> Path:
    """A file that config.json names: inside the folder, or anywhere with `moshi`'s prefix `file://`."""
    if name.startswith("hf://"):
        raise UptakeError(f"{folder / CONFIG}: names {name}, on the hub; download it and name it file://PATH")
    return folder / name.removeprefix("file://")


def load_model(path: str | Path, config: MoshiConfig) -> MoshiModel:
    """The model of `config` with the weights of a safetensors file, whatever float type they have, as fp32."""
    return model_from(read_tensors(Path(path)), config, Path(path))


def model_from(weights: Mapping[str, Tensor], config: MoshiConfig, path: Path) -> MoshiModel:
    """The model of `config` with these tensors, which came from `path`."""
    with torch.device("meta"):
        model = MoshiModel(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = unpacked(weights, wanted)
    missing, surplus = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or surplus:
        check_layout(weights, path)
    if missing:
        raise UptakeError(f"{path}: {len(missing)} tensors missing, e.g. {missing[0]!r}; is {CONFIG} of another model?")
    if surplus:
        hint = nearest(surplus[0], wanted)
        raise UptakeError(f"{path}: {len(surplus)} tensors that the model does not have, e.g. {surplus[0]!r}{hint}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise UptakeError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, {CONFIG} asks for {tuple(shape)}; is it of "
                "another model?"
            )
    check_weights(weights, path)
    # A copy: how weights mapped from a file are aligned decides how a kernel rounds.
    model.load_state_dict({name: weights[name].float().clone() for name in wanted}, assign=True)
    return model.requires_grad_(True)


def unpacked(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Split the packed projections of older checkpoints (`in_proj_weight`, `out_proj.weight`) into one per step."""
    known = list(wanted)
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        stem, _, last = name.rpartition(".self_attn.")
        if last not in _PACKED or not weight.dim():
            split[name] = weight
            continue
        prefix = f"{stem}.self_attn.{_PACKED[last]}."
        number = sum(key.startswith(prefix) for key in known)
        for i, part in enumerate(weight.chunk(max(number, 1))):
            split[f"{prefix}{i}.weight"] = part
    return split


def packed_like(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The inverse of `unpacked`: the tensors under the `names` of an older file."""
    packed: dict[str, Tensor] = {}
    for name in names:
        stem, _, last = name.rpartition(".self_attn.")
        if last not in _PACKED:
            packed[name] = weights[name]
            continue
        prefix = f"{stem}.self_attn.{_PACKED[last]}."
        number = sum(key.startswith(prefix) for key in weights)
        packed[name] = torch.cat([weights[f"{prefix}{i}.weight"] for i in range(number)])
    return packed


def load_tokenizer(folder: Path, values: Mapping[str, Any], pieces: int) -> Tokenizer:
    """The folder's sentencepiece model; it must have as many `pieces` as the model has text tokens."""
    named = values.get("tokenizer_name")
    names = [named] if named else [TOKENIZER, RELEASED_TOKENIZER]
    path = next((path for name in names if (path := named_file(folder, name)).is_file()), None)
    if path is None:
        raise UptakeError(
            f"{folder / names[0]}: missing; put the sentencepiece model that the checkpoint came with there"
        )
    return open_tokenizer(path, pieces)


def open_tokenizer(path: Path, pieces: int) -> Tokenizer:
    """A sentencepiece model of as many `pieces` as the model has text tokens."""
    try:
        tokenizer = Tokenizer(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UptakeError(f"{path}: not a sentencepiece model ({one_line(error)}); copy the file again") from error
    return fitting(tokenizer, path, pieces)


def fitting(tokenizer: Tokenizer, path: Path, pieces: int) -> Tokenizer:
    """The tokenizer from `path`, if it has as many `pieces` as the model has text tokens."""
    if (found := tokenizer.get_piece_size()) != pieces:
        raise UptakeError(
            f"{path}: found {found} pieces, expected {pieces}, one for each text token of the model; use the tokenizer "
            "that the checkpoint came with"
        )
    return tokenizer

"""A policy as a folder, in any of the published layouts (`align.policies.moshi.layouts`).

Only safetensors, JSON and sentencepiece are read: no pickle. Every fault is one line that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor as Tokenizer
from torch import Tensor

from align.files import read_dtype
from align.policies.moshi.layouts import huggingface, kyutai, lora, personaplex
from align.policies.moshi.model import MoshiModel
from envs.codec import Codec
from envs.errors import UptakeError, nearest

LAYOUTS = {
    "kyutai": kyutai.load,
    "kyutai-lora": lora.load,
    "personaplex": personaplex.load,
    "hf": huggingface.load,
}
"""Name of a layout, as `export` takes it, and what reads it."""

NEED_BASE = {
    "kyutai-lora": "whose weights the adapter is added to",
    "personaplex": "that has the depth steps of the user, which are not trained",
}


def find_layout(folder: str | Path) -> str:
    """The layout of a checkpoint folder; raises UptakeError if it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UptakeError(
            f"{folder}: no such checkpoint folder; one holds {kyutai.CONFIG}, {kyutai.WEIGHTS}, a tokenizer and a codec"
        )
    values = kyutai.read_config(folder)
    if huggingface.is_transformers(values):
        return "hf"
    if "hidden_size" in values:
        raise UptakeError(
            f"{folder / kyutai.CONFIG}: found a transformers model of type {values.get('model_type')!r}, expected a "
            f"Moshi-class checkpoint ({huggingface.ARCHITECTURE}, or the layout of `moshi`)"
        )
    if lora.is_adapter(values):
        return "kyutai-lora"
    config = kyutai.model_config(folder, values)
    return "personaplex" if personaplex.predicts_the_user(config) else "kyutai"


def saved_dtype(folder: str | Path) -> torch.dtype:
    """The precision to run a checkpoint in: bfloat16 if it is published so, float32 for any other.

    An adapter is merged when it is read, and bfloat16 would round most of it away.
    """
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "kyutai-lora":
        return torch.float32
    if layout == "hf":
        path = min(folder.glob("*.safetensors"), default=folder / kyutai.WEIGHTS)
    else:
        path = kyutai.weights_path(folder, kyutai.read_config(folder))
    return torch.bfloat16 if read_dtype(path) == "BF16" else torch.float32


def load_shape(folder: str | Path) -> MoshiModel:
    """The model of `load_checkpoint` on the meta device: its config.json is read, and no weight."""
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "hf":
        config = huggingface.model_config(folder)
    else:
        values = {key: value for key, value in kyutai.read_config(folder).items() if not key.startswith("lora")}
        config = kyutai.model_config(folder, values)
    with torch.device("meta"):
        return MoshiModel(personaplex.agent_only(config) if layout == "personaplex" else config)


def load_checkpoint(folder: str | Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """Model (fp32, on the CPU), codec and tokenizer; with `codec` given, the folder needs none.

    Raises UptakeError, one line, for a missing, truncated or mismatching file.
    """
    return LAYOUTS[find_layout(folder)](Path(folder), codec)


def save_checkpoint(
    folder: str | Path,
    model: MoshiModel,
    codec: Codec,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
    layout: str = "kyutai",
    base: str | Path | None = None,
    learned: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the folder that `load_checkpoint` and the layout's own code read, the weights as `dtype`.

    Args:
        model: adapters that are in it are added to the weights on the way; they stay in the model.
        base: the checkpoint folder that the policy was trained from; some layouts need it.
        learned: adapters that were added to the model's weights before (`kyutai.read_adapter`).
    """
    if layout not in LAYOUTS:
        raise UptakeError(f"export: unknown format {layout!r}{nearest(layout, LAYOUTS)}")
    folder = Path(folder)
    if layout in NEED_BASE:
        if base is None:
            raise UptakeError(
                f"export: format {layout!r} needs the checkpoint folder {NEED_BASE[layout]}; give it with --base"
            )
        if not Path(base).is_dir():
            raise UptakeError(f"export: --base {base}: no such checkpoint folder")
        if Path(base).resolve() == folder.resolve():
            raise UptakeError(f"export: --base and --out are both {folder}; write to another folder")
    if layout == "kyutai":
        kyutai.save(folder, model, codec, tokenizer, dtype)
    elif layout == "hf":
        huggingface.save(folder, model, codec, tokenizer, dtype)
    elif layout == "kyutai-lora":
        lora.save(folder, Path(str(base)), model, codec, tokenizer, dtype, learned or {})
    else:
        personaplex.save(folder, Path(str(base)), model, codec, tokenizer, dtype)

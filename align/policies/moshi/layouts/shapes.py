"""What the names and sizes of tensors tell: which layout they are in, and the shape of the model.

Some released folders have no config.json, or an empty one (PersonaPlex). Their sizes are the tensors'; what tensors do
not tell is taken from the released checkpoints: attention heads of 128 features (depth transformer: 64), a context of
3000 frames, acoustic codebooks one frame late.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Size

from align.files import one_line, read_shapes
from align.policies.moshi.config import MoshiConfig, hidden_scale, nominal_width
from envs.errors import UptakeError

HEAD, DEPTH_HEAD = 128, 64

#: A part of a parameter's name, whose it is, and what to do.
_OTHERS = (
    ("depth_decoder.", "transformers' MoshiForConditionalGeneration", "add the config.json that it came with"),
    ("base_model.model.", "a PEFT adapter", "merge it into its base model first"),
    (".lora_A.", "a LoRA adapter", "its config.json must say so (lora, lora_rank, lora_scaling) and name its base"),
    (".weight_scb", "a quantised release", "take the bf16 release"),
    ("depformer.slices.", "moshi-mlx", "take the PyTorch release of the checkpoint"),
    ("quantizer.rvq_first.", "Mimi, a codec", "take the model.safetensors of the checkpoint"),
)


def check_layout(names: Iterable[str], path: Path) -> None:
    """Raise UptakeError if parameters with these `names` belong to another known layout than `moshi`'s."""
    for name in names:
        for part, whose, fix in _OTHERS:
            if part in name:
                raise UptakeError(f"{path}: found weights of {whose} ({name!r}), expected those of `moshi`; {fix}")


def config_of_weights(path: Path, values: Mapping[str, Any]) -> MoshiConfig:
    """The shape of the model in a file whose config.json says only `values`: other things."""
    shapes = read_shapes(path)
    check_layout(shapes, path)
    try:
        return config_of_shapes(shapes, {key: value for key, value in values.items() if key.endswith("_name")})
    except KeyError as error:
        raise UptakeError(
            f"{path}: no tensor {error}: found {', '.join(sorted(shapes)[:3]) or 'none'}, expected those of `moshi`; "
            "give the folder of a Moshi-class checkpoint"
        ) from error
    except UptakeError as error:
        raise UptakeError(f"{path}: {error}; the sizes are not those of a release: add its config.json") from error
    except (ValueError, IndexError) as error:
        raise UptakeError(
            f"{path}: embeddings or layers that are no matrices ({one_line(error)}), expected those of `moshi`; give "
            "the folder of a Moshi-class checkpoint"
        ) from error


def config_of_shapes(shapes: Mapping[str, Size], extra: dict[str, Any]) -> MoshiConfig:
    """The released shape with these sizes; KeyError without a needed tensor, UptakeError if there is no such shape."""

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in shapes)

    text_rows, dim = shapes["text_emb.weight"]
    depth_dim = shapes["depformer_text_emb.weight"][1]
    n_q, dep_q = count(r"emb\.\d+\.weight"), count(r"linears\.\d+\.weight")
    gate = shapes["transformer.layers.0.gating.linear_in.weight"]
    per_step = "depformer.layers.0.gating.0.linear_in.weight" in shapes
    depth_gate = shapes[f"depformer.layers.0.gating.{'0.' if per_step else ''}linear_in.weight"]
    steps, inputs = count(r"depformer\.layers\.0\.gating\.\d+\.linear_in\.weight"), count(r"depformer_in\.\d+\.weight")
    if n_q % 2 or steps not in (0, dep_q) or inputs not in (1, dep_q) or dim % HEAD or depth_dim % DEPTH_HEAD:
        raise UptakeError(
            f"{n_q} audio streams, {dep_q} of them predicted by {steps} sets of depth weights from {inputs} "
            f"projections, widths {dim} and {depth_dim}"
        )
    return MoshiConfig(
        dim=dim,
        num_layers=count(r"transformer\.layers\.\d+\.norm1\.alpha"),
        num_heads=dim // HEAD,
        hidden_scale=hidden_scale(dim, nominal_width(dim, gate[0] // 2)),
        n_q=n_q,
        dep_q=dep_q,
        card=shapes["emb.0.weight"][0] - 1,
        text_card=text_rows - 1,
        delays=(0, *((0,) + (1,) * (n_q // 2 - 1)) * 2),
        depformer_dim=depth_dim,
        depformer_num_layers=count(r"depformer\.layers\.\d+\.norm1\.alpha"),
        depformer_num_heads=depth_dim // DEPTH_HEAD,
        depformer_dim_feedforward=nominal_width(depth_dim, depth_gate[0] // 2),
        depformer_multi_linear=inputs > 1,
        depformer_weights_per_step=per_step,
        extra=extra,
    )

"""Mimi as the `moshi` package stores it, to and from transformers' `MimiModel`, which `MimiCodec` streams.

The file is `tokenizer-e351c8d8-checkpoint125.safetensors` of the released checkpoints. Its shape is fixed in `moshi`
0.2.13 (`loaders.py`), unless `mimi_config_name` in the checkpoint's config.json names a JSON file with another.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.mimi.configuration_mimi import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiConvTranspose1d, MimiModel

from align.codecs import RELEASED_MIMI as MIMI
from align.codecs.mimi import MimiCodec
from align.codecs.mimi_sizes import FAULTS, check_codewords, check_sizes
from align.files import check_weights, one_line, read_json, read_tensors, write_json, write_tensors
from align.rotary import to_halves, to_neighbours
from envs.errors import UptakeError

MIMI_CONFIG = "mimi.json"

RELEASED: dict[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 512, "causal": True, "n_filters": 64, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7, "residual_kernel_size": 3,
        "last_kernel_size": 3, "norm": "none", "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        "d_model": 512, "num_heads": 8, "num_layers": 8, "causal": True, "layer_scale": 0.01, "context": 250,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 2048, "input_dimension": 512, "output_dimensions": [512],
    },
}  # fmt: skip
"""The published shape (`moshi` 0.2.13, `loaders.py`)."""

_FIXED = {
    "seanet": ("channels", "causal", "activation", "disable_norm_outer_blocks", "norm"),
    "transformer": ("causal", "conv_layout", "gating", "norm", "positional_embedding"),
}

#: Parts of names, `moshi` to transformers. Convolutions, and queries, keys and values, are not one to one.
_NAMES = (
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1.\1_transformer."),
    (r"^(encoder|decoder)\.model\.", r"\1.\1_seanet.layers."),
    (r"^downsample\.conv\.", "encoder.downsample."),
    (r"^upsample\.convtr\.", "decoder.upsample."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.out_projs\.0\.", ".o_proj."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.rvq_first\.(vq\.)?", ".semantic_residual_vector_quantizer."),
    (r"\.rvq_rest\.(vq\.)?", ".acoustic_residual_vector_quantizer."),
    (r"\._codebook\._?", ".codebook."),
    (r"\.embedding_sum$", ".embed_sum"),
)

#: The way back, to the names of the released file: `moshi` 0.2.13 reads them, and so do its older relatives.
_NAMES_BACK = (
    (r"\.semantic_residual_vector_quantizer\.layers\.", ".rvq_first.vq.layers."),
    (r"\.acoustic_residual_vector_quantizer\.layers\.", ".rvq_rest.vq.layers."),
    (r"\.semantic_residual_vector_quantizer\.", ".rvq_first."),
    (r"\.acoustic_residual_vector_quantizer\.", ".rvq_rest."),
    (r"\.codebook\.initialized$", "._codebook._initialized"),
    (r"\.codebook\.embed_sum$", "._codebook.embedding_sum"),
    (r"\.codebook\.", "._codebook."),
    (r"^encoder\.downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^decoder\.upsample\.conv\.", "upsample.convtr.convtr.convtr."),
    (r"^(encoder|decoder)\.\1_seanet\.layers\.", r"\1.model."),
    (r"^(encoder|decoder)\.\1_transformer\.", r"\1_transformer.transformer."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.fc1\.", ".linear1."),
    (r"\.mlp\.fc2\.", ".linear2."),
    (r"\.input_layernorm\.", ".norm1."),
    (r"\.post_attention_layernorm\.", ".norm2."),
    (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
    (r"\.mlp_layer_scale\.", ".layer_scale_2."),
)


def load_mimi(path: Path, config_path: Path | None = None, codebooks: int = 8) -> MimiCodec:
    """The codec in a file of the `moshi` package; `config_path` where its shape is not the released one.

    Raises UptakeError, one line, for a missing or truncated file or weights of another shape.
    """
    values, source = (RELEASED, path) if config_path is None else (read_json(config_path), config_path)
    try:
        _check_sizes(values, source)
        config = _to_transformers(values)
        with torch.device("meta"):
            model = MimiModel(config)
    except UptakeError:
        raise
    except FAULTS as error:
        raise UptakeError(
            f"{source}: not the shape of a Mimi ({type(error).__name__}: {one_line(error)}); copy the file again"
        ) from error
    stored, wanted = read_tensors(path), model.state_dict()
    found = {own for name in stored for own in _own_names(name)}
    for names, what in ((wanted.keys() - found, "missing"), (found - wanted.keys(), "unknown")):
        if names:
            raise UptakeError(
                f"{path}: {len(names)} tensors {what}, e.g. {min(names)!r}; expected Mimi as `moshi` stores it: use "
                f"{MIMI} of the released checkpoint"
            )
    tensors = _renamed(stored, config, path)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UptakeError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}; a Mimi of "
                "another shape needs mimi_config_name in config.json"
            )
    check_weights(tensors, path)
    # Real memory first: the model also has buffers that are computed, not stored.
    model = MimiModel(config)
    model.load_state_dict(tensors)
    check_codewords(model, path)
    return MimiCodec(model, codebooks)


def save_mimi(folder: Path, codec: MimiCodec) -> dict[str, str]:
    """Write the codec into `folder` as `moshi` stores it; returns what config.json has to say about it."""
    values = _to_kyutai(codec.model.config)
    transposed = {name for name, module in codec.model.named_modules() if isinstance(module, MimiConvTranspose1d)}
    write_tensors(folder / MIMI, _named_back(codec.model.state_dict(), codec.model.config, transposed))
    if values == RELEASED:
        return {"mimi_name": MIMI}
    write_json(folder / MIMI_CONFIG, values)
    # `moshi` looks a bare name up on the hub; with this prefix it is a path, from where the server is started.
    return {"mimi_name": MIMI, "mimi_config_name": f"file://{MIMI_CONFIG}"}


def _renamed(tensors: dict[str, Tensor], config: MimiConfig, path: Path) -> dict[str, Tensor]:
    """`moshi`'s tensors under the names that `MimiModel` has in memory."""
    shape = (3 * config.hidden_size, config.hidden_size)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = _own_names(name)
        if len(own) == 1:
            renamed[own[0]] = tensor
            continue
        if tensor.shape != shape:
            raise UptakeError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {shape}; a Mimi of another shape needs "
                "mimi_config_name in config.json"
            )
        queries, keys, values = tensor.chunk(3)
        rotated = (to_halves(part, config.num_attention_heads) for part in (queries, keys))
        renamed |= zip(own, (*rotated, values), strict=True)
    return renamed


def _own_names(name: str) -> list[str]:
    """What `MimiModel` calls a tensor of `moshi`'s: three names of a packed projection, one of any other."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    # Packed in the released file, one of a list in what `moshi` 0.2.13 would write.
    stem, packed, _ = re.sub(r"\.in_projs\.0\.weight$", ".in_proj_weight", name).partition("in_proj_weight")
    return [f"{stem}{kind}_proj.weight" for kind in "qkv"] if packed else [name]


def _named_back(tensors: dict[str, Tensor], config: MimiConfig, transposed: set[str]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, query, _ = name.partition("q_proj.weight")
        if query:
            heads = config.num_attention_heads
            q, k = (to_neighbours(tensors[f"{stem}{kind}_proj.weight"], heads) for kind in "qk")
            name, tensor = f"{stem}in_proj_weight", torch.cat((q, k, tensors[f"{stem}v_proj.weight"]))
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            continue
        module, convolution, parameter = name.rpartition(".conv.")
        if convolution and "_seanet." in module:
            name = f"{module}.convtr.convtr.{parameter}" if module in transposed else f"{module}.conv.conv.{parameter}"
        for pattern, replacement in _NAMES_BACK:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return named


def _check_sizes(values: dict[str, Any], path: Path) -> None:
    """Refuse sizes that cannot be; KeyError where one is missing."""
    sizes = {
        f"{part}.{key}": value
        for part in ("seanet", "quantizer", "transformer")
        for key, value in values[part].items()
        if type(RELEASED[part].get(key)) is int and key not in ("max_period", *_FIXED.get(part, ()))
    }
    check_sizes(sizes, values["seanet"]["ratios"], values["transformer"]["max_period"], path)


def _to_transformers(values: dict[str, Any]) -> MimiConfig:
    """A Mimi's shape in `moshi`'s words; KeyError where one is missing, ValueError for what is not implemented."""
    seanet, quantizer, transformer = values["seanet"], values["quantizer"], values["transformer"]
    for part, keys in _FIXED.items():
        for key in keys:
            if values[part][key] != RELEASED[part][key]:
                raise ValueError(f"{part}.{key} = {values[part][key]!r}, only {RELEASED[part][key]!r} is implemented")
    config = MimiConfig(
        sampling_rate=values["sample_rate"],
        audio_channels=values["channels"],
        hidden_size=seanet["dimension"],
        num_filters=seanet["n_filters"],
        num_residual_layers=seanet["n_residual_layers"],
        upsampling_ratios=seanet["ratios"],
        kernel_size=seanet["kernel_size"],
        last_kernel_size=seanet["last_kernel_size"],
        residual_kernel_size=seanet["residual_kernel_size"],
        dilation_growth_rate=seanet["dilation_base"],
        pad_mode=seanet["pad_mode"],
        compress=seanet["compress"],
        use_conv_shortcut=not seanet["true_skip"],
        codebook_size=quantizer["bins"],
        codebook_dim=quantizer["dimension"],
        vector_quantization_hidden_dimension=quantizer["dimension"],
        num_quantizers=quantizer["n_q"],
        upsample_groups=seanet["dimension"],
        num_hidden_layers=transformer["num_layers"],
        intermediate_size=transformer["dim_feedforward"],
        num_attention_heads=transformer["num_heads"],
        num_key_value_heads=transformer["num_heads"],
        sliding_window=transformer["context"],
        layer_scale_initial_scale=transformer["layer_scale"],
        rope_parameters={"rope_type": "default", "rope_theta": float(transformer["max_period"])},
    )
    if values["frame_rate"] != config.frame_rate:
        raise ValueError(f"frame_rate = {values['frame_rate']}, its ratios give {config.frame_rate}")
    return config


def _to_kyutai(config: MimiConfig) -> dict[str, Any]:
    """The inverse of `_to_transformers`; UptakeError for a Mimi that `moshi` cannot express."""
    dim = config.hidden_size
    heads, width = config.num_attention_heads, config.vector_quantization_hidden_dimension
    if config.num_key_value_heads != heads or config.codebook_dim != width or config.upsample_groups != dim:
        raise UptakeError(
            f"this Mimi has num_key_value_heads={config.num_key_value_heads} (of {heads}), codebook_dim="
            f"{config.codebook_dim} (of {width}), upsample_groups={config.upsample_groups} (of {dim}); `moshi` only "
            "knows them equal: keep the codec that the checkpoint was released with"
        )
    rope: Any = config.rope_parameters
    period = float(rope["rope_theta"])
    sizes = {
        "seanet": {
            "dimension": dim,
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "compress": config.compress,
            "dilation_base": config.dilation_growth_rate,
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "pad_mode": config.pad_mode,
            "ratios": list(config.upsampling_ratios or ()),
            "true_skip": not config.use_conv_shortcut,
        },
        "quantizer": {
            "dimension": width,
            "n_q": config.num_quantizers,
            "bins": config.codebook_size,
            "input_dimension": dim,
            "output_dimension": dim,
        },
        "transformer": {
            "d_model": dim,
            "num_heads": heads,
            "num_layers": config.num_hidden_layers,
            "layer_scale": config.layer_scale_initial_scale,
            "context": config.sliding_window,
            "max_period": int(period) if period.is_integer() else period,
            "dim_feedforward": config.intermediate_size,
            "input_dimension": dim,
            "output_dimensions": [dim],
        },
    }
    parts: dict[str, Any] = {part: RELEASED[part] | sizes[part] for part in sizes}
    return RELEASED | {"sample_rate": config.sampling_rate, "frame_rate": config.frame_rate} | parts

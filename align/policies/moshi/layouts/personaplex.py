"""PersonaPlex: Moshi whose depth transformer predicts the user's codebooks too, 16 steps instead of 8.

The last 8 steps never influence the agent: they come after its own in every frame. They are left out for training, and
taken from the original folder on export. The files are those of `nvidia/personaplex-7b-v1`: an empty config.json, the
older packed names, Mimi and sentencepiece under the names that its own loader asks for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor as Tokenizer
from torch import Tensor

from align.codecs import load_codec, save_codec
from align.files import check_weights, read_tensors, write_json, write_tensors, write_whole
from align.lora import merged_weights
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.layouts import kyutai
from align.policies.moshi.model import MoshiModel
from envs.codec import Codec
from envs.errors import UptakeError


def predicts_the_user(config: MoshiConfig) -> bool:
    """Whether the depth transformer runs over both speakers' codebooks."""
    return config.dep_q == config.n_q


def load(folder: Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """Model with the agent's depth steps only, codec and tokenizer; see `kyutai.load`."""
    values = kyutai.read_config(folder)
    whole = kyutai.model_config(folder, values)
    config = agent_only(whole)
    tokenizer = kyutai.load_tokenizer(folder, values, config.text_card)
    codec = codec or load_codec(folder, config.dep_q, values)
    path = kyutai.weights_path(folder, values)
    weights = kyutai.unpacked(read_tensors(path), parameters(whole))
    left_out = user_steps(weights, whole, path)
    kept = {name: weight for name, weight in weights.items() if name not in left_out}
    return kyutai.model_from(kept, config, path), codec, tokenizer


def save(folder: Path, base: Path, model: MoshiModel, codec: Codec, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Write the folder that PersonaPlex' own code reads: `model` for the agent's steps, `base` for the user's.

    Raises UptakeError if `base` is no PersonaPlex of the model's sizes.
    """
    values = kyutai.read_config(base)
    whole = kyutai.model_config(base, values)
    if not predicts_the_user(whole):
        raise UptakeError(
            f"{base}: found {whole.dep_q} depth steps for {whole.n_q} audio streams, expected as many; give the "
            "PersonaPlex folder that the policy came from (--base)"
        )
    theirs = {name: tuple(tensor.shape) for name, tensor in parameters(agent_only(whole)).items()}
    weights = merged_weights(model, dtype)
    ours = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for key in ("num_heads", "depformer_num_heads", "max_period", "delays"):
        theirs[key], ours[key] = getattr(whole, key), getattr(model.config, key)
    for name in sorted(ours.keys() | theirs.keys()):
        if (found := theirs.get(name)) != (expected := ours.get(name)):
            raise UptakeError(
                f"{base}: {name}: found {found}, expected the policy's {expected}; give the PersonaPlex folder that "
                "the policy came from (--base)"
            )
    path = kyutai.weights_path(base, values)
    original = read_tensors(path)
    whole_weights = kyutai.unpacked(original, parameters(whole))
    check_weights(user_steps(whole_weights, whole, path), path)
    merged = whole_weights | weights
    tensors = {name: tensor.to(dtype) for name, tensor in kyutai.packed_like(merged, original).items()}
    write_tensors(folder / kyutai.WEIGHTS, tensors)
    write_whole(folder / kyutai.RELEASED_TOKENIZER, lambda path: path.write_bytes(tokenizer.serialized_model_proto()))
    names = {"tokenizer_name": kyutai.RELEASED_TOKENIZER, "moshi_name": kyutai.WEIGHTS}
    write_json(folder / kyutai.CONFIG, values | names | save_codec(folder, codec))


def agent_only(config: MoshiConfig) -> MoshiConfig:
    """The same model with the agent's half of the depth steps."""
    if config.n_q % 2:
        raise UptakeError(f"PersonaPlex: {config.n_q} audio streams cannot be halved into agent and user")
    half = config.n_q // 2
    schedule = config.depformer_weights_per_step_schedule
    return dataclasses.replace(
        config, dep_q=half, depformer_weights_per_step_schedule=None if schedule is None else schedule[:half]
    )


def user_steps(weights: Mapping[str, Tensor], whole: MoshiConfig, path: Path) -> dict[str, Tensor]:
    """The tensors of the depth steps that the agent does not need; raises UptakeError if they are not all there."""
    needed = parameters(agent_only(whole))
    steps = {name: tensor.shape for name, tensor in parameters(whole).items() if name not in needed}
    for name, shape in sorted(steps.items()):
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != tuple(shape):
            raise UptakeError(
                f"{path}: {name}: found {found}, expected {tuple(shape)}: with dep_q = {whole.dep_q} the user's "
                f"codebooks are predicted too; if they are not, set it to {whole.n_q // 2} in {kyutai.CONFIG}"
            )
    return {name: weights[name] for name in steps}


def parameters(config: MoshiConfig) -> dict[str, Tensor]:
    """Names of the model's parameters, without memory for them."""
    with torch.device("meta"):
        return dict(MoshiModel(config).named_parameters())

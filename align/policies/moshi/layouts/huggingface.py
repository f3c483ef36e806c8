"""transformers' `MoshiForConditionalGeneration`, codec included, as `kmhf/hf-moshika` is published.

Written against transformers 5.23. Same network, other names: queries, keys and values apart and their rotary features
laid out in halves, the depth transformer's weights stacked over its steps. Logits are equal to 1e-5. What their class
does not do as the original, so that it is neither used for training nor for rollouts here: its parallel forward ignores
the window of `context` frames, and its depth decoder sees the future under `attn_implementation="eager"`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from sentencepiece import SentencePieceProcessor as Tokenizer
from torch import Tensor

from align.files import one_line, read_weights
from align.lora import merged_weights
from align.policies.moshi.config import MoshiConfig, gated_width, hidden_scale, nominal_width
from align.policies.moshi.layouts import kyutai
from align.policies.moshi.layouts.tokenizers import load_tokenizer, save_tokenizer
from align.policies.moshi.model import MoshiModel
from align.quiet import quiet
from align.rotary import to_halves, to_neighbours
from envs.codec import Codec
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.codecs.mimi import MimiCodec

ARCHITECTURE = "MoshiForConditionalGeneration"


def is_transformers(values: dict[str, Any]) -> bool:
    """Whether a config.json is that of a transformers Moshi."""
    named = values.get("architectures")
    return ARCHITECTURE in (named if isinstance(named, list) else [named]) or "depth_decoder_config" in values


def load(folder: Path, codec: Codec | None = None) -> tuple[MoshiModel, Codec, Tokenizer]:
    """Model (fp32, on the CPU), codec and tokenizer; with `codec` given, the folder's own is not used."""
    from transformers.models.moshi.modeling_moshi import MoshiForConditionalGeneration

    from align.codecs.mimi import MimiCodec  # transformers takes seconds to import
    from align.codecs.mimi_sizes import FAULTS, check_codewords, check_config

    path = folder / kyutai.CONFIG
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UptakeError(f"{folder}: no *.safetensors; download the weights in that format, others are never opened")
    model_config(folder)  # before a network is made of it
    check_config(kyutai.read_config(folder).get("audio_encoder_config"), path)
    for file in files:
        read_weights(file)
    try:
        with quiet():
            loaded: Any = MoshiForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except FAULTS as error:
        raise UptakeError(f"{path}: transformers cannot load it ({one_line(error)}); copy the folder again") from error
    theirs, report = loaded
    for names, what in ((report["missing_keys"], "missing"), (report["unexpected_keys"], "unknown")):
        if names:
            raise UptakeError(
                f"{folder}: {len(names)} tensors {what}, e.g. {min(names)!r}; expected those of {ARCHITECTURE}; is "
                f"{kyutai.CONFIG} of another model?"
            )
    config = _config(theirs.config, path)
    check_codewords(theirs.audio_encoder, files[0])
    model = kyutai.model_from(_from_transformers(theirs.state_dict(), config), config, files[0])
    tokenizer = load_tokenizer(folder, config.text_card)
    return model, codec or MimiCodec(theirs.audio_encoder, config.dep_q), tokenizer


def model_config(folder: Path) -> MoshiConfig:
    """The model's shape, from config.json."""
    from transformers.models.moshi.configuration_moshi import MoshiConfig as TheirConfig

    from align.codecs.mimi_sizes import FAULTS

    path = folder / kyutai.CONFIG
    try:
        theirs = TheirConfig.from_pretrained(folder, local_files_only=True)
    except FAULTS as error:
        raise UptakeError(f"{path}: transformers cannot read it ({one_line(error)}); copy the folder again") from error
    return _config(theirs, path)


def save(folder: Path, model: MoshiModel, codec: Codec, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Write the folder that `MoshiForConditionalGeneration.from_pretrained` and `load` read.

    Raises UptakeError for a model that their class cannot express, and for a codec that is not Mimi.
    """
    from transformers import EncodecFeatureExtractor, GenerationConfig
    from transformers.models.moshi.modeling_moshi import MoshiForConditionalGeneration

    from align.codecs.mimi import MimiCodec

    if not isinstance(codec, MimiCodec):
        raise UptakeError(
            f"export to hf: found the codec {type(codec).__name__}, expected Mimi, which {ARCHITECTURE} has inside; "
            "export this policy with --format kyutai"
        )
    config = _to_config(model.config, codec)
    with torch.device("meta"):
        theirs = MoshiForConditionalGeneration(config)
    state = _to_transformers(merged_weights(model, dtype), model.config)
    state |= {f"audio_encoder.{name}": tensor.cpu() for name, tensor in codec.model.state_dict().items()}
    theirs.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    theirs.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_k=25)  # what moshi.server does
    try:
        with quiet():
            theirs.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):  # which safetensors makes for their owner alone
            path.chmod((folder / kyutai.CONFIG).stat().st_mode)
        extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=codec.sample_rate)
        extractor.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise UptakeError(f"{folder}: cannot be written ({one_line(error)})") from error
    save_tokenizer(folder, tokenizer)


def _config(theirs: Any, path: Path) -> MoshiConfig:
    depth = theirs.depth_decoder_config
    for key, found, expected in (
        ("hidden_act", theirs.hidden_act, "silu"),
        ("num_key_value_heads", theirs.num_key_value_heads, theirs.num_attention_heads),
        ("rms_norm_eps", theirs.rms_norm_eps, 1e-8),
        ("depth_decoder_config.hidden_act", depth.hidden_act, "silu"),
        ("depth_decoder_config.num_key_value_heads", depth.num_key_value_heads, depth.num_attention_heads),
    ):
        if found != expected:
            raise UptakeError(f"{path}: {key} = {found!r} is not implemented, only {expected!r}, as published")
    q, dim = theirs.num_codebooks, theirs.hidden_size
    try:
        return MoshiConfig(
            dim=dim,
            num_layers=theirs.num_hidden_layers,
            num_heads=theirs.num_attention_heads,
            hidden_scale=hidden_scale(dim, nominal_width(dim, theirs.ffn_dim // 2)),
            context=theirs.sliding_window,
            max_period=theirs.rope_parameters["rope_theta"],
            n_q=2 * q,
            dep_q=q,
            card=theirs.audio_vocab_size,
            text_card=theirs.vocab_size,
            delays=_delays(q),
            depformer_dim=depth.hidden_size,
            depformer_num_layers=depth.num_hidden_layers,
            depformer_num_heads=depth.num_attention_heads,
            depformer_dim_feedforward=nominal_width(depth.hidden_size, depth.ffn_dim // 2),
        )
    except UptakeError as error:
        raise UptakeError(f"{path}: {error}") from error


def _to_config(c: MoshiConfig, codec: MimiCodec) -> Any:
    from transformers.models.moshi.configuration_moshi import MoshiConfig as TheirConfig

    published = dataclasses.replace(
        c,
        n_q=2 * c.dep_q,
        delays=_delays(c.dep_q),
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_weights_per_step_schedule=None,
    )
    for field in dataclasses.fields(c):
        found, expected = getattr(c, field.name), getattr(published, field.name)
        if found != expected:
            raise UptakeError(
                f"export to hf: the model has {field.name} = {found}, {ARCHITECTURE} only knows {expected}; export it "
                "with --format kyutai"
            )
    depth = {
        "hidden_size": c.depformer_dim, "input_size": c.dim, "num_hidden_layers": c.depformer_num_layers,
        "num_attention_heads": c.depformer_num_heads, "max_position_embeddings": c.dep_q + 1,
        "sliding_window": c.dep_q, "ffn_dim": 2 * gated_width(c.depformer_dim, c.depth_feedforward),
        "vocab_size": c.text_card, "audio_vocab_size": c.card, "num_codebooks": c.dep_q,
    }  # fmt: skip
    return TheirConfig(
        architectures=[ARCHITECTURE],
        vocab_size=c.text_card,
        hidden_size=c.dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        audio_vocab_size=c.card,
        max_position_embeddings=c.context,
        sliding_window=c.context,
        rope_parameters={"rope_type": "default", "rope_theta": float(c.max_period)},
        ffn_dim=2 * gated_width(c.dim, c.feedforward),
        num_codebooks=c.dep_q,
        audio_encoder_config=codec.model.config.to_dict(),
        depth_decoder_config=depth,
    )


def _delays(q: int) -> tuple[int, ...]:
    """Text and semantic codebooks at once, acoustic ones a frame late, for both speakers."""
    return (0, *((0,) + (1,) * (q - 1)) * 2)


def _pairs(c: MoshiConfig) -> Iterator[tuple[str, str]]:
    """Names of tensors that only differ in name (and, for norms, in leading dimensions of one)."""
    for k in range(c.n_q):
        yield f"emb.{k}.weight", f"embed_tokens.{k}.weight"
    yield "text_emb.weight", "decoder.model.embed_tokens.weight"
    yield "text_linear.weight", "decoder.lm_head.weight"
    yield "out_norm.alpha", "decoder.model.norm.weight"
    yield "depformer_text_emb.weight", "depth_decoder.text_embed_tokens.weight"
    for k in range(c.dep_q - 1):
        yield f"depformer_emb.{k}.weight", f"depth_decoder.embed_tokens.{k}.weight"
    for ours, theirs, layers in (
        ("transformer", "decoder.model", c.num_layers),
        ("depformer", "depth_decoder", c.depformer_num_layers),
    ):
        for i in range(layers):
            yield f"{ours}.layers.{i}.norm1.alpha", f"{theirs}.layers.{i}.input_layernorm.weight"
            yield f"{ours}.layers.{i}.norm2.alpha", f"{theirs}.layers.{i}.post_attention_layernorm.weight"
    for i in range(c.num_layers):
        a, b = f"transformer.layers.{i}", f"decoder.model.layers.{i}"
        yield f"{a}.self_attn.out_projs.0.weight", f"{b}.self_attn.o_proj.linear.weight"
        yield f"{a}.gating.linear_in.weight", f"{b}.mlp.fc1.weight"
        yield f"{a}.gating.linear_out.weight", f"{b}.mlp.fc2.weight"


def _stacks(c: MoshiConfig) -> Iterator[tuple[str, str]]:
    """Names of the depth transformer's weights: ours with the step left open, theirs with the steps stacked."""
    yield "depformer_in.{}.weight", "depth_decoder.input_projections.weight"
    yield "linears.{}.weight", "depth_decoder.lm_heads.weight"
    for i in range(c.depformer_num_layers):
        a, b = f"depformer.layers.{i}", f"depth_decoder.layers.{i}"
        yield f"{a}.self_attn.out_projs.{{}}.weight", f"{b}.self_attn.o_proj.linear.weight"
        yield f"{a}.gating.{{}}.linear_in.weight", f"{b}.mlp.fc1.weight"
        yield f"{a}.gating.{{}}.linear_out.weight", f"{b}.mlp.fc2.weight"


def _to_transformers(ours: dict[str, Tensor], c: MoshiConfig) -> dict[str, Tensor]:
    theirs = {b: ours[a].flatten() if a.endswith(".alpha") else ours[a] for a, b in _pairs(c)}
    for a, b in _stacks(c):
        theirs[b] = torch.stack([ours[a.format(k)] for k in range(c.dep_q)])
    for i in range(c.num_layers):
        q, k, v = ours[f"transformer.layers.{i}.self_attn.in_projs.0.weight"].chunk(3)
        for kind, weight in (("q", to_halves(q, c.num_heads)), ("k", to_halves(k, c.num_heads)), ("v", v)):
            theirs[f"decoder.model.layers.{i}.self_attn.{kind}_proj.linear.weight"] = weight
    for i in range(c.depformer_num_layers):
        steps = [ours[f"depformer.layers.{i}.self_attn.in_projs.{k}.weight"].chunk(3) for k in range(c.dep_q)]
        for kind, weights in zip("qkv", zip(*steps, strict=True), strict=True):
            theirs[f"depth_decoder.layers.{i}.self_attn.{kind}_proj.linear.weight"] = torch.stack(weights)
    return theirs


def _from_transformers(theirs: dict[str, Tensor], c: MoshiConfig) -> dict[str, Tensor]:
    ours = {a: theirs[b].view(1, 1, -1) if a.endswith(".alpha") else theirs[b] for a, b in _pairs(c)}
    for a, b in _stacks(c):
        ours |= {a.format(k): weight for k, weight in enumerate(theirs[b].unbind())}
    for i in range(c.num_layers):
        prefix = f"decoder.model.layers.{i}.self_attn"
        q, k, v = (theirs[f"{prefix}.{kind}_proj.linear.weight"] for kind in "qkv")
        packed = torch.cat((to_neighbours(q, c.num_heads), to_neighbours(k, c.num_heads), v))
        ours[f"transformer.layers.{i}.self_attn.in_projs.0.weight"] = packed
    for i in range(c.depformer_num_layers):
        prefix = f"depth_decoder.layers.{i}.self_attn"
        stacks = [theirs[f"{prefix}.{kind}_proj.linear.weight"] for kind in "qkv"]
        for step, weight in enumerate(torch.cat(stacks, dim=1).unbind()):  # (dep_q, 3 · width, width)
            ours[f"depformer.layers.{i}.self_attn.in_projs.{step}.weight"] = weight
    return ours

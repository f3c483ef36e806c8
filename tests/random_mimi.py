"""A Mimi of random weights, small, with the frames, rates and number of codebooks of the released one."""

from __future__ import annotations

import torch
from transformers import MimiConfig, MimiModel

from align.codecs.mimi import MimiCodec


def random_mimi(card: int, seed: int = 0, codebooks: int = 8) -> MimiCodec:
    """24 kHz, 1920 samples a frame, `codebooks` of `card` entries (a power of two); every part of it matters."""
    config = MimiConfig(
        hidden_size=16, num_filters=2, codebook_size=card, codebook_dim=8, upsample_groups=16,
        vector_quantization_hidden_dimension=8, num_quantizers=codebooks, num_hidden_layers=2, intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=20,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MimiModel(config)
        for key, tensor in model.state_dict().items():
            if "embed_sum" in key or "layernorm" in key:
                tensor.copy_(torch.randn_like(tensor))
            elif "q_proj" in key or "k_proj" in key:
                tensor.copy_(torch.randn_like(tensor) * 0.5)
            elif "layer_scale" in key:
                tensor.fill_(0.5)
        codes = torch.randint(card, (1, codebooks, 20))
    codec = MimiCodec(model, codebooks)
    last = codec.model.decoder.decoder_seanet.layers[-1].conv
    with torch.no_grad():
        loudest = codec.model.decode(codes).audio_values.abs().max()
        for tensor in (last.weight, last.bias):  # as loud as audio, so that an absolute error means something
            tensor /= loudest
    return codec

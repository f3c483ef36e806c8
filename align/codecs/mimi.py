"""Mimi behind the codec protocol: transformers' `MimiModel`, streamed one frame at a time in both directions.

transformers streams Mimi's encoder only, for a whole batch at once: its caches cannot restart one row, and its decoder
keeps no state, so a stream decoded frame by frame is wrong. Here every layer with memory has an explicit causal state:

* convolution: the last `(kernel - 1) * dilation + 1 - stride` inputs, put in front of the next chunk;
* transposed convolution: the outputs past the chunk's end, added to the beginning of the next chunk;
* transformer: a ring of the last `sliding_window` (rotated) keys and values, and each row's own position.

The weights and the layers are transformers'; only the walk over them is ours. What comes out equals the offline
`MimiModel.encode` and `.decode` of the whole stream: codes equal, samples (clipped to [-1, 1]) to fp32 rounding.
Mimi: Défossez et al. 2024, "Moshi", arXiv 2410.00037 §3.3. Written against transformers 5.23.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mimi.configuration_mimi import MimiConfig
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiConvTranspose1d,
    MimiEuclideanCodebook,
    MimiModel,
    MimiResnetBlock,
    MimiTransformerModel,
)

from align.codecs.mimi_sizes import FAULTS, check_codewords, check_config
from align.files import one_line, read_json, read_weights
from envs.errors import UptakeError


@dataclass
class MimiState:
    """Everything a batch of streams remembers, both directions. Owned by the caller, changed in place.

    Every tensor has the batch first and all zeros means "nothing heard yet", so that resetting and forking a row are
    one assignment each. Encoding and decoding advance independently.
    """

    batch: int
    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Name of the layer -> its memory, (B, ...); allocated as zeros when first used."""

    def memory(self, name: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """The memory `name`, (B, *shape): the tensor itself, to be written in place."""
        if name not in self.tensors:
            with torch.inference_mode(False):  # made in inference mode it could not be changed outside of it
                self.tensors[name] = torch.zeros(self.batch, *shape, dtype=dtype, device=self.device)
        return self.tensors[name]


class _Ring:
    """One transformer's keys and values for one chunk, as the cache that `MimiAttention` calls `update` on."""

    def __init__(self, state: MimiState, name: str, position: Tensor, chunk: int, window: int) -> None:
        self.state, self.name = state, name
        # The oldest query of a chunk still sees window - 1 keys before it, when its own chunk is already written.
        self.size = window + chunk - 1
        self.query = position[:, None] + torch.arange(chunk, device=position.device)  # (B, n)
        self.slots = self.query % self.size  # (B, n)
        last = self.query[:, -1:]  # (B, 1)
        slot = torch.arange(self.size, device=position.device)  # (S,)
        held = (last - (last - slot) % self.size)[:, None]  # (B, 1, S): position of the key each slot holds; < 0: none
        query = self.query[:, :, None]  # (B, n, 1)
        visible = (held >= 0) & (held <= query) & (held > query - window)
        # Additive, so that it means the same under transformers' eager and sdpa attention.
        lowest = torch.finfo(torch.float32).min
        self.mask = torch.zeros(visible.shape, device=position.device).masked_fill(~visible, lowest)[:, None]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, D) keys and values; return all that is held, (B, H, S, D) each, for `mask`."""
        _, heads, _, width = keys.shape
        row = torch.arange(keys.shape[0], device=keys.device)[:, None]  # (B, 1)
        rings = []
        for kind, new in (("keys", keys), ("values", values)):
            ring = self.state.memory(f"{self.name}.{layer_idx}.{kind}", (heads, self.size, width))
            ring[row, :, self.slots] = new.transpose(1, 2)
            rings.append(ring)
        return rings[0], rings[1]


class MimiCodec:
    """24 kHz speech <-> 8 codes every 80 ms (1920 samples). See `envs.codec.Codec` for the protocol.

    Construct from a model in memory, or with `MimiCodec.load(folder)`. It holds no stream state of its own, so one
    codec serves any number of states. Runs in fp32 where its weights are (`to`); numpy at the boundary.
    """

    def __init__(self, model: MimiModel, codebooks: int = 8) -> None:
        config = model.config
        _check_config(config, codebooks)
        self.model = model.eval()
        nn.Module.to(model, dtype=torch.float32)
        # A kernel's rounding depends on its operands' alignment, and weights mapped from a file have whatever the file
        # gives them: copied, the same weights give the same bits however they were loaded.
        for weights in itertools.chain(self.model.parameters(), self.model.buffers()):
            weights.data = weights.data.clone()
        self.sample_rate: int = config.sampling_rate
        self.frame: int = config.frame_size
        self.codebooks = codebooks
        self.card: int = config.codebook_size
        self._names = {module: name for name, module in self.model.named_modules()}

    @classmethod
    def load(cls, folder: str | Path, codebooks: int = 8) -> MimiCodec:
        """The codec in `folder` (config.json, model.safetensors, as `kyutai/mimi` is published). Never downloads.

        Raises `UptakeError`, one line, if a file is missing, truncated, or is not a Mimi in transformers' layout.
        """
        folder = Path(folder)
        config_file, weights_file = folder / "config.json", folder / "model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise UptakeError(f"{file}: missing; put config.json and model.safetensors of kyutai/mimi there")
        read_weights(weights_file)
        settings = read_json(config_file)
        if (kind := settings.get("model_type")) != "mimi":
            raise UptakeError(f"{config_file}: model_type is {kind!r}, not 'mimi'; use the files of kyutai/mimi")
        check_config(settings, config_file)
        try:
            config = MimiConfig.from_pretrained(folder, local_files_only=True)
        except FAULTS as error:
            raise UptakeError(f"{config_file}: not a Mimi config ({one_line(error)}); copy the file again") from error
        try:
            loaded: Any = MimiModel.from_pretrained(
                folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except FAULTS as error:
            raise UptakeError(f"{weights_file}: does not fit config.json ({one_line(error)})") from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise UptakeError(
                f"{weights_file}: {len(missing)} tensors missing, e.g. {missing[0]!r}; "
                "use the transformers layout of kyutai/mimi, not Moshi's tokenizer-*.safetensors"
            )
        check_codewords(model, weights_file)
        return cls(model, codebooks)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the states that are made from now on."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> None:
        """Move the weights. States that were made before stay behind: make new ones."""
        with torch.inference_mode(False):  # a weight made in inference mode could not be changed outside of it
            nn.Module.to(self.model, device=device)
        for module in self.model.modules():
            if isinstance(module, MimiEuclideanCodebook):
                module._embed = None  # computed from the weights where it was first used, and kept there

    def init_state(self, batch: int) -> MimiState:
        """A state of `batch` streams that have heard and said nothing."""
        return MimiState(batch, self.device)

    @torch.no_grad()
    def encode(self, state: MimiState, pcm: np.ndarray) -> np.ndarray:
        """Next frame in, (B, frame) float32 in [-1, 1] -> its codes, (B, codebooks) int64."""
        pcm = np.asarray(pcm, dtype=np.float32)
        _check_shape("pcm", pcm, (state.batch, self.frame))
        if not np.isfinite(pcm).all():
            rows = np.flatnonzero(~np.isfinite(pcm).all(axis=1)).tolist()
            raise UptakeError(f"pcm to encode: NaN or infinite samples in rows {rows}; repair the audio")
        encoder = self.model.encoder
        position = state.memory("encoder.position", dtype=torch.int64)
        x = torch.tensor(pcm, device=self.device)[:, None]  # (B, 1, frame)
        x = self._layers(encoder.encoder_seanet.layers, x, state, position)  # (B, C, n)
        x = self._transformer(encoder.encoder_transformer, x, state, position)
        chunk = x.shape[-1]
        x = self._conv(encoder.downsample, x, state, position)  # (B, C, 1)
        position += chunk
        codes = self.model.quantizer.encode(x, self.codebooks)  # (K, B, 1)
        return np.ascontiguousarray(codes[..., 0].T.cpu().numpy())

    @torch.no_grad()
    def decode(self, state: MimiState, codes: np.ndarray) -> np.ndarray:
        """Next codes in, (B, codebooks) integers below `card` -> their samples, (B, frame) float32 in [-1, 1]."""
        codes = np.asarray(codes, dtype=np.int64)
        _check_shape("codes", codes, (state.batch, self.codebooks))
        if codes.min() < 0 or codes.max() >= self.card:
            raise UptakeError(
                f"codes to decode: {codes.min()}..{codes.max()} exceed 0..{self.card - 1}; drop special ids"
            )
        decoder = self.model.decoder
        position = state.memory("decoder.position", dtype=torch.int64)
        x = self.model.quantizer.decode(torch.tensor(codes, device=self.device)[..., None])  # (B, C, 1)
        x = self._layers([decoder.upsample], x, state, position)  # (B, C, n)
        x = self._transformer(decoder.decoder_transformer, x, state, position)
        chunk = x.shape[-1]
        x = self._layers(decoder.decoder_seanet.layers, x, state, position)  # (B, 1, frame)
        position += chunk
        return np.ascontiguousarray(x[:, 0].clamp(-1.0, 1.0).cpu().numpy())

    @torch.no_grad()
    def reset(self, state: MimiState, rows: np.ndarray | Sequence[int]) -> None:
        """Start `rows` (indices, or a (B,) bool mask) afresh, in both directions; the others go on."""
        index = self._rows(state, rows)
        for tensor in state.tensors.values():
            tensor[index] = 0

    @torch.no_grad()
    def fork(self, state: MimiState, source: int, rows: np.ndarray | Sequence[int]) -> None:
        """Make `rows` (indices, or a (B,) bool mask) continue from where row `source` is."""
        index = self._rows(state, rows)
        for tensor in state.tensors.values():
            tensor[index] = tensor[source].clone()

    def _rows(self, state: MimiState, rows: np.ndarray | Sequence[int]) -> Tensor:
        given = np.asarray(rows)
        index = np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)
        return torch.from_numpy(index).to(state.device)

    def _layers(self, layers: Iterable[nn.Module], x: Tensor, state: MimiState, position: Tensor) -> Tensor:
        """Run a stack of SEANet layers over a chunk, (B, C, L) -> (B, C', L')."""
        for layer in layers:
            if isinstance(layer, MimiConv1d):
                x = self._conv(layer, x, state, position)
            elif isinstance(layer, MimiConvTranspose1d):
                x = self._transpose(layer, x, state)
            elif isinstance(layer, MimiResnetBlock):
                x = self._layers([layer.shortcut], x, state, position) + self._layers(layer.block, x, state, position)
            else:  # activations and identities remember nothing
                x = layer(x)
        return x

    def _conv(self, layer: MimiConv1d, x: Tensor, state: MimiState, position: Tensor) -> Tensor:
        conv = layer.conv
        context = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
        if context > 0:
            tail = state.memory(self._names[layer], (conv.in_channels, context))
            left = tail
            if layer.pad_mode == "replicate":  # a stream begins as if its first sample had always been there
                left = torch.where((position == 0)[:, None, None], x[..., :1], tail)
            x = torch.cat([left, x], dim=-1)
            tail.copy_(x[..., -context:])
        return conv(x)

    def _transpose(self, layer: MimiConvTranspose1d, x: Tensor, state: MimiState) -> Tensor:
        conv = layer.conv
        stride, overlap = conv.stride[0], conv.kernel_size[0] - conv.stride[0]
        ready = x.shape[-1] * stride
        y = F.conv_transpose1d(x, conv.weight, None, conv.stride, groups=conv.groups)  # (B, C, ready + overlap)
        if overlap > 0:
            tail = state.memory(self._names[layer], (conv.out_channels, overlap))
            y[..., :overlap] += tail
            tail.copy_(y[..., ready:])
        y = y[..., :ready]
        return y if conv.bias is None else y + conv.bias[:, None]  # after the overlap, or it would be added twice

    def _transformer(self, model: MimiTransformerModel, x: Tensor, state: MimiState, position: Tensor) -> Tensor:
        ring = _Ring(state, self._names[model], position, x.shape[-1], model.config.sliding_window)
        x = x.transpose(1, 2)  # (B, n, C)
        rotary = model.rotary_emb(x, ring.query)
        for layer in model.layers:
            x = layer(x, attention_mask=ring.mask, past_key_values=ring, position_embeddings=rotary)
        return x.transpose(1, 2)


def _check_config(config: MimiConfig, codebooks: int) -> None:
    """Refuse what cannot be streamed, or does not have the codebooks asked for."""
    if config.encoder_config is None or config.decoder_config is None:
        raise UptakeError("Mimi config: encoder_config or decoder_config is null; the codec needs both halves")
    if not config.use_causal_conv or config.trim_right_ratio != 1.0:
        raise UptakeError(
            f"Mimi config: use_causal_conv={config.use_causal_conv}, trim_right_ratio={config.trim_right_ratio}; "
            "streaming needs True and 1.0"
        )
    if config.pad_mode not in ("constant", "replicate"):
        raise UptakeError(f"Mimi config: pad_mode={config.pad_mode!r}; streaming needs 'constant' or 'replicate'")
    if config.audio_channels != 1:
        raise UptakeError(f"Mimi config: audio_channels={config.audio_channels}; streams are mono, so it must be 1")
    frame = math.prod(config.upsampling_ratios or []) * config.latent_stride
    if frame != config.frame_size or config.latent_stride < 2:
        raise UptakeError(f"Mimi config: frame_rate gives {frame} samples a frame, not {config.frame_size}; drop it")
    if not config.num_semantic_quantizers < codebooks <= config.num_quantizers:
        raise UptakeError(f"Mimi: {codebooks} codebooks asked for, the model has {config.num_quantizers}")


def _check_shape(what: str, array: np.ndarray, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        raise UptakeError(f"{what}: shape {array.shape}, expected {shape} (streams, values of one frame)")

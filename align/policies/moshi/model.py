"""A Moshi-class language model: a temporal transformer over frames, a depth transformer over codebooks.

Our own implementation in the parameter layout of the published checkpoints (``moshi`` 0.2.13), held to that package by
a parity test. It differs in what training asks of it: every weight is an ``nn.Linear`` or ``nn.Embedding`` that is
called as a module (PEFT and ZeRO-3 work as they are), the depth transformer can be scored on a subset of the frames,
what streams (``streaming.py``) runs the same modules, and logits are float32 where the weights are bfloat16.

Streams of ``codes (B, K, T)``: text, then ``dep_q`` agent codebooks, then the user's. Stream ``k`` enters the network
``delays[k]`` frames late, behind one frame of initial tokens; logits come back aligned with ``codes``. A code of -1 is
"nothing": its embedding is zero and it is no target.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.policies.moshi.config import MoshiConfig, gated_width

ZERO = -1
"""Code that embeds to zero and is masked as a target."""


class Output(NamedTuple):
    """What :meth:`MoshiModel.forward` returns, aligned with the codes that it was given."""

    hidden: Tensor  # (B, T, D)
    text_logits: Tensor  # (B, T, text_card) float32
    audio_logits: Tensor | None  # (B, dep_q, T, card) float32
    audio_mask: Tensor | None  # (B, dep_q, T)


class DepthScores(NamedTuple):
    """Logits and targets of the depth transformer for N selected frames of the model's (delayed) clock."""

    logits: Tensor  # (N, dep_q, card) float32
    targets: Tensor  # (N, dep_q) long; undefined where the mask is False
    mask: Tensor  # (N, dep_q) bool


class Embedding(nn.Embedding):
    """An embedding in which :data:`ZERO` is the zero vector."""

    def reset_parameters(self) -> None:
        # Without memory there is nothing to fill, and torch would import its compiler, for seconds, to do it.
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, codes: Tensor) -> Tensor:
        if _seen_whole(codes):
            return super().forward(codes)
        return super().forward(codes.clamp(min=0)) * (codes >= 0).unsqueeze(-1).to(self.weight.dtype)


def _seen_whole(codes: Tensor) -> bool:
    """Whether no code is :data:`ZERO`, as far as is looked: it saves a pass over (B, T, D) on a CPU, but an accelerator
    would have to be waited for."""
    return codes.device.type == "cpu" and codes.numel() > 0 and bool(codes.min() >= 0)


class Head(nn.Linear):
    """Logits in float32 whatever the precision of the weights.

    Rounded to bfloat16 they are off by up to 2e-3 of their size, and so many are equal that a top k lets more through.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype.itemsize >= 4:
            return F.linear(x, self.weight, self.bias)
        logits = _Unrounded.apply(x, self.weight)
        return logits if self.bias is None else logits + self.bias.float()


class _Unrounded(torch.autograd.Function):
    """``x (..., D)`` and ``weight (V, D)``, both of 16 bits, to products ``(..., V)`` that stay as they were summed.

    The way back rounds the gradient as a linear layer of 16 bits does; nothing of 32 bits is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.is_cuda:  # cuBLAS sums in float32 anyway: only its last rounding is left out, and no weight is copied
            return torch.mm(x.flatten(0, -2), weight.T, out_dtype=torch.float32).unflatten(0, x.shape[:-1])
        return F.linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        wanted_x, wanted_weight = ctx.needs_input_grad
        return (
            grad @ weight if wanted_x else None,
            grad.flatten(0, -2).T @ x.flatten(0, -2) if wanted_weight else None,
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 whatever the input (``rms_norm_f32``): torch's kernel is so inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.alpha.view(-1), eps=1e-8)


class Gating(nn.Module):
    """Gated feed-forward block: ``out(silu(a) * b)`` with ``a, b = in(x)``."""

    def __init__(self, dim: int, feedforward: int) -> None:
        super().__init__()
        hidden = gated_width(dim, feedforward)
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.linear_in(x).chunk(2, dim=-1)
        return self.linear_out(F.silu(gate) * value)


class Attention(nn.Module):
    """Projections of self-attention, one pair per set of weights."""

    def __init__(self, dim: int, num_heads: int, weights: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.out_projs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(weights))
        self.in_projs = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(weights))

    def qkv(self, x: Tensor, weight: int = 0) -> Tensor:
        """``x (..., D)`` to queries, keys and values ``(..., 3, H, D / H)``."""
        return self.in_projs[weight](x).unflatten(-1, (3, self.num_heads, -1))


class Layer(nn.Module):
    """Pre-norm transformer layer. ``weights`` is None for one set of weights, or the number of per-step sets."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, weights: int | None = None) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, weights or 1)
        self.norm1 = RMSNorm(dim)
        self.norm2 = RMSNorm(dim)
        self.gating: nn.Module
        if weights is None:
            self.gating = Gating(dim, feedforward)
        else:
            self.gating = nn.ModuleList(Gating(dim, feedforward) for _ in range(weights))

    def full(self, x: Tensor, frequencies: Tensor, window: Tensor | None) -> Tensor:
        """A whole sequence ``x (B, T, D)`` at once; ``frequencies (T, 1, 1, D / H / 2)``, ``window (T, T)`` or None."""
        batch, frames, dim = x.shape
        qkv = self.self_attn.qkv(self.norm1(x))  # (B, T, 3, H, D / H)
        qk, v = qkv.split((2, 1), dim=2)
        q, k = rotate(qk, frequencies).transpose(1, 3).unbind(2)  # each (B, H, T, D / H)
        v = v.squeeze(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, window, is_causal=window is None)
        x = x + self.self_attn.out_projs[0](mixed.transpose(1, 2).reshape(batch, frames, dim))
        return x + self.feed(self.norm2(x))

    def feed(self, x: Tensor, weight: int = 0) -> Tensor:
        """The feed-forward half, on an input that is already normed."""
        return self.gating[weight](x) if isinstance(self.gating, nn.ModuleList) else self.gating(x)


class Stack(nn.Module):
    """Layers under the name that the checkpoint gives them."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)  # type: ignore[arg-type]


def rotary_frequencies(positions: Tensor, head_dim: int, max_period: float) -> Tensor:
    """Unit complex numbers of the rotary embedding, ``positions (...)`` to ``(..., head_dim / 2)``."""
    steps = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
    angles = positions.float().unsqueeze(-1) * torch.exp(steps * (-math.log(max_period) * 2 / head_dim))
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate pairs of neighbouring features; ``frequencies`` broadcasts against ``x (..., head_dim / 2)``."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * frequencies).flatten(-2).to(x.dtype)


class MoshiModel(nn.Module):
    """Temporal and depth transformer; parameter names equal those of the published ``model.safetensors``.

    ``seed`` fixes the initial weights (truncated normal, std ``1/sqrt(fan_in)``) without touching the global RNG.
    """

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Whether the layers' activations are computed again in the backward pass instead of being kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(config)
            self._initialise()

    def _build(self, c: MoshiConfig) -> None:
        self.emb = nn.ModuleList(Embedding(c.card + 1, c.dim) for _ in range(c.n_q))
        self.text_emb = Embedding(c.text_card + 1, c.dim)
        self.text_linear = Head(c.dim, c.text_card, bias=False)
        self.transformer = Stack([Layer(c.dim, c.num_heads, c.feedforward) for _ in range(c.num_layers)])
        self.out_norm = RMSNorm(c.dim)
        width = c.depformer_dim
        self.depformer_in = nn.ModuleList(nn.Linear(c.dim, width, bias=False) for _ in range(max(c.depth_inputs) + 1))
        # The last codebook is never an input of the depth transformer.
        self.depformer_emb = nn.ModuleList(Embedding(c.card + 1, width) for _ in range(c.dep_q - 1))
        self.depformer_text_emb = Embedding(c.text_card + 1, width)
        weights = max(c.depth_weights) + 1 if c.depformer_weights_per_step else None
        self.depformer = Stack(
            [Layer(width, c.depformer_num_heads, c.depth_feedforward, weights) for _ in range(c.depformer_num_layers)]
        )
        self.linears = nn.ModuleList(Head(width, c.card, bias=False) for _ in range(c.dep_q))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
                std = module.weight.shape[1] ** -0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    @property
    def device(self) -> torch.device:
        return self.text_emb.weight.device

    def initial_codes(self) -> Tensor:
        """Codes of the frame before the first: ``(K,)`` long."""
        initial = torch.full((self.config.num_streams,), self.config.card, dtype=torch.long, device=self.device)
        initial[0] = self.config.text_card
        return initial

    def delay(self, codes: Tensor) -> Tensor:
        """Codes on the model's clock: ``codes (B, K, T)`` to ``(B, K, T + 1)``, led by the initial frame.

        Frame ``s`` of the result is what enters the network at step ``s``; frame ``s + 1`` is what step ``s`` predicts.
        """
        batch, streams, frames = codes.shape
        if streams != self.config.num_streams:
            raise ValueError(f"codes have {streams} streams, the model has {self.config.num_streams}")
        delayed = self.initial_codes().view(1, -1, 1).repeat(batch, 1, frames + 1)
        for k, lag in enumerate(self.config.delays):
            delayed[:, k, 1 + lag :] = codes[:, k, : frames - lag]
        return delayed

    def embed(self, delayed: Tensor) -> Tensor:
        """Sum of all streams' embeddings: ``(B, K, T)`` to ``(B, T, D)``."""
        x = self.text_emb(delayed[:, 0])
        for k, embedding in enumerate(self.emb):
            x = x + embedding(delayed[:, 1 + k])
        return x

    def text_forward(self, codes: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Teacher-forced pass of the temporal transformer; ``told (B, D)`` is added to the input of every frame.

        ``codes (B, K, T)`` to ``hidden (B, T, D)`` and ``text_logits (B, T, text_card)``; both at ``t`` have seen the
        frames before ``t`` only, so ``text_logits[:, t]`` predicts ``codes[:, 0, t]``.
        """
        c = self.config
        x = self.embed(self.delay(codes)[:, :, :-1])
        if told is not None:
            x = x + told.unsqueeze(1).to(x.dtype)
        _, frames, dim = x.shape
        frequencies = rotary_frequencies(torch.arange(frames, device=x.device), dim // c.num_heads, c.max_period)
        frequencies = frequencies[:, None, None]  # (T, 1, 1, D / H / 2)
        window = None
        if frames > c.context:
            ones = torch.ones(frames, frames, dtype=torch.bool, device=x.device)
            window = ones.tril().triu(1 - c.context)
        for layer in self.transformer:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer.full, x, frequencies, window, use_reentrant=False)
            else:
                x = layer.full(x, frequencies, window)
        hidden = self.out_norm(x)
        return hidden, self.text_linear(hidden)

    def depth_scores(
        self, hidden: Tensor, codes: Tensor, frames: Tensor | None = None, codebooks: int | None = None
    ) -> DepthScores:
        """Teacher-forced pass of the depth transformer over the N frames that ``frames (B, T)`` bool selects.

        ``codebooks`` (None: all ``dep_q``) is after how many it stops; they are sampled in order, so the first ones do
        not depend on the rest.

        The frames are the model's own: at step ``s`` it predicts ``codes[:, k, s - delays[k]]``. Selecting a random
        subset gives an unbiased loss for a fraction of the work. Nothing is scattered back: made for training.
        """
        c = self.config
        last = 1 + (c.dep_q if codebooks is None else codebooks)
        targets = self.delay(codes)[:, :last, 1:].transpose(1, 2)  # (B, T, 1 + dep_q)
        lags = torch.tensor(c.delays[1:last], device=codes.device)
        started = torch.arange(codes.shape[2], device=codes.device)[:, None] >= lags  # (T, dep_q)
        mask = (targets[..., 1:] != ZERO) & started
        if frames is None:
            hidden, targets, mask = hidden.flatten(0, 1), targets.flatten(0, 1), mask.flatten(0, 1)
        else:
            hidden, targets, mask = hidden[frames], targets[frames], mask[frames]
        return DepthScores(self._depth(hidden, targets[:, :-1]), targets[:, 1:], mask)

    def _depth(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """``hidden (N, D)``, ``tokens (N, dep_q)`` (text, then codebooks) to logits ``(N, dep_q, card)``."""
        c, steps = self.config, tokens.shape[1]
        embeddings = [self.depformer_text_emb, *self.depformer_emb]
        # Codebooks lead, so that each one's slice is a contiguous matrix for its own weights.
        x = torch.stack(
            [self.depformer_in[i](hidden) + embeddings[k](tokens[:, k]) for k, i in enumerate(c.depth_inputs[:steps])]
        )  # (dep_q, N, width)
        weights = c.depth_weights[:steps]
        for layer in self.depformer:
            attention = layer.self_attn
            # unbind, not indexing: the gradient of an index fills a tensor of zeros for every codebook.
            qkv = torch.stack([attention.qkv(y, w) for y, w in zip(layer.norm1(x), weights, strict=True)])
            q, k, v = qkv.permute(2, 1, 3, 0, 4)  # each (N, H, dep_q, width / H)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3).flatten(2)
            x = x + torch.stack([attention.out_projs[w](y) for y, w in zip(mixed, weights, strict=True)])
            x = x + torch.stack([layer.feed(y, w) for y, w in zip(layer.norm2(x), weights, strict=True)])
        return torch.stack([self.linears[k](y) for k, y in enumerate(x)], dim=1)

    def depth_forward(self, hidden: Tensor, codes: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Depth logits aligned with the codes: ``(B, dep_q, T, card)`` and the mask ``(B, dep_q, T)`` of valid ones.

        Not valid, and NaN: what a delay pushes past the last frame, targets of -1, and what ``frames`` leaves out.
        """
        c = self.config
        batch, _, length = codes.shape
        scores = self.depth_scores(hidden, codes, frames)
        chosen = frames if frames is not None else torch.ones(batch, length, dtype=torch.bool, device=codes.device)
        row, step = chosen.nonzero(as_tuple=True)
        logits = scores.logits.new_full((batch, c.dep_q, length, c.card), math.nan)
        mask = torch.zeros(batch, c.dep_q, length, dtype=torch.bool, device=codes.device)
        for k in range(c.dep_q):
            keep = scores.mask[:, k]
            at = (row[keep], torch.full_like(row[keep], k), step[keep] - c.delays[1 + k])
            logits = logits.index_put(at, scores.logits[keep, k])
            mask[at] = True
        return logits, mask

    def forward(self, codes: Tensor, depth: bool = True, frames: Tensor | None = None) -> Output:
        """Both passes at once; ``depth=False`` leaves the audio out."""
        hidden, text_logits = self.text_forward(codes)
        if not depth:
            return Output(hidden, text_logits, None, None)
        return Output(hidden, text_logits, *self.depth_forward(hidden, codes, frames))

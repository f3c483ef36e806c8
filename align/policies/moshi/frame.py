"""One frame of a batch of rows, from device tensors to device tensors.

Everything that varies from frame to frame is read from tensors that keep their address, so that on a GPU a whole frame
can be captured once and replayed (`align.policies.graphs`): nothing in `advance` waits for the device, and what the
host decides is in `Sight`. A host that knows more of its rows says so there and gets the same frame for less work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from align.policies.moshi.model import MoshiModel, rotary_frequencies, rotate
from align.policies.sampling import SAMPLE, Sampling, draw, truncate

_SLOTS = 64
"""The key-value cache grows by so many frames (5 s), up to `context`: twice as many as before would be gigabytes that
most conversations never fill."""


class Sight(NamedTuple):
    """What the host decides of a frame. The defaults hold for any rows."""

    slots: int
    """Attention sees so many of the key-value cache; some rows may not have filled them yet."""
    together: int | None = None
    """The slot that all rows write to; None: each row its own."""
    masked: bool = True
    """Whether some row may see fewer than `slots`."""


class Rows:
    """The tensors of `batch` rows: what they remember, what a frame is given, and what it returns."""

    def __init__(self, model: MoshiModel, batch: int) -> None:
        c, device, dtype = model.config, model.device, model.text_linear.weight.dtype
        own, heard = 1 + c.dep_q, c.n_q - c.dep_q
        self.initial = model.initial_codes()  # (K,)
        self.inputs = self.initial.repeat(batch, 1)  # (B, K): what enters next, user codes of delay 0 aside
        slots = min(c.context, _SLOTS)
        shape = (2, batch, c.num_heads, slots, c.dim // c.num_heads)
        # A tensor a layer, so that growing holds one of them twice and not all. Keys are stored rotated.
        self.cache = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(c.num_layers)]
        depth = (c.depformer_num_layers, 2, batch, c.depformer_num_heads, c.dep_q)
        self.depth_cache = torch.zeros(*depth, c.depformer_dim // c.depformer_num_heads, device=device, dtype=dtype)
        self.late = torch.tensor(c.delays[own:], device=device) == 1  # (Q,)
        self._unborn = np.where(np.array(c.delays[:own]) == 1, c.card, SAMPLE)  # (1 + dep_q,): before its first frame
        self.index = torch.arange(batch, device=device)
        self.tokens = torch.zeros(batch, own, dtype=torch.long, device=device)
        self.logp = torch.zeros(batch, own, device=device)

        # Page-locked, so that the host does not wait for the copies; on a CPU the device's tensors are the host's.
        locked = device.type == "cuda"
        self._host = torch.zeros(batch, heard + own + 2, dtype=torch.long, pin_memory=locked)
        self._host_uniform = torch.zeros(batch, own, pin_memory=locked)
        self._given, self.uniform = self._host.to(device), self._host_uniform.to(device)
        self.heard, self.pins, steps, active = self._given.split((heard, own, 1, 1), dim=1)
        self.steps, self.active = steps[:, 0], active[:, 0]  # (B,)

    def give(
        self, heard: np.ndarray, forced: np.ndarray | None, steps: np.ndarray, active: np.ndarray, uniform: np.ndarray
    ) -> None:
        """Put in what the next frame depends on; see `MoshiStream.step`. `uniform (B, 1 + dep_q)` float32."""
        host, ear, own = self._host.numpy(), heard.shape[1], uniform.shape[1]
        host[:, :ear] = heard
        pins = host[:, ear : ear + own]
        pins[:] = SAMPLE if forced is None else forced
        begins = steps == 0
        if begins.any():  # a delayed stream is the initial token then, whatever is forced
            pins[begins] = np.where(self._unborn == SAMPLE, pins[begins], self._unborn)
        host[:, -2], host[:, -1] = steps, active
        self._host_uniform.numpy()[:] = uniform
        if self._given is not self._host:
            self._given.copy_(self._host, non_blocking=True)
            self.uniform.copy_(self._host_uniform, non_blocking=True)

    def taken(self) -> tuple[np.ndarray, np.ndarray]:
        """The frame's tokens and log-probs, (B, 1 + dep_q) each, text first. Waits for the device."""
        return self.tokens.to("cpu", copy=True).numpy(), self.logp.to("cpu", copy=True).numpy()

    def grow(self, slots: int, context: int) -> bool:
        """Make room for `slots` frames; returns whether the cache has moved."""
        have = self.cache[0].shape[3]
        if slots <= have:
            return False
        wanted = min(-(-slots // _SLOTS) * _SLOTS, context)
        with torch.inference_mode(False):  # `fork` writes to it outside of inference mode
            for n, old in enumerate(self.cache):
                self.cache[n] = old.new_zeros(*old.shape[:3], wanted, old.shape[4])
                self.cache[n][:, :, :, :have] = old
        return True


def advance(model: MoshiModel, sampling: Sampling, rows: Rows, sight: Sight) -> None:
    """Run the frame that `rows` was given: its tokens and log-probs, the caches, and what enters next.

    Log-probs of forced text are 0; those of codebooks are of what was sampled, also where it was then replaced.
    """
    c = model.config
    own = 1 + c.dep_q
    begun = ((rows.steps > 0) & (rows.active != 0))[:, None]
    # Codes of delay 0 enter now; those of delay 1 were put into `inputs` by the call before.
    entering = rows.inputs.clone()
    entering[:, own:] = torch.where(begun & ~rows.late, rows.heard, entering[:, own:])

    hidden, logits = _temporal(model, rows, entering, sight)
    truncated = truncate(logits, sampling.text_temperature, sampling.text_top_k)
    text = draw(truncated.softmax(-1), rows.uniform[:, 0])
    logp = truncated.log_softmax(-1).gather(1, text[:, None])[:, 0]
    free = rows.pins == SAMPLE  # (B, 1 + dep_q)
    rows.tokens[:, 0] = torch.where(free[:, 0], text, rows.pins[:, 0])
    rows.logp[:, 0] = logp * free[:, 0]  # a forced token may lie outside the top k; it is no action
    _depth(model, sampling, rows, hidden, free)

    follow = torch.cat((rows.tokens, torch.where(begun, rows.heard, rows.initial[own:])), dim=1)
    rows.inputs.copy_(torch.where((rows.active != 0)[:, None], follow, rows.inputs))


def _temporal(model: MoshiModel, rows: Rows, entering: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """One step of the temporal transformer: `entering (B, K)` to hidden `(B, D)` and text logits `(B, V)`."""
    c = model.config
    slot = rows.steps % c.context  # (B,)
    mask = None
    if sight.masked:  # a full ring is all in sight
        empty = torch.arange(sight.slots, device=slot.device) > rows.steps[:, None]
        mask = torch.zeros(empty.shape, device=slot.device, dtype=rows.cache[0].dtype)
        mask = mask.masked_fill_(empty, -torch.inf)[:, None, None]  # (B, 1, 1, slots)
    frequencies = rotary_frequencies(rows.steps, c.dim // c.num_heads, c.max_period)[:, None, None]  # (B, 1, 1, ·)
    x = model.embed(entering.unsqueeze(-1)).squeeze(1)  # (B, D)
    for layer, cache in zip(model.transformer, rows.cache, strict=True):
        qkv = layer.self_attn.qkv(layer.norm1(x))  # (B, 3, H, D / H)
        q, k = rotate(qkv[:, :2], frequencies).unbind(1)
        keys, values = cache
        if sight.together is None:
            keys[rows.index, :, slot] = k
            values[rows.index, :, slot] = qkv[:, 2]
        else:
            keys[:, :, sight.together] = k
            values[:, :, sight.together] = qkv[:, 2]
        seen = keys[:, :, : sight.slots], values[:, :, : sight.slots]
        mixed = F.scaled_dot_product_attention(q.unsqueeze(2), *seen, mask)
        x = x + layer.self_attn.out_projs[0](mixed.flatten(1))
        x = x + layer.feed(layer.norm2(x))
    hidden = model.out_norm(x)
    return hidden, model.text_linear(hidden)


def _depth(model: MoshiModel, sampling: Sampling, rows: Rows, hidden: Tensor, free: Tensor) -> None:
    """The depth transformer's loop over codebooks: `hidden (B, D)` and the text of `rows.tokens` to the rest."""
    c = model.config
    token, chances = rows.tokens[:, 0], []
    embeddings = [model.depformer_text_emb, *model.depformer_emb]
    for k, (source, weight) in enumerate(zip(c.depth_inputs, c.depth_weights, strict=True)):
        x = model.depformer_in[source](hidden) + embeddings[k](token)
        for layer, (keys, values) in zip(model.depformer, rows.depth_cache, strict=True):
            q, keys[:, :, k], values[:, :, k] = layer.self_attn.qkv(layer.norm1(x), weight).unbind(1)
            seen = (keys[:, :, : k + 1], values[:, :, : k + 1])
            mixed = F.scaled_dot_product_attention(q.unsqueeze(2), *seen)
            x = x + layer.self_attn.out_projs[weight](mixed.flatten(1))
            x = x + layer.feed(layer.norm2(x), weight)
        probs = truncate(model.linears[k](x), sampling.audio_temperature, sampling.audio_top_k).softmax(-1)
        token = draw(probs, rows.uniform[:, 1 + k])
        chances.append(probs.gather(1, token[:, None])[:, 0])
        token = torch.where(free[:, 1 + k], token, rows.pins[:, 1 + k])
        rows.tokens[:, 1 + k] = token
    rows.logp[:, 1:] = torch.stack(chances, dim=1).log()

"""Runs a `MoshiModel` frame by frame for a batch of independent rows.

What differs from upstream's `LMGen` (moshi 0.2.13): rows are independent to the last detail (position, random numbers,
activity), text log-probs are first-class, any token can be forced, and a fork is one copy. Timing is the same: call
``s`` of an episode feeds frame ``s`` of the model's clock and samples ``text(s)``, the codebooks with delay 0 of frame
``s`` and those with delay 1 of frame ``s - 1``. The user's codes of call 0 have no place in it and are not used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from align.policies.moshi.model import MoshiModel, rotary_frequencies, rotate
from align.policies.sampling import Sampling, draw, truncate, uniforms

SAMPLE = -2
"""In forced tokens: sample here (upstream's ``ungenerated_token_id``)."""

_FIRST_SLOTS = 128  # the key-value cache starts with so many frames and doubles until it has `context`


class Sampled(NamedTuple):
    """One call's tokens on the model's clock; of rows that were not active, meaningless."""

    tokens: np.ndarray  # (B, 1 + dep_q) int64
    text_logp: np.ndarray  # (B,) float32; 0 where the text was forced
    audio_logp: np.ndarray  # (B, dep_q) float32; meaningless where the token was forced or has no frame yet
    steps: np.ndarray  # (B,) int64: the row's step that this was


class MoshiStream:
    """The state of `batch` rows and the step that advances it. Runs in inference mode on the model's device."""

    def __init__(self, model: MoshiModel, sampling: Sampling, batch: int) -> None:
        c = model.config
        self.model, self.sampling, self.batch = model, sampling, batch
        device, dtype = model.device, model.text_linear.weight.dtype
        self.steps = np.zeros(batch, np.int64)
        self.seeds = np.zeros(batch, np.uint64)
        self.initial = model.initial_codes()
        self.inputs = self.initial.repeat(batch, 1)  # (B, K): what enters at the next step, user codes of delay 0 aside
        slots = min(c.context, _FIRST_SLOTS)
        shape = (c.num_layers, 2, batch, c.num_heads, slots, c.dim // c.num_heads)
        self.cache = torch.zeros(shape, device=device, dtype=dtype)  # keys are stored rotated
        depth = (c.depformer_num_layers, 2, batch, c.depformer_num_heads, c.dep_q)
        self.depth_cache = torch.zeros(*depth, c.depformer_dim // c.depformer_num_heads, device=device, dtype=dtype)
        delays = torch.tensor(c.delays, device=device)
        self.late = delays == 1  # (K,)
        self.rows = torch.arange(batch, device=device)

    def belongs_to(self, model: MoshiModel) -> bool:
        """Whether this is a stream of `model` as it is now: it may have moved or changed its precision since."""
        kind = (self.cache.device, self.cache.dtype)
        return self.model is model and kind == (model.device, model.text_linear.weight.dtype)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Start the indices `rows` afresh with their `seeds` (R,) uint64."""
        self.steps[rows] = 0
        self.seeds[rows] = seeds
        self.inputs[torch.from_numpy(rows).to(self.inputs.device)] = self.initial

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Make the indices `rows` equal to row `source`, its random numbers included."""
        self.steps[rows] = self.steps[source]
        self.seeds[rows] = self.seeds[source]
        index = torch.from_numpy(rows).to(self.inputs.device)
        self.inputs[index] = self.inputs[source].clone()
        self.cache[:, :, index] = self.cache[:, :, source, None].clone()

    @torch.inference_mode()
    def step(self, user: np.ndarray, active: np.ndarray, forced: np.ndarray | None = None) -> Sampled:
        """Advance the rows that are `active (B,)` bool by one frame.

        `user (B, n_q - dep_q)` int64: the user's codes. `forced (B, 1 + dep_q)` int64 on the model's clock, `SAMPLE`
        where the model is to sample.
        """
        c = self.model.config
        steps = self.steps.copy()
        begun = torch.from_numpy((steps > 0) & active).to(self.inputs.device)[:, None]
        heard = torch.from_numpy(user).to(self.inputs.device)
        # Codes of delay 0 enter now; those of delay 1 were put into `inputs` by the call before.
        own = 1 + c.dep_q
        entering = self.inputs.clone()
        entering[:, own:] = torch.where(begun & ~self.late[own:], heard, entering[:, own:])

        hidden, logits = self._temporal(entering, steps)
        s = self.sampling
        uniform = torch.from_numpy(uniforms(self.seeds, steps, own)).to(hidden.device)
        truncated = truncate(logits, s.text_temperature, s.text_top_k)
        text = draw(truncated.softmax(-1), uniform[:, 0])
        pins = None if forced is None else torch.from_numpy(forced).to(text.device)
        logp = truncated.log_softmax(-1).gather(1, text[:, None])[:, 0]
        if pins is not None:  # a forced token may lie outside the top k; it is no action and has no log-prob
            free = pins[:, 0] == SAMPLE
            text, logp = torch.where(free, text, pins[:, 0]), logp * free
        # Before its first frame a delayed stream is the initial token.
        unborn = torch.from_numpy(steps == 0).to(text.device) if (steps == 0).any() else None
        tokens, audio_logp = self._depth(hidden, text, uniform, unborn, pins)

        follow = torch.cat((tokens, torch.where(begun, heard, self.initial[own:])), dim=1)
        going = torch.from_numpy(active).to(text.device)[:, None]
        self.inputs.copy_(torch.where(going, follow, self.inputs))
        self.steps += active
        return Sampled(tokens.cpu().numpy(), logp.cpu().numpy(), audio_logp.cpu().numpy(), steps)

    def _temporal(self, entering: Tensor, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """One step of the temporal transformer: `entering (B, K)` to hidden `(B, D)` and text logits `(B, V)`."""
        c = self.model.config
        used = min(int(steps.max()) + 1, c.context)
        self._grow(used)
        position = torch.from_numpy(steps).to(entering.device)
        slot = position % c.context
        together = int(steps[0]) % c.context if (steps == steps[0]).all() else None
        mask = None
        if together is None and steps.min() + 1 < used:
            filled = torch.arange(used, device=entering.device) <= position[:, None]
            mask = filled[:, None, None]  # (B, 1, 1, used): a full ring is all in sight
        frequencies = rotary_frequencies(position, c.dim // c.num_heads, c.max_period)[:, None, None]  # (B, 1, 1, ·)
        x = self.model.embed(entering.unsqueeze(-1)).squeeze(1)  # (B, D)
        for layer, cache in zip(self.model.transformer, self.cache, strict=True):
            qkv = layer.self_attn.qkv(layer.norm1(x))  # (B, 3, H, D / H)
            q, k = rotate(qkv[:, :2], frequencies).unbind(1)
            keys, values = cache
            if together is None:
                keys[self.rows, :, slot] = k
                values[self.rows, :, slot] = qkv[:, 2]
            else:
                keys[:, :, together] = k
                values[:, :, together] = qkv[:, 2]
            mixed = F.scaled_dot_product_attention(q.unsqueeze(2), keys[:, :, :used], values[:, :, :used], mask)
            x = x + layer.self_attn.out_projs[0](mixed.flatten(1))
            x = x + layer.feed(layer.norm2(x))
        hidden = self.model.out_norm(x)
        return hidden, self.model.text_linear(hidden)

    def _grow(self, used: int) -> None:
        slots = self.cache.shape[4]
        if used > slots:
            more = min(2 * slots, self.model.config.context) - slots
            shape = (*self.cache.shape[:4], more, self.cache.shape[5])
            with torch.inference_mode(False):  # `fork` writes to it outside of inference mode
                self.cache = torch.cat((self.cache, self.cache.new_zeros(shape)), dim=4)

    def _depth(
        self, hidden: Tensor, text: Tensor, uniform: Tensor, unborn: Tensor | None, pins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The depth transformer's loop over codebooks: `hidden (B, D)`, `text (B,)` to tokens `(B, 1 + dep_q)`.

        Also the log-probabilities (B, dep_q) of what was sampled, also where it was then replaced.
        """
        model, c, s = self.model, self.model.config, self.sampling
        tokens, chances = [text], []
        embeddings = [model.depformer_text_emb, *model.depformer_emb]
        for k, (source, weight) in enumerate(zip(c.depth_inputs, c.depth_weights, strict=True)):
            x = model.depformer_in[source](hidden) + embeddings[k](tokens[-1])
            for layer, (keys, values) in zip(model.depformer, self.depth_cache, strict=True):
                q, keys[:, :, k], values[:, :, k] = layer.self_attn.qkv(layer.norm1(x), weight).unbind(1)
                seen = (keys[:, :, : k + 1], values[:, :, : k + 1])
                mixed = F.scaled_dot_product_attention(q.unsqueeze(2), *seen)
                x = x + layer.self_attn.out_projs[weight](mixed.flatten(1))
                x = x + layer.feed(layer.norm2(x), weight)
            logits = model.linears[k](x)
            probs = truncate(logits, s.audio_temperature, s.audio_top_k).softmax(-1)
            token = draw(probs, uniform[:, 1 + k])
            chances.append(probs.gather(1, token[:, None])[:, 0])
            if pins is not None:
                token = torch.where(pins[:, 1 + k] == SAMPLE, token, pins[:, 1 + k])
            if unborn is not None and c.delays[1 + k]:
                token = torch.where(unborn, self.initial[1 + k], token)
            tokens.append(token)
        return torch.stack(tokens, dim=1), torch.stack(chances, dim=1).log()

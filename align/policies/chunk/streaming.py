"""Runs a `ChunkModel` frame by frame for a batch of independent rows.

Between ear and decoder stands a queue, a row each: the ear adds every frame as it is heard, whatever the decoder does;
the decoder takes a whole chunk when it is complete, before any text. So listening never stalls while it speaks, and the
queue never holds more than one chunk.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from align.policies.chunk.model import ChunkModel, legal_at
from align.policies.moshi.model import rotary_frequencies, rotate
from align.policies.sampling import SAMPLE, Sampling, draw, truncate, uniforms


class ChunkStream:
    """The state of `batch` rows and the step that advances it."""

    def __init__(self, model: ChunkModel, sampling: Sampling, batch: int, silence: np.ndarray) -> None:
        c = model.config
        self.model, self.sampling, self.batch = model, sampling, batch
        device, dtype = model.device, model.text_linear.weight.dtype
        self.steps = np.zeros(batch, np.int64)  # frames heard
        self.seeds = np.zeros(batch, np.uint64)
        self.responding = np.zeros(batch, bool)
        self.positions = np.zeros(batch, np.int64)  # decoder steps made
        self.silence = torch.from_numpy(silence).to(device)  # (Q,)

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, device=device, dtype=kind)

        self.queue = zeros(c.chunk, c.dim)
        self.written = zeros(kind=torch.long) + c.vocab  # (B,) newest token
        self.hidden = zeros(c.dim)  # of the newest decoder step
        self.times = zeros(c.context, kind=torch.long) - 1  # frame of each slot of the cache
        self.keys = zeros(c.num_layers, c.num_heads, c.context, c.dim // c.num_heads)  # keys are stored rotated
        self.values = zeros(c.num_layers, c.num_heads, c.context, c.dim // c.num_heads)
        self.core = zeros(c.talker_dim)
        self.spoken = self.silence.repeat(batch, 1)  # (B, Q) codes of the frame before

    _BOOKS = ("steps", "seeds", "responding", "positions")
    _TENSORS = ("queue", "written", "hidden", "times", "keys", "values", "core", "spoken")

    def belongs_to(self, model: ChunkModel) -> bool:
        """Whether this is a stream of `model` as it is now: it may have moved or changed its precision since."""
        kind = (self.keys.device, self.keys.dtype)
        return self.model is model and kind == (model.device, model.text_linear.weight.dtype)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Start the indices `rows` afresh with their `seeds` (R,) uint64."""
        fresh = ChunkStream(self.model, self.sampling, 1, self.silence.cpu().numpy())
        for name in self._BOOKS:
            getattr(self, name)[rows] = getattr(fresh, name)[0]
        index = torch.from_numpy(rows).to(self.keys.device)
        for name in self._TENSORS:
            getattr(self, name)[index] = getattr(fresh, name)[0]
        self.seeds[rows] = seeds

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Make the indices `rows` equal to row `source`, its random numbers included."""
        for name in self._BOOKS:
            getattr(self, name)[rows] = getattr(self, name)[source]
        index = torch.from_numpy(rows).to(self.keys.device)
        for name in self._TENSORS:
            tensor = getattr(self, name)
            tensor[index] = tensor[source].clone()

    @torch.no_grad()
    def step(
        self, heard: np.ndarray, rows: np.ndarray, forced: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Advance the R indices `rows` by one frame.

        Args:
            heard: (R, Q) int64, the user's codes.
            rows: (R,) int64.
            forced: (R,) int64 text tokens, `SAMPLE` where the model is to draw.

        Returns:
            text (R,) int64, -1 where the decoder rested; its log-prob (R,), 0 where forced or resting; the agent's
            codes (R, Q) int64, -1 in rows that do not respond.
        """
        c, device = self.model.config, self.keys.device
        place = self.steps[rows] % c.chunk
        index = torch.from_numpy(rows).to(device)
        frame = self.model.frames(torch.from_numpy(heard).to(device).unsqueeze(-1))[:, 0]
        self.queue[index, torch.from_numpy(place).to(device)] = frame
        complete = place == c.chunk - 1
        acting = np.flatnonzero(complete | self.responding[rows])
        text, logp = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.float32)
        uniform = uniforms(self.seeds[rows], self.steps[rows], 1 + c.codebooks)
        if len(acting):
            text[acting], logp[acting] = self._decide(
                rows[acting], complete[acting], uniform[acting, 0], forced[acting]
            )
        speaking = np.flatnonzero(self.responding[rows])
        codes = np.full((len(rows), c.codebooks), -1, np.int64)
        self._talk(rows, index, speaking, uniform[:, 1:], codes)
        self.steps[rows] += 1
        return text, logp, codes

    def _decide(
        self, rows: np.ndarray, complete: np.ndarray, uniform: np.ndarray, forced: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One decoder step of the R `rows`; where a chunk is `complete` it is taken from the queue."""
        c, device = self.model.config, self.keys.device
        index = torch.from_numpy(rows).to(device)
        taken = torch.from_numpy(complete).to(device)
        x = self.model.text_emb(self.written[index])
        x = x + self.model.ear_in(self.queue[index].flatten(1)) * taken.unsqueeze(-1).to(x.dtype)
        time = torch.from_numpy(self.steps[rows]).to(device)
        slot = torch.from_numpy(self.positions[rows] % c.context).to(device)
        self.times[index, slot] = time
        times = self.times[index]  # (R, context)
        seen = (times >= 0) & (time.unsqueeze(1) - times < c.context)
        frequencies = rotary_frequencies(time, c.dim // c.num_heads, c.max_period)[:, None, None]
        for n, layer in enumerate(self.model.decoder):
            qkv = layer.self_attn.qkv(layer.norm1(x))  # (R, 3, H, D / H)
            q, k = rotate(qkv[:, :2], frequencies).unbind(1)
            self.keys[index, n, :, slot] = k
            self.values[index, n, :, slot] = qkv[:, 2]
            mixed = F.scaled_dot_product_attention(
                q.unsqueeze(2), self.keys[index, n], self.values[index, n], seen[:, None, None]
            )
            x = x + layer.self_attn.out_projs[0](mixed.flatten(1))
            x = x + layer.feed(layer.norm2(x))
        hidden = self.model.out_norm(x)
        s = self.sampling
        logits = self.model.text_linear(hidden).masked_fill(~legal_at(c, taken), -torch.inf)
        truncated = truncate(logits, s.text_temperature, s.text_top_k)
        drawn = draw(truncated.softmax(-1), torch.from_numpy(uniform).to(device))
        pins = torch.from_numpy(forced).to(device)
        token = torch.where(pins == SAMPLE, drawn, pins)
        logp = truncated.log_softmax(-1).gather(1, token[:, None])[:, 0]
        logp = torch.where(pins == SAMPLE, logp, logp.new_zeros(()))
        self.written[index], self.hidden[index] = token, hidden
        self.positions[rows] += 1
        text = token.cpu().numpy()
        self.responding[rows] = np.where(complete, text == c.response, text != c.end)
        return text, logp.cpu().numpy()

    def _talk(
        self, rows: np.ndarray, index: Tensor, speaking: np.ndarray, uniform: np.ndarray, codes: np.ndarray
    ) -> None:
        """The talker's frame of all R `rows`; fills in `codes (R, Q)` of those that are `speaking`."""
        talker, s = self.model.talker, self.sampling
        inputs = talker.embed(
            self.written[index].unsqueeze(1), self.hidden[index].unsqueeze(1), self.spoken[index].unsqueeze(-1)
        )
        core, state = talker.core(inputs, self.core[index].unsqueeze(0))
        self.core[index] = state[0]
        self.spoken[index] = self.silence
        if not len(speaking):
            return
        x, said = core[torch.from_numpy(speaking).to(core.device), 0], []
        for k, head in enumerate(talker.heads):
            probs = truncate(head(x), s.audio_temperature, s.audio_top_k).softmax(-1)
            said.append(draw(probs, torch.from_numpy(uniform[speaking, k]).to(x.device)))
            x = x + talker.code_emb[k](said[-1])
        spoken = torch.stack(said, dim=1)  # (S, Q)
        self.spoken[index[torch.from_numpy(speaking).to(index.device)]] = spoken
        codes[speaking] = spoken.cpu().numpy()

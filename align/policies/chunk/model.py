"""A chunk-decision model in the style of Audio-Interaction (arXiv 2606.05121), small and with a voice of its own.

    ear       codes of the user's frames, embedded; a chunk of 5 frames becomes one input of the decoder
    decoder   a causal transformer on a clock of its own: one position for a chunk (it decides `silent` or `response`),
              one for each text token of a response. Silence costs 2.5 positions a second, not 12.5
    talker    a recurrent network that turns the text and the decoder's state into the agent's codes, frame by frame

What differs from the paper: it has a voice, so text comes with padding, in time with the speech (Moshi's inner
monologue); it is asked again every chunk while it speaks, so that it can stop for a user (theirs speaks to the end).

Clock, of both the sampler and the scorer, with t counted from a row's reset: frame t is heard first. If it completes a
chunk, the decoder takes the chunk and decides; otherwise, during a response, it writes one text token; else it rests.
Column t of `codes (B, K, T)` is what was decided or written in call t (-1: it rested), the agent's codes of that call,
and the user's frame t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.policies.chunk.config import ChunkConfig
from align.policies.moshi.model import Embedding, Head, Layer, RMSNorm, Stack, rotary_frequencies, rotate


class Talker(nn.Module):
    """Text and the decoder's state to the agent's codes. Codebook k of a frame knows those before k."""

    def __init__(self, c: ChunkConfig) -> None:
        super().__init__()
        self.text_emb = nn.Embedding(c.vocab + 1, c.talker_dim)  # the last row: nothing was written yet
        self.code_emb = nn.ModuleList(Embedding(c.card, c.talker_dim) for _ in range(c.codebooks))
        self.state_in = nn.Linear(c.dim, c.talker_dim, bias=False)
        self.core = nn.GRU(c.talker_dim, c.talker_dim, batch_first=True)
        self.heads = nn.ModuleList(Head(c.talker_dim, c.card) for _ in range(c.codebooks))

    def embed(self, text: Tensor, state: Tensor, before: Tensor) -> Tensor:
        """Text (B, T), decoder state (B, T, D) and the codes of the frame before (B, Q, T) to inputs (B, T, W)."""
        x = self.text_emb(text) + self.state_in(state)
        for k, embedding in enumerate(self.code_emb):
            x = x + embedding(before[:, k])
        return x

    def logits(self, core: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: (B, T, W) and the frame's own codes (B, Q, T) to (B, T, Q, card)."""
        out, x = [], core
        for k, head in enumerate(self.heads):
            out.append(head(x))
            x = x + self.code_emb[k](codes[:, k])
        return torch.stack(out, dim=2)


class ChunkModel(nn.Module):
    """Ear, decoder and talker. `seed` fixes the initial weights without touching the global generator."""

    def __init__(self, config: ChunkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.ear = nn.ModuleList(Embedding(c.card, c.dim) for _ in range(c.codebooks))
            self.ear_in = nn.Linear(c.chunk * c.dim, c.dim, bias=False)
            self.text_emb = nn.Embedding(c.vocab + 1, c.dim)  # the last row: nothing was written yet
            self.decoder = Stack([Layer(c.dim, c.num_heads, c.feedforward) for _ in range(c.num_layers)])
            self.out_norm = RMSNorm(c.dim)
            self.text_linear = Head(c.dim, c.vocab, bias=False)
            self.talker = Talker(c)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    std = module.weight.shape[1] ** -0.5
                    nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    @property
    def device(self) -> torch.device:
        return self.text_linear.weight.device

    def frames(self, heard: Tensor) -> Tensor:
        """The user's codes (B, Q, T) to what the queue between ear and decoder holds: (B, T, D)."""
        return torch.stack([embedding(heard[:, k]) for k, embedding in enumerate(self.ear)]).sum(0)

    def decode(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced: codes (B, K, T) to hidden (B, T, D) and logits (B, T, V); 0 in frames in which it rested."""
        c = self.config
        batch, _, frames = codes.shape
        acted = codes[:, 0] >= 0  # (B, T)
        places = torch.arange(frames, device=codes.device)
        x = self.text_emb(self.written_before(codes[:, 0]))  # (B, T, D)
        chunks = frames // c.chunk
        if chunks:
            heard = self.frames(codes[:, 1 + c.codebooks :, : chunks * c.chunk])
            taken = self.ear_in(heard.reshape(batch, chunks, -1))  # (B, chunks, D)
            x = x.index_add(1, places[c.chunk - 1 :: c.chunk][:chunks], taken.to(x.dtype))
        # Only frames in which it acted are positions: (B, P), in order, then whatever fills up.
        positions = int(acted.sum(1).max()) if frames else 0
        order = torch.sort(~acted, dim=1, stable=True).indices[:, :positions]
        real = acted.gather(1, order)
        wide = order.unsqueeze(-1).expand(-1, -1, c.dim)
        hidden = self._transform(x.gather(1, wide), order, real)
        kept = hidden * real.unsqueeze(-1).to(hidden.dtype)
        hidden = torch.zeros_like(x, dtype=hidden.dtype).scatter(1, wide, kept)
        logits = self.text_linear(hidden)
        return hidden, logits

    def _transform(self, x: Tensor, times: Tensor, real: Tensor) -> Tensor:
        """Inputs (B, P, D) of positions at frames `times` (B, P), of which `real` (B, P) are, to hidden (B, P, D)."""
        c = self.config
        late, early = times.unsqueeze(2), times.unsqueeze(1)
        seen = (early <= late) & (late - early < c.context) & real.unsqueeze(1)
        seen = seen | torch.eye(times.shape[1], dtype=torch.bool, device=times.device)  # what fills up sees itself
        frequencies = rotary_frequencies(times, c.dim // c.num_heads, c.max_period)[:, :, None, None]
        for layer in self.decoder:
            qkv = layer.self_attn.qkv(layer.norm1(x))  # (B, P, 3, H, D / H)
            qk, v = qkv.split((2, 1), dim=2)
            q, k = rotate(qk, frequencies).transpose(1, 3).unbind(2)  # each (B, H, P, D / H)
            mixed = F.scaled_dot_product_attention(q, k, v.squeeze(2).transpose(1, 2), seen.unsqueeze(1))
            x = x + layer.self_attn.out_projs[0](mixed.transpose(1, 2).flatten(2))
            x = x + layer.feed(layer.norm2(x))
        return self.out_norm(x)

    def written_before(self, text: Tensor) -> Tensor:
        """(B, T): the newest token before each frame; `vocab` where there is none."""
        places = torch.arange(text.shape[1], device=text.device)
        newest = torch.where(text >= 0, places, -1).cummax(1).values  # (B, T), this frame included
        before = F.pad(newest, (1, 0), value=-1)[:, :-1]
        tokens = text.gather(1, before.clamp(min=0))
        return torch.where(before >= 0, tokens, self.config.vocab)

    def speak(self, hidden: Tensor, text: Tensor, agent: Tensor, silence: Tensor) -> Tensor:
        """Teacher-forced logits (B, T, Q, card) of the agent's codes.

        `hidden (B, T, D)` and `text (B, T)` as of `decode`, `agent (B, Q, T)`, -1 where it did not speak; `silence
        (Q,)` are the codes that then stand for the frame before.
        """
        places = torch.arange(text.shape[1], device=text.device)
        newest = torch.where(text >= 0, places, -1).cummax(1).values
        known = (newest >= 0).unsqueeze(-1)
        state = hidden.gather(1, newest.clamp(min=0).unsqueeze(-1).expand_as(hidden)) * known.to(hidden.dtype)
        latest = torch.where(newest >= 0, text.gather(1, newest.clamp(min=0)), self.config.vocab)
        still = silence.view(1, -1, 1)
        before = F.pad(torch.where(agent >= 0, agent, still), (1, 0))[:, :, :-1].clone()
        before[:, :, :1] = still
        core, _ = self.talker.core(self.talker.embed(latest, state, before))
        return self.talker.logits(core, agent)


def legal(config: ChunkConfig, text: Tensor) -> Tensor:
    """What may stand in each frame in which the model acted: text (B, T) to (B, T, V) bool.

    When a chunk is complete, a decision; else text or the end of it.
    """
    decides = (torch.arange(text.shape[1], device=text.device) + 1) % config.chunk == 0  # (T,)
    return legal_at(config, decides).expand(*text.shape, -1)


def legal_at(config: ChunkConfig, decides: Tensor) -> Tensor:
    """Legal tokens (..., V) bool of frames that complete a chunk, or not: `decides (...)` bool."""
    decision = torch.zeros(config.vocab, dtype=torch.bool, device=decides.device)
    decision[[config.silent, config.response]] = True
    return torch.where(decides.unsqueeze(-1), decision, ~decision)

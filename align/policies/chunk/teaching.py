"""A chunk-decision policy as a pupil of `align.trainers.sft`: its columns of a recording, and its losses.

The dual loss of Audio-Interaction (arXiv 2606.05121): the language loss, over the text of responses, plus lambda
(`control_weight`, published: 1) times the streaming-control loss, over the decisions `silent` or `response` of every
0.4 s. Each is a mean over its own tokens and over what is legal there, as it is sampled. What differs from the paper:
this policy has a voice, so there is a third term, over the agent's codes, and padding in the text, which is weighted
down as in Moshi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from align.codecs.base import codes_of_silence
from align.imitation import codebook_weights, text_weights, weighted_nll
from align.policies.chunk.columns import responding, text_column
from align.policies.chunk.model import legal
from align.policies.chunk.policy import SETTLED_FRAMES, ChunkPolicy
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word

if TYPE_CHECKING:
    from align.trainers.sft_config import SftConfig


class ChunkTeaching(nn.Module):
    """The model and its losses."""

    voice = ("talker",)
    """Starts of the names of parameters that the audio loss alone trains."""

    def __init__(self, policy: ChunkPolicy, config: SftConfig) -> None:
        super().__init__()
        c = policy.model.config
        if config.max_delay:
            raise UptakeError(
                f"sft.max_delay = {config.max_delay}: a chunk policy decides itself when it answers and is told no "
                "delay; set it to 0"
            )
        if config.frames % c.chunk:
            raise UptakeError(
                f"sft.frames = {config.frames}: must be a multiple of {c.chunk}, the frames between two decisions of "
                "this policy"
            )
        self.model = policy.model
        self.weights = {"text": 1.0, "control": config.control_weight, "audio": config.audio_weight}
        """Term of the loss -> its weight."""
        self.codec = policy.codec
        self._policy = [policy]  # in a list: a policy that is a module itself would be registered twice
        self._config = config
        self._padding = (c.padding_id, c.end_padding_id)
        self._lag = policy.spec.emission_lag + 1  # from the call of a token to the frame in which it is heard
        self._silence = torch.from_numpy(codes_of_silence(policy.codec, SETTLED_FRAMES)[-1])  # (Q,)

    # Data -----------------------------------------------------------------------------------------------------------

    def columns(self, words: Sequence[Word], user: np.ndarray, agent: np.ndarray) -> np.ndarray:
        """A recording's codes (Q, T) of both sides and the agent's words to the policy's columns (K, T') int32."""
        c, early = self.model.config, CLOCK.sample_of(self._lag)
        frames = user.shape[1] - self._lag
        called = [Word(word.text, word.onset - early, word.offset - early) for word in words]
        text = text_column(called, self._policy[0].tokenizer, c, frames, self._config.response_gap_s)
        said = np.where(responding(text, c), agent[:, self._lag :], -1)
        return np.concatenate([text[None], said, user[:, :frames]]).astype(np.int32)

    def window(self, columns: np.ndarray, start: int, frames: int, delay: int) -> np.ndarray:
        """Columns (K, frames) from `start` on, a multiple of the chunk; -1 after the end of the recording.

        A response that was going on at `start` goes on with the first decision.
        """
        c = self.model.config
        out = np.full((len(columns), frames), -1, np.int32)
        part = columns[:, start : start + frames]
        out[:, : part.shape[1]] = part
        out[: 1 + c.codebooks, : c.chunk - 1] = -1
        return out

    # Losses ---------------------------------------------------------------------------------------------------------

    def counts(self, codes: Tensor) -> dict[str, float]:
        """Sum of the weights of each term in codes (B, K, T)."""
        language, control, audio = self._weights(codes)
        return {"text": float(language.sum()), "control": float(control.sum()), "audio": float(audio.sum())}

    def forward(self, codes: Tensor, delays: Tensor) -> dict[str, Tensor]:
        """Codes (B, K, T) to `sum/TERM`, weighted sums in nats, and `right/WHAT` of `count/WHAT`."""
        c, text = self.model.config, codes[:, 0]
        language, control, audio = self._weights(codes)
        hidden, logits = self.model.decode(codes)
        possible = logits.masked_fill(~legal(c, text), -torch.inf)
        out = {"sum/text": weighted_nll(possible, text, language), "sum/control": weighted_nll(possible, text, control)}
        with torch.no_grad():
            right = possible.argmax(-1) == text
            padding = torch.isin(text, torch.tensor(self._padding, device=text.device))
            for what, where in (
                ("words", (language > 0) & ~padding & (text != c.end)),
                ("silent", text == c.silent),
                ("response", text == c.response),
            ):
                out[f"count/{what}"], out[f"right/{what}"] = where.sum(), (right & where).sum()
        if self._config.audio_weight:
            agent = codes[:, 1 : 1 + c.codebooks]
            heard = self.model.speak(hidden, text, agent, self._silence.to(codes.device))  # (B, T, Q, card)
            out["sum/audio"] = weighted_nll(heard.flatten(0, 1), agent.transpose(1, 2).flatten(0, 1), audio)
        return out

    def _weights(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of text (B, T), of decisions (B, T), of the agent's codes (B * T, Q); 0 where there are none."""
        c, config, text = self.model.config, self._config, codes[:, 0]
        decides = (torch.arange(text.shape[1], device=text.device) + 1) % c.chunk == 0  # (T,)
        language = text_weights(text, self._padding, config.text_padding_weight) * ~decides
        mask = (codes[:, 1 : 1 + c.codebooks] >= 0).transpose(1, 2).flatten(0, 1)
        return language, ((text >= 0) & decides).float(), codebook_weights(mask, config.first_codebook_weight)

    def settle(self) -> None:
        """Nothing was told that would have to be settled."""

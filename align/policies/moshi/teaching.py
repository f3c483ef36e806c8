"""A Moshi-class policy as a pupil of `align.trainers.sft`: its columns of a recording, and its losses.

Losses are Moshi's (arXiv 2410.00037): cross-entropy of the text stream, padding weighted down, plus that of the agent's
codebooks, the first weighted up; each a weighted mean (`align.imitation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from align.codecs.base import codes_of_silence
from align.imitation import codebook_weights, text_weights, weighted_nll
from align.policies.moshi.delay import DelayEmbedding, settle
from align.policies.moshi.model import ZERO
from align.policies.moshi.policy import SILENT_FRAMES, MoshiPolicy
from align.streams import align, text_stream
from envs.event import Word

if TYPE_CHECKING:
    from align.trainers.sft_config import SftConfig


class MoshiTeaching(nn.Module):
    """The model, and what tells it its delay where delays are random."""

    voice = ("depformer", "linears")
    """Starts of the names of parameters that the audio loss alone trains."""

    def __init__(self, policy: MoshiPolicy, config: SftConfig) -> None:
        super().__init__()
        c = policy.model.config
        self.model = policy.model
        self.delay = DelayEmbedding(c.dim).to(policy.model.device) if config.max_delay else None
        self.weights = {"text": 1.0, "audio": config.audio_weight}
        """Term of the loss -> its weight."""
        self.codec = policy.codec
        self._policy = [policy]  # in a list: a policy that is a module itself would be registered twice
        self._config = config
        self._padding = (c.existing_text_padding_id, c.existing_text_end_padding_id)
        self._lag = policy.spec.emission_lag + 1  # from the call of a token to the frame in which it is heard
        self._silence = codes_of_silence(policy.codec, SILENT_FRAMES)[-1]  # (Q,)

    # Data -----------------------------------------------------------------------------------------------------------

    def columns(self, words: Sequence[Word], user: np.ndarray, agent: np.ndarray) -> np.ndarray:
        """A recording's codes (Q, T) of both sides and the agent's words to the model's columns (K, T') int32."""
        pad, epad = self._padding
        said = text_stream(words, self._policy[0].tokenizer, user.shape[1], pad, epad)
        lag = self._lag
        return align(said[None, lag:], agent[None, :, lag:], user[None, :, :-lag])[0].astype(np.int32)

    def window(self, columns: np.ndarray, start: int, frames: int, delay: int) -> np.ndarray:
        """Columns (K, frames) from `start` on, the agent `delay` frames late; -1 after the end of the recording.

        Before its beginning a late agent was silent.
        """
        own = 1 + self.model.config.dep_q
        out = np.full((len(columns), frames), ZERO, np.int32)
        heard = columns[own:, start : start + frames]
        length = heard.shape[1]
        out[own:, :length] = heard
        said = columns[:own, max(0, start - delay) : max(0, start + length - delay)]
        silent = length - said.shape[1]
        out[:own, :silent] = np.array([self._padding[0], *self._silence])[:, None]
        out[:own, silent:length] = said
        return out

    # Losses ---------------------------------------------------------------------------------------------------------

    def counts(self, codes: Tensor) -> dict[str, float]:
        """Sum of the weights of each term in codes (B, K, T)."""
        c, config = self.model.config, self._config
        text = float(text_weights(codes[:, 0], self._padding, config.text_padding_weight).sum())
        lags = c.delays[1 : 1 + c.dep_q]
        each = [int((codes[:, 1 + k, : codes.shape[2] - lag] != ZERO).sum()) for k, lag in enumerate(lags)]
        return {"text": text, "audio": config.first_codebook_weight * each[0] + sum(each[1:])}

    def forward(self, codes: Tensor, delays: Tensor) -> dict[str, Tensor]:
        """Codes (B, K, T) and delays (B,) to `sum/TERM`, weighted sums in nats, and `right/WHAT` of `count/WHAT`."""
        config, text = self._config, codes[:, 0]
        told = None if self.delay is None else self.delay(delays)
        hidden, logits = self.model.text_forward(codes, told)
        weights = text_weights(text, self._padding, config.text_padding_weight)
        out = {"sum/text": weighted_nll(logits, text, weights)}
        with torch.no_grad():
            words = (text >= 0) & ~torch.isin(text, torch.tensor(self._padding, device=text.device))
            out["count/words"] = words.sum()
            out["right/words"] = ((logits.argmax(-1) == text) & words).sum()
        if config.audio_weight:
            scores = self.model.depth_scores(hidden, codes)
            own = codebook_weights(scores.mask, config.first_codebook_weight)
            out["sum/audio"] = weighted_nll(scores.logits, scores.targets, own)
        return out

    def settle(self) -> None:
        """Leave the model as one that is told `config.delay`, for good."""
        if self.delay is not None:
            settle(self.model, self.delay, self._config.delay)

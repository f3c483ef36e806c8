"""The shape of a chunk-decision model, as its config.json says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.policies.moshi.config import MOST, MOST_LAYERS
from envs.errors import UptakeError, nearest

KIND = "uptake-chunk"
"""`model_type` in config.json."""


@dataclass(frozen=True)
class ChunkConfig:
    """Defaults: pocket's codec and tokenizer, about 2 million parameters."""

    codebooks: int = 8
    """Of the codec, the same in and out."""
    card: int = 256
    """Entries of each codebook."""
    text_card: int = 512
    """Pieces of the tokenizer. Three control tokens follow them: silent, response and end."""
    padding_id: int = 3
    """Text while the voice is still at an earlier word."""
    end_padding_id: int = 0
    """Text in the frame before a word that follows padding."""
    chunk: int = 5
    """Frames between decisions: 0.4 s, as arXiv 2606.05121 has it."""
    context: int = 256
    """Frames that the decoder looks back."""
    dim: int = 192
    num_layers: int = 4
    num_heads: int = 6
    feedforward: int = 768
    talker_dim: int = 128
    max_period: float = 10_000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), field.name != "max_period"
            kind = int if whole else (int, float)
            least = 0 if "_id" in field.name else 1
            most = MOST_LAYERS if field.name in ("num_layers", "codebooks") else MOST
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
                what = "whole number" if whole else "number"
                raise UptakeError(f"{field.name} = {value!r:.40}: must be a {what} of {least} or more, at most {most}")
        if self.dim % (2 * self.num_heads):
            raise UptakeError(f"dim = {self.dim}: must be a multiple of 2 * num_heads = {2 * self.num_heads}")
        if max(self.padding_id, self.end_padding_id) >= self.text_card:
            raise UptakeError(f"padding_id and end_padding_id must be below text_card = {self.text_card}")

    @property
    def silent(self) -> int:
        """Decision: nothing is said until the next one."""
        return self.text_card

    @property
    def response(self) -> int:
        """Decision: begin to speak, or go on."""
        return self.text_card + 1

    @property
    def end(self) -> int:
        """Text token that ends a response."""
        return self.text_card + 2

    @property
    def vocab(self) -> int:
        """Tokens of the text stream."""
        return self.text_card + 3

    @property
    def streams(self) -> int:
        """K: text, the agent's codebooks, the user's."""
        return 1 + 2 * self.codebooks

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChunkConfig:
        """Read a config.json; raises `UptakeError` on an unknown key or an impossible value."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UptakeError(f"unknown key {name!r}{nearest(name, known)}")
        return cls(**values)

"""How near two texts are in meaning, by a sentence encoder that somebody else brings. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Protocol

import numpy as np

from envs.errors import UptakeError
from rewards.text import normalise

CACHED = 8192
"""Texts whose embedding is kept: the references come up in every conversation, and policies repeat themselves."""
BLUNT = 0.98
"""An encoder with a higher cosine between unrelated sentences tells nothing apart."""
UNRELATED = (
    "The train leaves from platform nine.",
    "My sister plays the violin.",
    "It will rain tomorrow afternoon.",
    "Please add two eggs and some flour.",
    "The invoice was paid last month.",
    "He broke his arm while skiing.",
    "Whales are mammals.",
    "You can reset the password in the settings.",
)
"""Sentences that have nothing to do with each other: their mean cosine is what an encoder gives for nothing."""


class Encoder(Protocol):
    """Turns texts into directions."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, every row of length 1."""


class Meaning:
    """Similarity of texts in [0, 1], embeddings cached by text.

    Encoders differ in the cosine that they give to unrelated sentences: near 0 for one that was trained on sentence
    pairs, 0.5 and more for a plain language model. It is measured once, on `UNRELATED`, and is the zero of the scale.

    Texts are compared in lower case and without punctuation (`rewards.text.normalise`): a recogniser and a text stream
    differ in both, and neither is part of what was said. A text is encoded on its own, never beside others, so that its
    embedding does not depend on what was asked before.

    Raises:
        UptakeError: an encoder that cannot tell unrelated sentences apart.
    """

    def __init__(self, encode: Encoder) -> None:
        def alone(text: str) -> np.ndarray:
            return encode([text])[0]

        self._vector = lru_cache(maxsize=CACHED)(alone)
        pairs = combinations(UNRELATED, 2)
        self.floor = float(np.mean([self.cosine(a, b) for a, b in pairs]))
        """Mean cosine of unrelated sentences; at or below it, similarity is 0."""
        if not self.floor <= BLUNT:  # NaN is not
            raise UptakeError(
                f"embedding: the encoder gives unrelated sentences a cosine of {self.floor:.3f} on average, so it "
                "cannot tell texts apart; give one that was trained on sentences"
            )

    def cosine(self, a: str, b: str) -> float:
        """The cosine between the embeddings of two texts, in [-1, 1]."""
        one, other = (self._vector(" ".join(normalise(text))) for text in (a, b))
        return float(np.clip(np.dot(one, other), -1.0, 1.0))

    def similarity(self, text: str, reference: str) -> float:
        """(cosine - floor) / (1 - floor), not below 0; 1 for equal texts, 0 when either has no word."""
        if not normalise(text) or not normalise(reference):
            return 0.0
        return max(0.0, (self.cosine(text, reference) - self.floor) / (1.0 - self.floor))

    def nearest(self, text: str, references: Sequence[str]) -> float:
        """The similarity to the nearest reference; 0 without one."""
        return max((self.similarity(text, reference) for reference in references), default=0.0)

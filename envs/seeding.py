"""Seeds: one tree a conversation, a named child a concern, so that adding one effect never shifts another."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


def crc(name: str) -> int:
    """CRC-32 of a name: the same number in every process, unlike `hash`."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Seeds:
    """The random streams of one conversation: (run seed, seed group of the scenario, variant)."""

    run_seed: int
    group: str
    variant: int

    def rng(self, *names: str | int) -> np.random.Generator:
        """The generator of a concern: `user`, `voice`, `noise`, `room` or `vars`, and perhaps a name or index in it."""
        key = tuple(crc(name) if isinstance(name, str) else name for name in names)
        entropy = [self.run_seed, crc(self.group), self.variant]
        return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key))

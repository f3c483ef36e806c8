"""Streams of a tiny random model that live through the same: rows that sit out, begin anew, fork and are forced."""

from __future__ import annotations

from typing import Any

import numpy as np

from align.policies.moshi.model import MoshiModel
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import SAMPLE, Sampling
from tests.tiny_moshi import CARD, TEXT_CARD, config

SAMPLING = Sampling(text_temperature=0.7, text_top_k=12, audio_temperature=0.8, audio_top_k=10)
BATCH = 3
ALL = np.ones(BATCH, bool)


def random_model(**changes: Any) -> MoshiModel:
    return MoshiModel(config(**changes), seed=1)


def open_rows(*streams: MoshiStream) -> None:
    for stream in streams:
        stream.reset(np.arange(stream.batch), np.arange(stream.batch, dtype=np.uint64))


def heard(rng: np.random.Generator, batch: int = BATCH) -> np.ndarray:
    return rng.integers(0, CARD, (batch, 8))


def assert_same(ours: Any, theirs: Any, rows: np.ndarray = ALL) -> None:
    """Tokens of the rows identical, log-probs within 1e-5."""
    assert np.array_equal(ours.tokens[rows], theirs.tokens[rows])
    assert np.array_equal(ours.steps, theirs.steps)
    np.testing.assert_allclose(ours.text_logp[rows], theirs.text_logp[rows], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.audio_logp[rows], theirs.audio_logp[rows], rtol=0, atol=1e-5)


def live(rng: np.random.Generator, frames: int, *streams: MoshiStream) -> None:
    """Frames in which rows sit out, begin anew, fork and are forced as chance will, the same in all streams."""
    first, *others = streams
    for _ in range(frames):
        rows = np.flatnonzero(rng.random(BATCH) < 0.04)
        seeds = rng.integers(0, 99, len(rows)).astype(np.uint64)
        source, forks = int(rng.integers(BATCH)), np.flatnonzero(rng.random(BATCH) < 0.04)
        active = rng.random(BATCH) < 0.8
        forced = None
        if rng.random() < 0.4:
            forced = rng.integers(0, CARD, (BATCH, 9))
            forced[:, 0] = rng.integers(0, TEXT_CARD, BATCH)
            forced[rng.random((BATCH, 9)) < 0.6] = SAMPLE
        user = heard(rng)
        for stream in streams:
            stream.reset(rows, seeds)
            stream.fork(source, forks)
        expected = first.step(user, active, forced)
        for stream in others:
            assert_same(stream.step(user, active, forced), expected, active)

"""Rows that have heard the same share one stream of the codec, and nobody can tell from the codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.codecs.mimi import MimiCodec
from align.codecs.shared_encoder import SharedEncoder
from envs.codec import rows_kept
from tests.random_mimi import random_mimi
from tests.tiny_moshi import FRAME, BlurCodec

B = 4
SOUNDS = (np.random.default_rng(0).standard_normal((3, FRAME)) * 0.1).astype(np.float32)

step = st.tuples(st.just("step"), st.lists(st.integers(0, 2), min_size=B, max_size=B), st.integers(0, 2**B - 1))
reset = st.tuples(st.just("reset"), st.sets(st.integers(0, B - 1)), st.none())
fork = st.tuples(st.just("fork"), st.integers(0, B - 1), st.sets(st.integers(0, B - 1)))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(step, step, reset, fork), max_size=25))
def test_whatever_happens_to_the_rows_their_codes_are_those_of_a_stream_each(history):
    codec = BlurCodec()
    shared, alone = SharedEncoder(codec, B), codec.init_state(B)
    for kind, first, second in history:
        if kind == "reset":
            rows = np.array(sorted(first), np.int64)
            shared.reset(rows)
            codec.reset(alone, rows)
        elif kind == "fork":
            rows = np.array(sorted(second), np.int64)
            shared.fork(first, rows)
            codec.fork(alone, first, rows)
        else:
            pcm, active = SOUNDS[first], np.array([second >> row & 1 for row in range(B)], bool)
            with rows_kept(alone, np.flatnonzero(~active)):
                expected = codec.encode(alone, pcm)
            assert np.array_equal(shared.encode(pcm, active)[active], expected[active])
        assert shared.streams <= B


class CountingCodec(BlurCodec):
    """Remembers how many streams each call encoded."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode(self, state, pcm):
        self.encoded.append(len(pcm))
        return super().encode(state, pcm)


def test_a_user_is_encoded_once_until_the_conversations_part():
    codec = CountingCodec()
    shared, on = SharedEncoder(codec, B), np.ones(B, bool)
    shared.reset(np.arange(B))
    for sounds in ([0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 0, 0], [1, 1, 1, 1], [0, 1, 2, 2]):
        shared.encode(SOUNDS[sounds], on)
    assert codec.encoded == [1, 1, 2, 2, 3]
    shared.reset(np.arange(B))
    shared.encode(SOUNDS[[0, 0, 0, 0]], on)
    assert codec.encoded[-1] == 1


def test_a_fork_that_leaves_a_stream_without_a_row_goes_on():
    codec, on = BlurCodec(), np.ones(B, bool)
    shared, alone = SharedEncoder(codec, B), codec.init_state(B)
    shared.reset(np.arange(B))
    for sounds in ([0, 0, 1, 2], [0, 0, 1, 0]):
        assert np.array_equal(shared.encode(SOUNDS[sounds], on), codec.encode(alone, SOUNDS[sounds]))
        shared.fork(0, np.array([3]))
        codec.fork(alone, 0, np.array([3]))


@pytest.fixture(scope="module")
def mimi() -> MimiCodec:
    return random_mimi(32)


def test_mimi_is_shared_like_any_other(mimi):
    shared, alone, on = SharedEncoder(mimi, B), mimi.init_state(B), np.ones(B, bool)
    for sounds in ([0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 1, 1], [0, 0, 1, 2]):
        pcm = SOUNDS[sounds][:, : mimi.frame]
        assert np.array_equal(shared.encode(pcm, on), mimi.encode(alone, pcm))
    assert shared.streams == 4

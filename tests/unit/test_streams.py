"""Aligned streams: where a word stands, and which frame hears which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.streams import EPAD, PAD, align, text_stream
from envs.clock import CLOCK
from envs.event import Word


class Letters:
    """One piece a letter: ids from 10 on."""

    def encode(self, text: str) -> list[int]:
        return [10 + ord(c) - ord("a") for c in text]


def at(text: str, frame: float, frames: float = 2) -> Word:
    return Word(text, int(frame * CLOCK.frame), int((frame + frames) * CLOCK.frame))


def test_a_word_begins_in_the_frame_of_its_onset_and_is_announced_one_frame_before() -> None:
    stream = text_stream([at("ab", 3.5)], Letters(), 8)
    assert stream.tolist() == [PAD, PAD, EPAD, 10, 11, PAD, PAD, PAD]


def test_words_that_touch_are_not_announced() -> None:
    stream = text_stream([at("ab", 2), at("cd", 4)], Letters(), 8)
    assert stream.tolist() == [PAD, EPAD, 10, 11, 12, 13, PAD, PAD]


def test_pieces_that_the_next_word_overtakes_are_dropped() -> None:
    stream = text_stream([at("abcd", 1), at("e", 3)], Letters(), 6)
    assert stream.tolist() == [EPAD, 10, 11, 14, PAD, PAD]


@given(st.lists(st.tuples(st.floats(0, 30), st.text("abc", min_size=1, max_size=5)), max_size=8))
def test_any_words_give_one_token_a_frame(words: list[tuple[float, str]]) -> None:
    stream = text_stream([at(text, frame) for frame, text in sorted(words)], Letters(), 24)
    assert stream.shape == (24,)
    assert set(stream.tolist()) <= {PAD, EPAD, 10, 11, 12}


def test_the_users_frame_is_the_one_heard_a_call_later() -> None:
    text, agent, user = np.arange(4)[None], np.arange(4)[None, None] + 10, np.arange(4)[None, None] + 20
    codes = align(text, agent, user)
    assert codes[0].tolist() == [[0, 1, 2], [10, 11, 12], [21, 22, 23]]


@pytest.mark.parametrize("frame", [0, 0.4])
def test_a_word_at_the_very_start_needs_no_announcement(frame: float) -> None:
    assert text_stream([at("a", frame)], Letters(), 3).tolist() == [10, PAD, PAD]

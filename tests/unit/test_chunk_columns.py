"""A recording as the decisions and the text of a chunk policy: where they stand, and that they are always legal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.policies.chunk.columns import responding, text_column
from align.policies.chunk.config import ChunkConfig
from align.policies.chunk.model import legal
from align.policies.chunk.teaching import ChunkTeaching
from align.trainers.sft_config import SftConfig
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word
from tests.unit.test_policy_chunk import tiny

C = ChunkConfig()
PAD, EPAD, SILENT, RESPONSE, END = C.padding_id, C.end_padding_id, C.silent, C.response, C.end
_ = -1


class Letters:
    """One piece a letter: ids from 10 on."""

    def encode(self, text: str) -> list[int]:
        return [10 + ord(c) - ord("a") for c in text]


def at(text: str, frame: float, frames: float = 2) -> Word:
    return Word(text, int(frame * CLOCK.frame), int((frame + frames) * CLOCK.frame))


def column(words: list[Word], frames: int = 20, gap_s: float = 1.0) -> list[int]:
    return text_column(words, Letters(), C, frames, gap_s).tolist()


def test_silence_is_decided_every_fifth_frame_and_nothing_else_happens() -> None:
    assert column([], 12) == [_, _, _, _, SILENT, _, _, _, _, SILENT, _, _]


def test_a_response_begins_with_the_decision_before_its_first_word_and_ends_after_its_last() -> None:
    # A word in frames 11 and 12: the chunk that is over with frame 9 is the last decision before it.
    assert column([at("ab", 11)]) == [
        _, _, _, _, SILENT, _, _, _, _, RESPONSE, EPAD, 10, 11, END, SILENT, _, _, _, _, SILENT,
    ]  # fmt: skip


def test_the_decision_that_comes_first_ends_a_response_without_a_token() -> None:
    assert column([at("ab", 12)])[9:16] == [RESPONSE, PAD, EPAD, 10, 11, SILENT, _]


def test_pieces_make_room_for_decisions_and_are_announced_where_it_was_silent() -> None:
    # From frame 13 on; 14 is a decision. A second word after a pause inside the response is announced, too.
    assert column([at("abc", 13, 3), at("d", 18, 1)], 25)[9:20] == [
        RESPONSE, PAD, PAD, EPAD, 10, RESPONSE, 11, 12, EPAD, 13, SILENT,
    ]  # fmt: skip


def test_words_that_overtake_each_other_lose_pieces_as_for_moshi() -> None:
    assert column([at("abcdef", 10, 2), at("g", 12, 1)])[9:15] == [RESPONSE, 10, 11, 16, END, SILENT]


@pytest.mark.parametrize(("gap_s", "decisions"), [(1.0, 2), (0.5, 3)])
def test_a_longer_silence_ends_a_response(gap_s: float, decisions: int) -> None:
    said = column([at("a", 10, 2), at("b", 22, 2)], 30, gap_s)  # 0.8 s of silence between them
    assert said.count(RESPONSE) == (3 if decisions == 2 else 2)
    assert (SILENT in said[9:22]) == (decisions == 3)


def test_a_word_before_the_first_decision_is_left_out() -> None:
    assert column([at("ab", 1)], 10) == [_, _, _, _, SILENT, _, _, _, _, SILENT]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8), st.text("abc", min_size=1, max_size=6)), max_size=8),
    st.integers(0, 60),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_every_column_is_legal_and_can_be_lived(
    said: list[tuple[int, int, str]], frames: int, chunk: int, gap_s: float
) -> None:
    c = ChunkConfig(chunk=chunk)
    words = [at(text, frame, length) for frame, length, text in said]
    got = text_column(words, Letters(), c, frames, gap_s)
    allowed = legal(c, torch.from_numpy(got)[None])[0].numpy() if frames else np.zeros((0, c.vocab), bool)
    speaking = responding(got, c)
    before = False
    for t, token in enumerate(got):
        decides = t % chunk == chunk - 1
        assert token < 0 or allowed[t, token]
        assert (token >= 0) == (decides or before), "it acts when a chunk is complete and while it responds"
        before = speaking[t]


# -- teaching ----------------------------------------------------------------------------------------------------------


def test_columns_are_in_time_with_a_policy_that_streams() -> None:
    """What is decided in call t is heard in frame t + 1; the user's frame t is heard in call t."""
    policy = tiny()
    teaching = ChunkTeaching(policy, SftConfig(frames=20))
    rng = np.random.default_rng(0)
    user, agent = rng.integers(0, 20, (8, 21)), rng.integers(0, 20, (8, 21))
    words = [at("fox", 12, 3)]
    got = teaching.columns(words, user, agent)
    text = got[0]
    assert got.shape == (17, 20) and np.array_equal(got[9:], user[:, :20])
    c = policy.model.config
    begin = int(np.flatnonzero(text == c.response)[0])
    first = next(t for t in range(20) if text[t] not in (-1, c.response, c.silent, c.padding_id, c.end_padding_id))
    assert begin == 9 and first == 11
    speaks = responding(text, c)
    assert np.array_equal(got[1:9][:, speaks], agent[:, 1:][:, :20][:, speaks]) and (got[1:9][:, ~speaks] == -1).all()
    forced = np.where(text < 0, -2, text)
    policy.reset(np.ones(1, bool), [0], [forced])
    for _frame in range(20):
        policy.step(np.zeros((1, policy.spec.frame), np.float32))
    lived = policy.trajectory().codes[0, 0].numpy()
    assert np.array_equal(lived, text), "a policy that is made to say it lives exactly this column"


def test_a_response_that_is_going_on_where_an_example_begins_goes_on_with_the_first_decision() -> None:
    teaching = ChunkTeaching(tiny(), SftConfig(frames=20))
    columns = np.tile(np.arange(40, dtype=np.int32), (17, 1))
    got = teaching.window(columns, 20, 20, 0)
    assert (got[:9, :4] == -1).all() and np.array_equal(got[:9, 4:], columns[:9, 24:])
    assert np.array_equal(got[9:], columns[9:, 20:])
    assert (teaching.window(columns, 25, 20, 0)[:, 15:] == -1).all()


def test_delays_and_frames_that_do_not_fit_a_chunk_policy_are_one_line() -> None:
    with pytest.raises(UptakeError, match="max_delay = 3: a chunk policy"):
        ChunkTeaching(tiny(), SftConfig(max_delay=3))
    with pytest.raises(UptakeError, match="frames = 151: must be a multiple of 5"):
        ChunkTeaching(tiny(), SftConfig(frames=151))

"""Text tokens become text, characters of several bytes included."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece

from align.policies.spelling import Speller


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["so it goes"] * 20), model_writer=model, vocab_size=300, hard_vocab_limit=False,
        byte_fallback=True, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def speller(tokenizer: sentencepiece.SentencePieceProcessor, silent: tuple[int, ...] = ()) -> Speller:
    return Speller(tokenizer, tokenizer.get_piece_size() + 2, silent).opened(2)


def spelt(speller: Speller, row: int, tokens: list[int]) -> list[str]:
    return [speller.decode(row, token) for token in tokens]


def bytes_of(tokenizer: sentencepiece.SentencePieceProcessor, text: bytes) -> list[int]:
    return [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in text]


def test_a_text_comes_back_with_the_space_that_begins_a_word(tokenizer):
    assert "".join(spelt(speller(tokenizer), 0, tokenizer.encode("so it goes \u20ac"))) == " so it goes \u20ac"


def test_a_character_of_several_byte_tokens_is_told_when_it_is_whole_and_silence_does_not_break_it(tokenizer):
    euro, pad = bytes_of(tokenizer, b"\xe2\x82\xac"), tokenizer.get_piece_size()
    assert spelt(speller(tokenizer), 0, [euro[0], euro[1], pad, euro[2]]) == ["", "", "", "\u20ac"]


def test_bytes_that_begin_no_character_are_dropped(tokenizer):
    tokens = bytes_of(tokenizer, b"\xff\xe2\x82\xac")
    assert spelt(speller(tokenizer), 0, tokens) == ["", "", "", "\u20ac"]


def test_what_a_row_has_begun_is_its_own_is_forked_and_is_forgotten_at_a_reset(tokenizer):
    first, second = bytes_of(tokenizer, b"\xc3\xa9")
    rows = speller(tokenizer)
    rows.decode(0, first)
    assert rows.decode(1, second) == ""
    rows.fork(0, np.array([1]))
    assert rows.decode(1, second) == "\u00e9"
    rows.reset(np.array([0]))
    assert rows.decode(0, second) == ""


def test_silent_tokens_and_those_that_the_tokenizer_lacks_say_nothing(tokenizer):
    word = tokenizer.encode("so")[0]
    assert spelt(speller(tokenizer, silent=(word,)), 0, [word, tokenizer.get_piece_size() + 1]) == ["", ""]

"""Text tokens to text, one at a time, for a batch of rows: pieces of sentencepiece, bytes of characters included."""

from __future__ import annotations

import copy
from collections.abc import Collection

import numpy as np
from sentencepiece import SentencePieceProcessor as Tokenizer


class Speller:
    """Knows what each token stands for, and per row the bytes of a character that is not complete yet."""

    def __init__(self, tokenizer: Tokenizer, tokens: int, silent: Collection[int]) -> None:
        """`tokens` is the size of the vocabulary; `silent` ids and those that the tokenizer lacks say nothing."""
        self._pieces = [_piece(tokenizer, token, silent) for token in range(tokens)]
        self._bytes: list[bytes] = []

    def opened(self, batch: int) -> Speller:
        """The same vocabulary for so many fresh rows."""
        other = copy.copy(self)
        other._bytes = [b""] * batch
        return other

    def reset(self, rows: np.ndarray) -> None:
        """Forget what the indices `rows` have begun."""
        for row in rows:
            self._bytes[row] = b""

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Give the indices `rows` what row `source` has begun."""
        for row in rows:
            self._bytes[row] = self._bytes[source]

    def decode(self, row: int, token: int) -> str:
        """The text that `token` completes; bytes of an unfinished character wait for the next token."""
        piece = self._pieces[token]
        if isinstance(piece, str):
            self._bytes[row] = b"" if piece else self._bytes[row]
            return piece
        self._bytes[row] += piece
        try:
            text = self._bytes[row].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                self._bytes[row] = b""
            return ""
        self._bytes[row] = b""
        return text


def _piece(tokenizer: Tokenizer, token: int, silent: Collection[int]) -> str | bytes:
    """What a text token stands for: a string (a leading space begins a word) or, for a byte token, one byte."""
    if token in silent or token >= tokenizer.get_piece_size() or tokenizer.is_control(token):
        return ""
    if tokenizer.is_unknown(token):
        return ""
    piece = tokenizer.id_to_piece(token)
    if tokenizer.is_byte(token):
        return bytes((int(piece[3:5], 16),))  # "<0x41>"
    return piece.replace("\u2581", " ")

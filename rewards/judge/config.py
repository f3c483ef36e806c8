"""Which language model judges, and how patiently it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from envs.chat.config import EndpointConfig
from envs.errors import UptakeError

TRANSCRIPTS = ("text", "asr")


@dataclass
class JudgeConfig(EndpointConfig):
    """The judge of the terms that ask a language model; without such a term in `rewards` nothing here is used."""

    section: ClassVar[str] = "judge"
    needed: ClassVar[str] = "a term in `rewards` asks a language model"

    cache: str = ".judge-cache"
    transcript: str = "text"
    """The agent's words that are judged. text: of its own text stream; asr: what speech recognition hears."""
    recogniser: str = "whisper"
    """Who hears for asr: `whisper`, an entry point of the group `uptake.asr`, or path/to/file.py:name."""

    def check(self) -> None:
        """Raise `UptakeError` for what cannot work; never with a key in its text."""
        super().check()
        if self.transcript not in TRANSCRIPTS:
            raise UptakeError(f"judge.transcript = {self.transcript!r}: must be one of {', '.join(TRANSCRIPTS)}")

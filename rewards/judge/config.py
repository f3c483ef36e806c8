"""Which language model judges, and how patiently it is asked."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from envs.errors import UptakeError

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]+")
TRANSCRIPTS = ("text", "asr")


@dataclass
class JudgeConfig:
    """The judge of the terms that ask a language model; without such a term in `rewards` nothing here is used."""

    base_url: str = ""
    """An OpenAI-compatible endpoint up to and without `/chat/completions`, for example http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name there. An answer by another model is a fault."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; empty: none is sent. The key itself goes nowhere else."""
    body: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 16})
    """Other fields of the request; null leaves one out. A model that thinks before it answers needs more tokens."""
    transcript: str = "text"
    """The agent's words that are judged. text: of its own text stream; asr: what speech recognition hears."""
    recogniser: str = "whisper"
    """Who hears for asr: `whisper`, an entry point of the group `uptake.asr`, or path/to/file.py:name."""
    concurrency: int = 16
    """Requests under way at once, on each rank."""
    requests_per_minute: float = 0.0
    """Most requests a minute, of all ranks together; 0: as many as `concurrency` allows."""
    timeout_s: float = 30.0
    """Seconds that one request may take."""
    retries: int = 3
    """Further tries after a failure that may pass: no connection, no answer in time, 429, 5xx, a broken body."""
    patience_s: float = 120.0
    """Seconds after which a question is given up, waiting and retries included: the longest that training waits."""
    breaker_faults: int = 8
    """Questions in a row without an answer after which the judge is left alone."""
    breaker_s: float = 30.0
    """Seconds that it is left alone; then one question tries it."""
    cache: str = ".judge-cache"
    """Folder of the answers that were given; the same question to the same model is asked once. Runs may share it."""

    def check(self) -> None:
        """Raise `UptakeError` for what cannot work; never with a key in its text."""
        if not self.base_url or not self.model:
            missing = "judge.base_url" if not self.base_url else "judge.model"
            raise UptakeError(
                f"{missing} is empty, and a term in `rewards` asks a language model; give both, for example "
                "judge.base_url=http://127.0.0.1:8000/v1 judge.model=NAME"
            )
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query or address.fragment:
            raise UptakeError(
                "judge.base_url holds a user, a password, a query or a fragment, which would be written into the run "
                "folder; put a key into an environment variable and name it in judge.api_key_env"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UptakeError(f"judge.base_url = {self.base_url!r}: must be an http:// or https:// address")
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            raise UptakeError(
                "judge.api_key_env is no name of an environment variable (capitals, digits, _); give the variable's "
                "name, never the key"
            )
        for name in ("concurrency", "breaker_faults"):
            if getattr(self, name) < 1:
                raise UptakeError(f"judge.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("retries", "requests_per_minute", "breaker_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UptakeError(f"judge.{name} = {getattr(self, name)}: must be 0 or more")
        for name in ("timeout_s", "patience_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UptakeError(f"judge.{name} = {getattr(self, name)}: must be more than 0")
        if self.transcript not in TRANSCRIPTS:
            raise UptakeError(f"judge.transcript = {self.transcript!r}: must be one of {', '.join(TRANSCRIPTS)}")
        if taken := {"model", "messages", "stream"} & set(self.body):
            raise UptakeError(f"judge.body.{min(taken)}: is set by uptake; remove it")
        try:
            json.dumps(self.body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UptakeError(f"judge.body: cannot be sent as JSON ({error})") from error

    @property
    def fields(self) -> dict[str, Any]:
        """`body` without what is left out."""
        return {name: value for name, value in self.body.items() if value is not None}

    def key(self) -> str:
        """The key from the environment; empty where none is named.

        Raises:
            UptakeError: the variable is not set, or holds what cannot be sent; its content is not in the text.
        """
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UptakeError(
                f"judge.api_key_env = {self.api_key_env}: this environment variable is not set; export it"
            )
        if not _KEY.fullmatch(key):
            raise UptakeError(f"judge.api_key_env = {self.api_key_env}: it holds a space or a sign that is not ASCII")
        return key

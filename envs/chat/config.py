"""Which language model is asked, and how patiently."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from envs.errors import UptakeError

Message = dict[str, str]
"""`role` and `content`."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]+")
_SECRET_FIELD = re.compile(r".*(api[-_]?key|authorization|password|secret).*|(.*[-_])?(token|key)", re.IGNORECASE)
_SECRET_PART = re.compile(r"(sk|pk|rk|gsk|hf|xai|nvapi)[-_].{5,}")
"""How the keys of well-known services begin."""


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible endpoint."""

    section: ClassVar[str] = "endpoint"
    """Where a user wrote this: what errors begin with."""
    needed: ClassVar[str] = "a language model is asked"
    """Why it must be complete."""

    base_url: str = ""
    """An OpenAI-compatible endpoint up to and without `/chat/completions`, for example http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name there. An answer by another model is a fault."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; empty: none is sent. The key itself goes nowhere else."""
    body: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 16})
    """Other fields of the request; null leaves one out. A model that thinks before it answers needs more tokens."""
    concurrency: int = 16
    """Requests under way at once, on each rank."""
    requests_per_minute: float = 0.0
    """Most requests a minute, of all ranks together; 0: as many as `concurrency` allows."""
    timeout_s: float = 30.0
    """Seconds that one request may take."""
    retries: int = 3
    """Further tries after a failure that may pass: no connection, no answer in time, 429, 5xx, a broken body."""
    patience_s: float = 120.0
    """Seconds after which a question is given up, retries and what lies between them included; they begin when it is
    among those under way, and stand still while `requests_per_minute` holds it back."""
    breaker_faults: int = 8
    """Questions in a row without an answer after which the model is left alone."""
    breaker_s: float = 30.0
    """Seconds that it is left alone; then one question tries it."""
    cache: str = ".chat-cache"
    """Folder of the answers that were given; the same question to the same model is asked once. Runs may share it."""

    def check(self) -> None:
        """Raise `UptakeError` for what cannot work; never with a key in its text."""
        if not self.base_url or not self.model:
            missing = "base_url" if not self.base_url else "model"
            raise UptakeError(
                f"{self.section}.{missing} is empty, and {self.needed}; give both, for example "
                f"{self.section}.base_url=http://127.0.0.1:8000/v1 {self.section}.model=NAME"
            )
        address = urlsplit(self.base_url)
        hidden = any(_SECRET_PART.fullmatch(part) for part in address.path.split("/"))
        if address.username or address.password or address.query or address.fragment or hidden:
            raise UptakeError(
                f"{self.section}.base_url holds a user, a password, a query, a fragment or a key, which would be "
                f"written into records; put a key into an environment variable and name it in "
                f"{self.section}.api_key_env"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UptakeError(f"{self.section}.base_url = {self.base_url!r}: must be an http:// or https:// address")
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            raise UptakeError(
                f"{self.section}.api_key_env is no name of an environment variable (capitals, digits, _); give the "
                "variable's name, never the key"
            )
        for name in ("concurrency", "breaker_faults"):
            if getattr(self, name) < 1:
                raise UptakeError(f"{self.section}.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("retries", "requests_per_minute", "breaker_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UptakeError(f"{self.section}.{name} = {getattr(self, name)}: must be 0 or more")
        for name in ("timeout_s", "patience_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UptakeError(f"{self.section}.{name} = {getattr(self, name)}: must be more than 0")
        if taken := {"model", "messages", "stream"} & set(self.body):
            raise UptakeError(f"{self.section}.body.{min(taken)}: is set by uptake; remove it")
        if (secret := next(filter(_SECRET_FIELD.fullmatch, _names(self.body)), None)) is not None:
            raise UptakeError(
                f"{self.section}.body: {secret!r} would be written into records; put a key into an environment "
                f"variable and name it in {self.section}.api_key_env"
            )
        try:
            json.dumps(self.body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UptakeError(f"{self.section}.body: cannot be sent as JSON ({error})") from error

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
                f"{self.section}.api_key_env = {self.api_key_env}: this environment variable is not set; export it"
            )
        if not _KEY.fullmatch(key):
            raise UptakeError(
                f"{self.section}.api_key_env = {self.api_key_env}: it holds a space or a sign that is not ASCII"
            )
        return key


def _names(value: Any) -> Iterator[str]:
    """The names of all fields, those inside others included."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield str(name)
        yield from _names(inner)

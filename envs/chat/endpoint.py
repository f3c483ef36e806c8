"""One request to an OpenAI-compatible chat endpoint, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from envs.chat.config import EndpointConfig, Message

LARGEST_REPLY = 2**20
"""Bytes of a response that are read; no honest answer is longer."""
SHOWN = 200
"""Characters of a server's text that a record or a log may hold."""
_DATE = re.compile(r"-(\d{4}-?\d{2}-?\d{2}|\d{4})")


class Fault(Exception):
    """Why a question has no answer. The text is one line and holds no key.

    Args:
        kind: `unreachable`, `timeout`, `rate_limited`, `server_error`, `refused`, `malformed`, `wrong_model`; and from
            elsewhere `late`, `breaker_open` and what the reader of the reply says.
        again: whether another try may help.
        after_s: seconds that the server asked to wait.
    """

    def __init__(self, kind: str, text: str, *, again: bool = False, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.kind, self.again, self.after_s = kind, again, after_s


@dataclass(frozen=True)
class Reply:
    """What a model said, and as whom."""

    text: str
    model: str
    tokens: int = 0
    """Of the question and the answer, as the endpoint counts them; 0 where it does not."""


class Endpoint:
    """A client that keeps its connections; used inside one event loop."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._key = config.key()
        self._address = config.base_url.rstrip("/") + "/chat/completions"
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
            timeout=None,  # `asyncio.timeout` below also ends a response that trickles
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def complete(self, messages: list[Message], more: Mapping[str, Any] | None = None) -> Reply:
        """Ask once; `more` are fields of this request alone.

        Raises:
            Fault: there is no usable reply.
        """
        body = {"model": self._config.model, "messages": messages, **self._config.fields, **(more or {})}
        try:
            async with asyncio.timeout(self._config.timeout_s):
                status, headers, content = await self._post(body)
        except TimeoutError:
            raise Fault("timeout", f"no answer within {self._config.timeout_s:g} s", again=True) from None
        except (httpx2.RemoteProtocolError, httpx2.DecodingError) as error:
            raise Fault("malformed", self.clean(f"a broken response: {error}"), again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            again = isinstance(error, httpx2.TransportError)
            raise Fault("unreachable", self.clean(f"{self._address}: {error}"), again=again) from None
        if status != 200:
            raise self._refusal(status, headers, content)
        return self._read(content)

    async def _post(self, body: dict[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        async with self._client.stream("POST", self._address, json=body) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > LARGEST_REPLY:
                    raise Fault("malformed", f"a response of more than {LARGEST_REPLY} bytes")
            return response.status_code, response.headers, bytes(content)

    def _refusal(self, status: int, headers: httpx2.Headers, content: bytes) -> Fault:
        text = self.clean(f"HTTP {status}: {content.decode('utf-8', 'replace')}")
        wait = retry_after(headers.get("retry-after", ""))
        if status == 429:
            return Fault("rate_limited", text, again=True, after_s=wait)
        if status >= 500 or status == 408:
            return Fault("server_error", text, again=True, after_s=wait)
        return Fault("refused", text)

    def _read(self, content: bytes) -> Reply:
        try:
            answer = json.loads(content)
            model, text = answer["model"], answer["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            what = f"no chat completion ({type(error).__name__}): {content.decode('utf-8', 'replace')}"
            raise Fault("malformed", self.clean(what), again=True) from None
        if not isinstance(model, str) or not isinstance(text, str | None):
            raise Fault("malformed", "no chat completion: model or content is no text", again=True)
        asked = self._config.model
        # A dated snapshot of the model is the model, and so is the name with its publisher in front.
        dated = model.startswith(asked) and _DATE.fullmatch(model.removeprefix(asked))
        if not (model == asked or dated or model.endswith(f"/{asked}")):
            raise Fault(
                "wrong_model",
                f"asked for {asked!r}, answered by {self.clean(model)!r}; set {self._config.section}.model",
            )
        usage = answer.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        return Reply(text or "", self.clean(model), tokens if type(tokens) is int and tokens > 0 else 0)

    def clean(self, text: str) -> str:
        """One line of printable text without the key: all that a record or a log may hold."""
        return "".join(c if c.isprintable() else " " for c in self.without_key(text))[:SHOWN].strip()

    def without_key(self, text: str) -> str:
        """A text in which the key, should a server echo it, is not to be found: all that may leave this object."""
        if self._key:
            escaped = json.dumps(self._key)[1:-1]  # as a server's JSON would echo it
            for spelling in (self._key, escaped, escaped.replace("/", "\\/")):
                text = text.replace(spelling, "[key]")
        return text


def retry_after(value: str) -> float:
    """Seconds from a `Retry-After` header, given in seconds or as a date; 0 for what is neither."""
    try:
        return max(0.0, float(int(value)))
    except (ValueError, OverflowError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0

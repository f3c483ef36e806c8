"""Questions to a language model in the background: cached, rate-limited and retried.

`Chat.ask` returns at once. A thread with an event loop of its own sends the requests, `concurrency` at a time. Every
future that it gives out is settled within `patience_s` of its turn: what a question waits for its turn or for its share
of a minute is no fault of the endpoint. The same question under way twice is asked once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from aiolimiter import AsyncLimiter

from envs.chat.breaker import Breaker
from envs.chat.cache import Cache
from envs.chat.config import EndpointConfig, Message
from envs.chat.endpoint import Endpoint, Fault, Reply

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Read = Callable[[str], dict[str, Any]]
"""Makes the fields of an answer of a reply's text; raises `Fault` for one that makes no sense."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
"""Between tries: up to the first, doubled each time, up to the longest; at random below, so that ranks do not march."""


def question_key(*content: Any) -> str:
    """SHA-256 of all that an answer depends on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Chat:
    """A language model that is asked in the background.

    Raises `UptakeError` for a configuration that cannot work.

    Args:
        config: which model, how patiently.
        share: of `requests_per_minute` that is this process's.
        who: what a log calls it.
    """

    def __init__(self, config: EndpointConfig, share: float = 1.0, who: str = "model") -> None:
        config.check()
        self.config, self._who = config, who
        self._endpoint = Endpoint(config)  # now, so that an environment variable that is missing is found now
        rate = config.requests_per_minute * share
        self._rate: AbstractAsyncContextManager[None] = (
            AsyncLimiter(max(rate, 1.0), 60.0 * max(1.0, 1.0 / rate)) if rate else nullcontext()
        )
        self._slots, self._trial, self._stop = asyncio.Semaphore(config.concurrency), asyncio.Lock(), asyncio.Event()
        self._not_before = 0.0
        """Of the loop's clock: a model that is busy said so."""
        self._cache = Cache(Path(config.cache))
        self._breaker = Breaker(config.breaker_faults, config.breaker_s)
        self.uncached = 0
        """Answers that could not be kept."""
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def ask(self, key: str, settle: Callable[[], Coroutine[Any, Any, Answer]]) -> Future[Answer]:
        """Run `settle`, which awaits `answer`, in the background; a key that is under way is not asked again."""
        with self._lock:
            found = self._under_way.get(key)
            if found is None:
                loop = self._loop or self._start()
                found = asyncio.run_coroutine_threadsafe(settle(), loop)
                self._under_way[key] = found
                found.add_done_callback(lambda _: self._under_way.pop(key, None))
        return found

    async def answer(
        self,
        key: str,
        messages: Sequence[Message],
        read: Read,
        *,
        again: Callable[[Mapping[str, Any]], dict[str, Any] | None],
        note: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The fields that `read` makes of the reply, and `reply`, `model`, `tokens`; `cached` where it was known.

        Args:
            again: the fields of a cache entry; None for one that somebody has damaged.
            note: what else the cache keeps beside them.
            more: fields of this request alone.

        Raises:
            Fault: there is no usable reply within `patience_s` of the question's turn.
        """
        stored = self._cache.get(key)
        if stored is not None and (known := again(stored)) is not None:
            return {**known, "cached": True}
        async with self._slots:
            found = await self._guarded(list(messages), read, more)
        try:
            self._cache.put(key, {**found, **note, "messages": list(messages)})
        except OSError as error:
            if not self.uncached:
                section, cache = self.config.section, self.config.cache
                log.warning("%s.cache = %s: %s; answers are not kept", section, cache, error.strerror)
            self.uncached += 1
        return found

    def close(self) -> None:
        """Give up what is under way and end the thread."""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            self._loop = self._thread = None

    # ---- in a thread of its own

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def live() -> None:
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()
            await self._endpoint.close()

        self._thread = threading.Thread(target=asyncio.run, args=(live(),), name=f"uptake-{self._who}", daemon=True)
        self._thread.start()
        self._loop = started.result()
        return self._loop

    async def _guarded(self, messages: list[Message], read: Read, more: Mapping[str, Any] | None) -> dict[str, Any]:
        """Ask, if the breaker lets it through: when it is half open, one question tries and the others wait."""
        if self._breaker.state == "half_open":
            async with self._trial:
                if self._breaker.state == "half_open":
                    return await self._counted(messages, read, more)
        return await self._counted(messages, read, more)

    async def _counted(self, messages: list[Message], read: Read, more: Mapping[str, Any] | None) -> dict[str, Any]:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Fault) and error.again),
            reraise=True,
        )
        try:
            found: dict[str, Any] = await self._in_time(retrying, messages, read, more)
        except Fault as fault:
            if fault.kind != "breaker_open" and self._breaker.failed():
                log.warning(
                    "the %s %s failed %d times in a row; it is left alone for %g s, and what depends on it is masked",
                    self._who, self.config.model, self.config.breaker_faults, self.config.breaker_s,
                )  # fmt: skip
            raise
        if self._breaker.succeeded():
            log.warning("the %s %s answers again", self._who, self.config.model)
        return found

    async def _in_time(self, retrying: tenacity.AsyncRetrying, *asked: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.config.patience_s) as patience:
                found: dict[str, Any] = await retrying(self._once, patience, *asked)
                return found
        except TimeoutError:
            why = f"no answer within {self.config.section}.patience_s = {self.config.patience_s:g} s"
            raise Fault("late", why) from None

    async def _once(
        self, patience: asyncio.Timeout, messages: list[Message], read: Read, more: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        while (wait := self._not_before - loop.time()) > 0:  # one 429 holds back everybody
            await asyncio.sleep(wait)
        if self._breaker.state == "open":
            raise Fault("breaker_open", f"{self.config.breaker_faults} questions in a row had no answer")
        until, since = patience.when(), loop.time()
        assert until is not None
        patience.reschedule(None)
        async with self._rate:
            patience.reschedule(until + loop.time() - since)
        try:
            reply: Reply = await self._endpoint.complete(messages, more)
        except Fault as fault:
            self._not_before = max(self._not_before, loop.time() + min(fault.after_s, self.config.patience_s))
            raise
        try:
            found = read(self._endpoint.without_key(reply.text))
        except Fault as fault:
            raise Fault(fault.kind, self._endpoint.clean(str(fault)), again=fault.again) from None
        return {**found, "reply": self._endpoint.clean(reply.text), "model": reply.model, "tokens": reply.tokens}

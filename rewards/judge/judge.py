"""Questions to a language model, answered in the background: cached, rate-limited, retried, and never waited for long.

`Judge.ask` returns at once. A thread with an event loop of its own sends the requests, `concurrency` at a time; every
future it gives out is settled within `patience_s`, by a score or by a fault, and never raises. The same question under
way twice is asked once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from aiolimiter import AsyncLimiter

from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from rewards.judge.answer import Answer
from rewards.judge.breaker import Breaker
from rewards.judge.cache import Cache
from rewards.judge.config import JudgeConfig
from rewards.judge.endpoint import Endpoint, Fault
from rewards.judge.rubric import Question, Rubric, Unreadable

log = logging.getLogger(__name__)
Heard = TypeVar("Heard")
Hearing = tuple[Future[Heard | Answer], float]
"""What will be made of the words that are heard, and until when it is waited for."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
"""Between tries: up to the first, doubled each time, up to the longest; at random below, so that ranks do not march."""


class Judge:
    """A language model that answers questions of the terms that ask one.

    Raises `UptakeError` for a configuration that cannot work.

    Args:
        config: which model, how patiently.
        listen: words of an episode's agent from its sound, in place of its text stream (`align.hearing.Listener`);
            called in a thread of its own, one episode at a time.
        share: of `requests_per_minute` that is this process's.
    """

    def __init__(
        self,
        config: JudgeConfig,
        listen: Callable[[Episode], Sequence[Word]] | None = None,
        share: float = 1.0,
    ) -> None:
        config.check()
        self.config = config
        self._endpoint = Endpoint(config)  # now, so that an environment variable that is missing is found now
        self.counts: Counter[str] = Counter()
        """Questions by what became of them: `asked`, `cached`, and faults by kind."""
        self._listen = listen
        rate = config.requests_per_minute * share
        self._rate: AbstractAsyncContextManager[None] = (
            AsyncLimiter(max(rate, 1.0), 60.0 * max(1.0, 1.0 / rate)) if rate else nullcontext()
        )
        self._slots, self._trial, self._stop = asyncio.Semaphore(config.concurrency), asyncio.Lock(), asyncio.Event()
        self._not_before = 0.0
        """Of the loop's clock: a judge that is busy said so."""
        self._cache = Cache(Path(config.cache))
        self._breaker = Breaker(config.breaker_faults, config.breaker_s)
        self._log: Path | None = None
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Answer]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener = ThreadPoolExecutor(1, thread_name_prefix="uptake-listener")

    # ---- asking

    def ask(self, question: Question) -> Future[Answer]:
        """Put a question; returns at once. The future is settled within `patience_s` and does not raise."""
        key = question.key(self.config.model, self.config.fields)
        with self._lock:
            found = self._under_way.get(key)
            if found is None:
                loop = self._loop or self._start()
                found = asyncio.run_coroutine_threadsafe(self._settle(question, key), loop)
                self._under_way[key] = found
                found.add_done_callback(lambda _: self._under_way.pop(key, None))
        return found

    def heard(self, episode: Episode, then: Callable[[Sequence[Word]], Heard]) -> Hearing[Heard] | None:
        """Listen to an episode's agent in the background and hand on its words; None where its text is judged."""
        listen = self._listen
        if listen is None:
            return None

        def hear() -> Heard | Answer:
            try:
                words = listen(episode)
            # Speech recognition may be anybody's code: what it raises costs the verdicts, and must not cost the run.
            except Exception as error:
                return Answer(fault="transcript", detail=f"{type(error).__name__}: {error}")
            return then(words)

        return self._listener.submit(hear), time.monotonic() + self.config.patience_s

    def wait(self, hearing: Hearing[Heard]) -> Heard | Answer:
        """What was made of the words that were heard; a fault when listening failed or takes too long."""
        future, until = hearing
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            why = f"not transcribed within judge.patience_s = {self.config.patience_s:g} s"
            return Answer(fault="transcript", detail=why)

    def probe(self, rubric: Rubric) -> None:
        """Ask for one judgement of a fixed exchange, so that a wrong address, key or model is found before a run.

        Raises:
            UptakeError: it gave none.
        """
        question = Question(rubric, (("USER", "What is the capital of France?"),), "It is Paris.")
        answer = self.ask(question).result()
        if answer.fault:
            raise UptakeError(
                f"the judge {self.config.model} at {self.config.base_url} gave no score to a test question: "
                f"{answer.fault}: {answer.detail}; mend that, or leave the terms that ask it out of `rewards`"
            )

    def close(self) -> None:
        """Give up what is under way and end the threads."""
        self._listener.shutdown(wait=False, cancel_futures=True)
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            self._loop = self._thread = None

    # ---- the record

    def record_in(self, folder: Path, rubrics: Sequence[Rubric], rank: int = 0) -> None:
        """Write `judge.json` (model, endpoint, every rubric in full) and put each judgement into `judgements.jsonl`."""
        self._log = folder / ("judgements.jsonl" if rank == 0 else f"judgements-rank{rank}.jsonl")
        if rank == 0:
            partial = folder / "judge.json.partial"
            partial.write_text(json.dumps(self.describe(rubrics), indent=1, ensure_ascii=False) + "\n", "utf-8")
            os.replace(partial, folder / "judge.json")

    def describe(self, rubrics: Sequence[Rubric]) -> dict[str, Any]:
        """Model, endpoint and prompts, as `judge.json` holds them."""
        return {
            "v": 1,
            "model": self.config.model,
            "base_url": self.config.base_url,
            "body": self.config.fields,
            "transcript": self.config.transcript,
            "recogniser": self.config.recogniser if self.config.transcript == "asr" else None,
            "rubrics": {
                rubric.name: {
                    "source": rubric.source,
                    "digest": rubric.digest,
                    "scale": [rubric.low, rubric.high],
                    "instructions": rubric.instructions,
                }
                for rubric in rubrics
            },
        }

    def note(self, episode: str, event: str, term: str, answer: Answer) -> None:
        """Count a judgement, log a fault, and append it to the record.

        A fault is a warning that names the episode, except those that an open breaker causes: its opening was one.
        """
        self.counts[answer.fault or ("cached" if answer.cached else "asked")] += 1
        if answer.fault:
            level = logging.INFO if answer.fault == "breaker_open" else logging.WARNING
            log.log(level, "no score: %s, event %s, %s: %s: %s", episode, event, term, answer.fault, answer.detail)
        if self._log is not None:
            line = {"episode": episode, "event": event, "term": term, **answer.to_json()}
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    # ---- in the judge's own thread

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def live() -> None:
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()
            await self._endpoint.close()

        self._thread = threading.Thread(target=asyncio.run, args=(live(),), name="uptake-judge", daemon=True)
        self._thread.start()
        self._loop = started.result()
        return self._loop

    async def _settle(self, question: Question, key: str) -> Answer:
        rubric = question.rubric

        def answer(**found: Any) -> Answer:
            return Answer(rubric.name, rubric.digest, question.asked, key, **found)

        stored = self._cache.get(key)
        if stored is not None and (known := _scored(stored, rubric)):
            return answer(**known, cached=True)
        try:
            async with asyncio.timeout(self.config.patience_s):
                async with self._slots:
                    found = await self._guarded(question)
        except Fault as fault:
            return answer(fault=fault.kind, detail=str(fault))
        except TimeoutError:
            return answer(fault="late", detail=f"no score within judge.patience_s = {self.config.patience_s:g} s")
        try:
            self._cache.put(key, {**found, "digest": rubric.digest, "messages": question.messages})
        except OSError as error:
            if not self.counts["uncached"]:
                log.warning("judge.cache = %s: %s; answers are not kept", self.config.cache, error.strerror)
            self.counts["uncached"] += 1
        return answer(**found)

    async def _guarded(self, question: Question) -> dict[str, Any]:
        """Ask, if the breaker lets it through: when it is half open, one question tries and the others wait."""
        if self._breaker.state == "half_open":
            async with self._trial:
                if self._breaker.state == "half_open":
                    return await self._counted(question)
        return await self._counted(question)

    async def _counted(self, question: Question) -> dict[str, Any]:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Fault) and error.again),
            reraise=True,
        )
        try:
            found: dict[str, Any] = await retrying(self._once, question)
        except Fault as fault:
            if fault.kind != "breaker_open" and self._breaker.failed():
                log.warning(
                    "the judge %s failed %d times in a row; it is left alone for %g s and its terms are masked",
                    self.config.model, self.config.breaker_faults, self.config.breaker_s,
                )  # fmt: skip
            raise
        if self._breaker.succeeded():
            log.warning("the judge %s answers again", self.config.model)
        return found

    async def _once(self, question: Question) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        while (wait := self._not_before - loop.time()) > 0:  # one 429 holds back everybody
            await asyncio.sleep(wait)
        if self._breaker.state == "open":
            raise Fault("breaker_open", f"{self.config.breaker_faults} questions in a row had no answer")
        async with self._rate:
            pass
        try:
            reply = await self._endpoint.complete(question.messages)
        except Fault as fault:
            self._not_before = max(self._not_before, loop.time() + min(fault.after_s, self.config.patience_s))
            raise
        try:
            score = question.rubric.read(reply.text)
        except Unreadable as error:
            raise Fault(error.kind, self._endpoint.clean(str(error))) from None
        return {"score": score, "reply": self._endpoint.clean(reply.text), "model": reply.model}


def _scored(stored: Mapping[str, Any], rubric: Rubric) -> dict[str, Any] | None:
    """Score, reply and model of a cache entry; None for one that somebody has damaged."""
    score, reply, model = (stored.get(name) for name in ("score", "reply", "model"))
    if type(score) is not int or not rubric.low <= score <= rubric.high:
        return None
    return {"score": score, "reply": str(reply), "model": str(model)}

"""Questions to a language model, answered in the background: cached, rate-limited and retried.

`Judge.ask` returns at once (`envs.chat`); every future it gives out is settled within `patience_s` of its turn, by a
score or by a fault, and never raises.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from envs.chat.chat import Chat
from envs.chat.endpoint import Fault
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from envs.files import whole
from rewards.judge.answer import Answer
from rewards.judge.config import JudgeConfig
from rewards.judge.rubric import Question, Rubric, Unreadable

log = logging.getLogger(__name__)
Heard = TypeVar("Heard")
Hearing = tuple[Future[Heard | Answer], float]
"""What will be made of the words that are heard, and when it was asked for (`time.monotonic`)."""


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
        self.config = config
        self._chat = Chat(config, share, "judge")
        self.counts: Counter[str] = Counter()
        """Questions by what became of them: `asked`, `cached`, and faults by kind."""
        self._listen = listen
        self._log: Path | None = None
        self._listener = ThreadPoolExecutor(1, thread_name_prefix="uptake-listener")
        self._listened = 0.0
        """When it was last done with an episode."""

    # ---- asking

    def ask(self, question: Question) -> Future[Answer]:
        """Put a question; returns at once. The future is settled within `patience_s` of its turn and does not raise."""
        key = question.key(self.config.model, self.config.fields)
        return self._chat.ask(key, lambda: self._settle(question, key))

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
            finally:
                self._listened = time.monotonic()
            return then(words)

        return self._listener.submit(hear), time.monotonic()

    def wait(self, hearing: Hearing[Heard]) -> Heard | Answer:
        """What was made of the words that were heard; a fault when listening failed, or when the listener has been at
        one episode for longer than `patience_s`."""
        future, asked = hearing
        while (left := max(asked, self._listened) + self.config.patience_s - time.monotonic()) > 0:
            try:
                return future.result(left)
            except TimeoutError:
                continue  # it may have come to the next episode meanwhile
        if future.done():
            return future.result()
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
        self._chat.close()

    # ---- the record

    def record_in(self, folder: Path, rubrics: Sequence[Rubric], rank: int = 0) -> None:
        """Write `judge.json` (model, endpoint, every rubric in full) and put each judgement into `judgements.jsonl`."""
        self._log = folder / ("judgements.jsonl" if rank == 0 else f"judgements-rank{rank}.jsonl")
        if rank == 0:
            with whole(folder / "judge.json") as partial:
                partial.write_text(json.dumps(self.describe(rubrics), indent=1, ensure_ascii=False) + "\n", "utf-8")

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

    # ---- in the chat's own thread

    async def _settle(self, question: Question, key: str) -> Answer:
        rubric = question.rubric

        def answer(**found: Any) -> Answer:
            return Answer(rubric.name, rubric.digest, question.asked, key, **found)

        def read(reply: str) -> dict[str, Any]:
            try:
                return {"score": rubric.read(reply)}
            except Unreadable as error:
                raise Fault(error.kind, str(error)) from None

        try:
            found = await self._chat.answer(
                key,
                question.messages,
                read,
                again=lambda stored: _scored(stored, rubric),
                note={"digest": rubric.digest},
            )
        except Fault as fault:
            return answer(fault=fault.kind, detail=str(fault))
        return answer(**{name: found[name] for name in ("score", "reply", "model", "cached") if name in found})


def _scored(stored: Mapping[str, Any], rubric: Rubric) -> dict[str, Any] | None:
    """Score, reply and model of a cache entry; None for one that somebody has damaged."""
    score, reply, model = (stored.get(name) for name in ("score", "reply", "model"))
    if type(score) is not int or not rubric.low <= score <= rubric.high:
        return None
    return {"score": score, "reply": str(reply), "model": str(model)}

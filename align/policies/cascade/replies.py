"""What a language model answers, as something that can be said: recognised, asked, spoken, all in the background.

A question is the sound of what the user said. It is read by a recogniser and put to the endpoint with the turns before
it; the answer is a clip of the pack where the pack has its text, else it is synthesised. Whatever fails on the way
(recognition, endpoint, nonsense, speech) is a fault with a name, and there is no answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.hearing import normal
from align.policies.cascade.config import LlmConfig, SpeechConfig
from align.recognition import Recogniser, open_recogniser
from envs.chat.chat import Chat, question_key
from envs.chat.config import Message
from envs.chat.endpoint import Fault
from envs.clock import CLOCK
from envs.episode import from_pcm16
from envs.errors import UptakeError
from envs.pack import Clip
from envs.synthesis.engines import choose
from envs.users.caller import synthesised
from envs.users.decisions import make_engine, open_engine, speak
from envs.users.llm_user import Voice

MOST_CHARACTERS = 300
_SPOKEN = (
    "What you write is spoken to the user at once: one or two short sentences, at most "
    f"{MOST_CHARACTERS} characters, without markup, lists or stage directions."
)
_CHOSEN = "Answer with the one of these sentences that fits best, word for word, and with nothing else:\n"
_MISHEARD = "The user's words come from speech recognition and may be misheard."
INAUDIBLE = "(inaudible)"
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_SENTENCES = re.compile(rf".{{1,{MOST_CHARACTERS - 1}}}[.!?](?=\s)")
_KEPT = 1024  # recognitions and questions: rows of a group say the same at the same time
_GRACE_S = 5.0  # each step in the background keeps `patience_s` by itself; this guards against a thread that died


class Question(NamedTuple):
    """What the user said, and what was said before it."""

    number: int
    """Answers of the conversation that there were before."""
    heard: bytes
    """16-bit samples at the clock's rate."""
    before: tuple[tuple[str, str], ...]
    """What the user said and what was answered, oldest first."""

    @property
    def key(self) -> str:
        """SHA-256 of all that the answer depends on."""
        return question_key(self.number, hashlib.sha256(self.heard).hexdigest(), self.before)


@dataclass(frozen=True)
class Reply:
    """What became of a question: something to say, or a fault."""

    sound: Clip | None = None
    heard: str = ""
    """What the recogniser made of the user."""
    text: str = ""
    """What is said."""
    key: str = ""
    """Of the question to the endpoint."""
    reply: str = ""
    """The model's, as it came."""
    model: str = ""
    tokens: int = 0
    cached: bool = False
    fault: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """All but the sound, of which the clip is named."""
        found = {name: value for name, value in vars(self).items() if name != "sound"}
        return found | {"clip": "" if self.sound is None else self.sound.id}


class Replies:
    """The answers of one language model.

    Args:
        config: which, and who reads and speaks.
        clips: of the pack, which are said where their text is the answer.

    Raises:
        UptakeError: an endpoint that cannot work, a recogniser, an engine or a log that is not there.
    """

    def __init__(self, config: LlmConfig, clips: Sequence[Clip]) -> None:
        self.config = config
        self._clips = {normal(clip.text): clip for clip in clips}
        self._read, self._reader = _open_reader(config.recogniser)
        self._texts: dict[str, str] = {}
        # Each is one thread, and patience is for its work: a question does not pay for those before it.
        self._reads, self._speaks = asyncio.Lock(), asyncio.Lock()
        self.voice = None if config.speech is None else _find_voice(config.speech, clips)
        how = _SPOKEN if self.voice else _CHOSEN + "\n".join(f"- {clip.text}" for clip in clips)
        self.instructions = f"{config.instructions}\n{_MISHEARD}\n{how}"
        self._log = read_log(Path(config.log)) if config.log else None
        self._chat = None if config.log else Chat(config.endpoint, who="reply model")
        self._under_way: dict[str, Future[Reply]] = {}

    def ask(self, question: Question) -> None:
        """Send a question on its way; returns at once."""
        key = question.key
        if key in self._under_way:
            return
        for old in [old for old, future in self._under_way.items() if future.done()][:-_KEPT]:
            del self._under_way[old]
        if self._chat is not None:
            self._under_way[key] = self._chat.ask(key, lambda: self._settle(question))
        else:
            self._under_way[key] = _replayer().submit(lambda: asyncio.run(self._settle(question)))

    def take(self, question: Question) -> Reply:
        """What became of a question; waits for it, but never for longer than the endpoint's patience allows: for its
        recognition, model and speech, and for as many as may be read and spoken before it."""
        self.ask(question)
        longest = (1 + 2 * len(self._under_way)) * self.config.endpoint.patience_s + _GRACE_S
        try:
            return self._under_way[question.key].result(longest)
        except (TimeoutError, CancelledError):
            return Reply(fault="late", detail=f"no answer within {longest:g} s")

    def drop(self, question: Question) -> None:
        """Nobody waits for this one any more: a request under way is broken off, and a fault is forgotten, so that
        another conversation asks again."""
        if (future := self._under_way.pop(question.key, None)) is not None:
            future.cancel()

    def messages(self, before: Sequence[tuple[str, str]], heard: str) -> list[Message]:
        """What is sent."""
        said: list[Message] = [{"role": "system", "content": self.instructions}]
        for user, assistant in before:
            said += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*said, {"role": "user", "content": heard}]

    # -- in the background ---------------------------------------------------------------------------------------------

    async def _settle(self, question: Question) -> Reply:
        heard = key = ""
        try:
            self._recall_silence(question.number)
            heard = await self._recognise(question.heard)
            messages = self.messages(question.before, heard)
            endpoint = self.config.endpoint
            key = question_key(endpoint.model, messages, endpoint.fields)
            found = self._recall(question.number, key) if self._chat is None else await self._answer(key, messages)
            sound = self._clips.get(normal(found["text"])) or await self._speak(found["text"])
        except Fault as fault:
            return Reply(heard=heard, key=key, fault=fault.kind, detail=str(fault))
        return Reply(sound, heard, key=key, **found)

    async def _recognise(self, pcm: bytes) -> str:
        digest = hashlib.sha256(pcm).hexdigest()
        async with self._reads:
            if digest not in self._texts:
                self._texts[digest] = await self._transcribe(from_pcm16(np.frombuffer(pcm, np.int16)))
            for old in list(self._texts)[:-_KEPT]:
                del self._texts[old]
            text = self._texts[digest]
        if not normal(text):
            raise Fault("not_understood", f"{self.config.recogniser} heard no words")
        return text

    async def _transcribe(self, audio: np.ndarray) -> str:
        patience_s, loop = self.config.endpoint.patience_s, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                words = await loop.run_in_executor(self._reader, self._read, audio, CLOCK.sample_rate)
        except TimeoutError:
            raise Fault("recogniser", f"{self.config.recogniser} did not read within {patience_s:g} s") from None
        # A recogniser may be anybody's code: what it raises costs the answer, and must not cost the run.
        except Exception as error:
            raise Fault("recogniser", f"{type(error).__name__}: {error}"[:200]) from None
        return " ".join(word.text for word in words)

    async def _answer(self, key: str, messages: list[Message]) -> dict[str, Any]:
        def again(stored: Mapping[str, Any]) -> dict[str, Any] | None:
            text = stored.get("text")
            try:
                found = self.read(text if isinstance(text, str) else "")
            except Fault:
                return None
            tokens = stored.get("tokens")
            kept = {name: str(stored.get(name, "")) for name in ("reply", "model")}
            return found | kept | {"tokens": tokens if type(tokens) is int else 0}

        assert self._chat is not None
        return await self._chat.answer(key, messages, self.read, again=again, note={})

    def _recall_silence(self, number: int) -> None:
        """Where the log says that a question never came to be put, it does not, so that what follows is the same."""
        record = self._log[number] if self._log is not None and number < len(self._log) else {}
        if record.get("fault") and not record.get("key"):
            raise Fault(str(record["fault"]), str(record.get("detail", "")))

    def _recall(self, number: int, key: str) -> dict[str, Any]:
        assert self._log is not None
        if number >= len(self._log):
            raise Fault("not_in_log", f"{self.config.log} holds {len(self._log)} answers")
        record = self._log[number]
        if record.get("key") != key:
            why = "was to something else: another user, seed, recogniser or configuration"
            raise Fault("not_in_log", f"answer {number} of {self.config.log} {why}")
        if record.get("fault"):
            raise Fault(str(record["fault"]), str(record.get("detail", "")))
        return {**self.read(str(record.get("text", ""))), "reply": str(record.get("reply", "")), "cached": True}

    async def _speak(self, text: str) -> Clip:
        assert self.voice is not None and self.config.speech is not None  # `read` lets only the pack's texts through
        folder = Path(self.config.speech.cache)
        async with self._speaks:
            pcm = await speak(self.voice, text, self.config.endpoint.patience_s, folder)
        return synthesised(text, pcm, self.voice.voice).clip

    def read(self, reply: str) -> dict[str, Any]:
        """The text in a model's reply, after its thoughts (`<think>...</think>`); whole sentences of a long one.

        Raises:
            Fault: `nonsense`: nothing that can be said.
        """
        text = " ".join(_THOUGHT.sub("", reply).split()).strip("\"'")
        if len(text) > MOST_CHARACTERS and (whole := _SENTENCES.match(text)):
            text = whole[0]
        if not normal(text) or len(text) > MOST_CHARACTERS or not text.isprintable():
            raise Fault("nonsense", f"{len(text)} characters that cannot be said: {text[:80]!r}", again=True)
        if self.voice is None and normal(text) not in self._clips:
            raise Fault("nonsense", f"none of the pack's sentences: {text[:80]!r}", again=True)
        return {"text": text}


@cache
def _open_reader(name: str) -> tuple[Recogniser, ThreadPoolExecutor]:
    """A recogniser and the thread that it reads in; a model is loaded once a process."""
    return open_recogniser(name), ThreadPoolExecutor(1, thread_name_prefix="uptake-hearing")


@cache
def _replayer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="uptake-replies")


def _find_voice(config: SpeechConfig, clips: Sequence[Clip]) -> Voice:
    """The engine and the voice that are meant; `UptakeError` if they are not there."""
    folder = Path(config.voices) if config.voices else None
    name = config.engine or choose(None, folder).name
    voice = config.voice
    if not voice:
        known = make_engine(name, folder).voices()
        voice = next((clip.voice for clip in clips if clip.voice in known), known[0])
    found = Voice(name, voice, folder)
    open_engine(found)
    return found


def read_log(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The answers of a conversation that was stored; raises `UptakeError` naming the file."""
    path = folder / "meta.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["meta"]["cascade"]["replies"]
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read ({error}); give the folder of an episode"
        raise UptakeError(f"cascade: llm.log: {path}: {why}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UptakeError(f"cascade: llm.log: {path}: holds no answers of a cascade ({error!r})") from error
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise UptakeError(f"cascade: llm.log: {path}: its answers are no list of records; restore the file")
    return tuple(found)

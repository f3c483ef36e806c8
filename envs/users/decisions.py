"""Where the decisions of llm users come from: an endpoint, asked in the background, or the log of an earlier
conversation. Each is settled within `patience_s` of its turn, by a decision or by a fault.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from envs.chat.chat import Chat, question_key
from envs.chat.config import Message
from envs.chat.endpoint import Fault
from envs.clock import CLOCK
from envs.episode import to_pcm16
from envs.errors import UptakeError, nearest
from envs.synthesis.engines import ENGINES, Engine, cached, choose, speech_file
from envs.users.caller import Caller, Offer, synthesised
from envs.users.llm_prompt import Decision, read
from envs.users.llm_user import LlmUser, UserEndpoint, Voice

ENTRY_POINT_GROUP = "uptake.speech_engines"
LONGEST_SPEECH_S = 30.0
LONGEST_BACKCHANNEL_S = 1.0
_KEPT = 1024  # answers: rows of a group ask the same at the same time


class Question(NamedTuple):
    """One decision that is asked for."""

    caller: Caller
    number: int
    """How many this conversation asked for before."""
    instructions: str
    situation: str

    @property
    def messages(self) -> list[Message]:
        """What is sent."""
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": self.situation}]

    @property
    def more(self) -> dict[str, Any]:
        """Fields of the request besides the endpoint's: a seed, unless the scenario says something about it."""
        return {} if "seed" in self.caller.user.endpoint.body else {"seed": self.caller.seed}

    @property
    def key(self) -> str:
        """SHA-256 of all that the answer depends on."""
        endpoint = self.caller.user.endpoint
        return question_key(endpoint.model, self.messages, {**endpoint.fields, **self.more})


@dataclass(frozen=True)
class Decided:
    """What became of a question: a decision, or a fault."""

    decision: Decision | None = None
    offer: Offer | None = None
    """What is said, where it is synthesised."""
    reply: str = ""
    model: str = ""
    tokens: int = 0
    cached: bool = False
    fault: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """All of it; synthesised speech as FLAC in base 64."""
        found = {name: value for name, value in vars(self).items() if name not in ("decision", "offer")}
        found["decision"] = None if self.decision is None else self.decision.to_json()
        if self.offer is not None:
            encoded = io.BytesIO()
            soundfile.write(encoded, self.offer.clip.pcm, CLOCK.sample_rate, format="FLAC", subtype="PCM_16")
            found["speech"] = base64.b64encode(encoded.getvalue()).decode()
        return found


class Decisions:
    """The decisions of a batch of llm users."""

    def __init__(self) -> None:
        self._under_way: dict[str, Future[Decided]] = {}

    def open(self, user: LlmUser) -> None:
        """Find out now what would make every question fail.

        Raises:
            UptakeError: a log or an engine that is not there, or an endpoint that cannot work.
        """
        if user.log is not None:
            read_log(user.log)
            return
        _chat(_as_json(user.endpoint))
        if user.speech is not None:
            open_engine(user.speech)

    def ask(self, question: Question) -> None:
        """Send a question on its way; returns at once."""
        user = question.caller.user
        if user.log is None and question.key not in self._under_way:
            chat = _chat(_as_json(user.endpoint))
            self._under_way[question.key] = chat.ask(question.key, lambda: _settle(chat, question))

    def take(self, question: Question) -> Decided:
        """What became of a question; waits for it: its turn, and then no longer than the endpoint's patience."""
        user = question.caller.user
        if user.log is not None:
            return _from_log(question)
        self.ask(question)  # a state that was restored may come from elsewhere
        try:
            return self._under_way[question.key].result()
        except CancelledError:
            return Decided(fault="late", detail="it was given up")

    def forget(self, waiting: Iterable[Question]) -> None:
        """Ask again in another conversation what had no answer; of the others, keep a while.

        What is still `waiting` to be taken stands: when a fault arrives must not decide what becomes of the question.
        """
        done = {key: future for key, future in self._under_way.items() if future.done()}
        failed = [key for key, future in done.items() if future.cancelled() or future.result().fault]
        old = [*failed, *list(done)[:-_KEPT]]
        if old:
            for key in set(old) - {question.key for question in waiting}:
                del self._under_way[key]


def _as_json(endpoint: UserEndpoint) -> str:
    return json.dumps(vars(endpoint), sort_keys=True)


@cache
def _chat(endpoint: str) -> Chat:
    """One client for all conversations with the same endpoint: its breaker and its limits are theirs together."""
    return Chat(UserEndpoint(**json.loads(endpoint)), who="user model")


@cache
def _speaks(chat: Chat, voice: Voice) -> asyncio.Lock:
    """An engine is one thread, and patience is for its work: a decision does not pay for those before it."""
    return asyncio.Lock()


async def _settle(chat: Chat, question: Question) -> Decided:
    caller = question.caller

    def again(stored: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            read(caller, json.dumps(stored.get("decision")))
        except Fault:
            return None
        tokens = stored.get("tokens")
        kept = {"tokens": tokens if type(tokens) is int else 0, "decision": stored["decision"]}
        return kept | {name: str(stored.get(name, "")) for name in ("reply", "model")}

    try:
        found = await chat.answer(
            question.key,
            question.messages,
            lambda text: {"decision": read(caller, text).to_json()},
            again=again,
            note={},
            more=question.more,
        )
        decision = read(caller, json.dumps(found.pop("decision")))
        offer = None
        if caller.user.speech is not None and decision.words:
            async with _speaks(chat, caller.user.speech):
                offer = await _say(caller.user.speech, decision, caller.user.endpoint.patience_s)
    except Fault as fault:
        return Decided(fault=fault.kind, detail=str(fault))
    # What a server sends has no bounds that we could know: what nobody foresaw costs the decision, not the run.
    except Exception as error:
        return Decided(fault="unforeseen", detail=type(error).__name__)  # its text may hold a key
    found["tokens"] = found["tokens"] or sum(len(m["content"]) for m in question.messages) // 4
    return Decided(decision, offer, **found)


# ---- speech


async def _say(voice: Voice, decision: Decision, patience_s: float) -> Offer:
    pcm = await speak(voice, decision.words, patience_s)
    seconds = pcm.size / CLOCK.sample_rate
    if decision.act == "backchannel" and seconds > LONGEST_BACKCHANNEL_S:
        raise Fault("nonsense", f"a backchannel of {seconds:.1f} s")
    return synthesised(decision.words, pcm, voice.voice)


async def speak(voice: Voice, text: str, patience_s: float, cache: Path | None = None) -> np.ndarray:
    """(n,) int16: a text as an engine speaks it, or as it did before where there is a `cache`.

    Raises:
        Fault: `speech`: the engine fails, takes too long, or gives no speech of at most 30 s.
    """
    engine, worker = open_engine(voice)

    def say() -> np.ndarray:
        audio = np.asarray(engine.say(text, voice.voice))
        if (
            audio.ndim != 1
            or not 0 < audio.size <= LONGEST_SPEECH_S * CLOCK.sample_rate
            or not np.isfinite(audio).all()
        ):
            raise ValueError(f"{audio.shape} samples that are no speech of at most {LONGEST_SPEECH_S:g} s")
        return audio

    def spoken() -> np.ndarray:
        return say() if cache is None else cached(speech_file(engine, text, voice.voice, cache), say)

    try:
        async with asyncio.timeout(patience_s):
            audio = await asyncio.get_running_loop().run_in_executor(worker, spoken)
    except TimeoutError:
        raise Fault("speech", f"{voice.engine} did not speak within {patience_s:g} s") from None
    # An engine may be anybody's code: what it raises costs the decision, and must not cost the run.
    except Exception as error:
        raise Fault("speech", f"{voice.engine}: {type(error).__name__}: {error}"[:200]) from None
    return to_pcm16(audio)


def make_engine(name: str, voices: Path | None) -> Engine:
    """An engine by name; `voices` is Kokoro's folder.

    Raises:
        UptakeError: no such engine, or one that is not installed.
    """
    if name in ENGINES:
        return choose(name, voices)
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise UptakeError(f"no speech engine {name!r}{nearest(name, [*ENGINES, *points])}")
    try:
        make: Callable[[], Engine] = points[name].load()
    except (ImportError, AttributeError) as error:
        where = points[name].value
        raise UptakeError(f"speech engine {name!r}: entry point {where} does not load: {error}") from error
    return make()


@cache
def open_engine(voice: Voice) -> tuple[Engine, ThreadPoolExecutor]:
    """An engine that speaks and the thread that it speaks in.

    Raises:
        UptakeError: no such engine or voice, or one that is not installed.
    """
    engine = make_engine(voice.engine, voice.voices)
    if voice.voice not in engine.voices():
        raise UptakeError(f"{voice.engine} has no voice {voice.voice!r}{nearest(voice.voice, engine.voices())}")
    return engine, ThreadPoolExecutor(1, thread_name_prefix="uptake-speech")


# ---- the log of an earlier conversation


@cache
def read_log(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records of a `decisions.jsonl`; raises `UptakeError` naming the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UptakeError(f"{path}: cannot be read ({error}); give the decisions.jsonl of an episode") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UptakeError(f"{path}:{number}: not JSON ({error}); restore the file") from error
        if not isinstance(record, dict) or record.get("v") != 1 or not isinstance(record.get("key"), str):
            raise UptakeError(f"{path}:{number}: no decision of an llm user; give the decisions.jsonl of an episode")
        records.append(record)
    return tuple(records)


def _from_log(question: Question) -> Decided:
    caller, path = question.caller, question.caller.user.log
    assert path is not None
    records = read_log(path)
    if question.number >= len(records):
        return Decided(fault="not_in_log", detail=f"{path.name} holds {len(records)} decisions")
    record = records[question.number]
    if record["key"] != question.key:
        why = "was asked something else: another agent, seed, variant, pack or scenario"
        return Decided(fault="not_in_log", detail=f"decision {question.number} of {path.name} {why}")
    said = {name: str(record.get(name, "")) for name in ("reply", "model", "fault", "detail")}
    tokens = record.get("tokens")
    said_as: dict[str, Any] = {**said, "tokens": tokens if type(tokens) is int else 0, "cached": True}
    if said["fault"]:
        return Decided(**said_as)
    try:
        decision = read(caller, json.dumps(record.get("decision")))
        offer = None
        if "speech" in record:
            pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(record["speech"])), dtype="int16")
            if rate != CLOCK.sample_rate or pcm.ndim != 1 or not pcm.size:
                raise ValueError("its speech has another rate or number of channels")
            offer = synthesised(decision.words, pcm, caller.voice)
        elif caller.user.speech is not None and decision.words:
            raise ValueError("its speech is missing")
    except (Fault, ValueError, TypeError, soundfile.LibsndfileError) as error:
        return Decided(
            fault="not_in_log", detail=f"decision {question.number} of {path.name} is damaged: {error}"[:200]
        )
    return Decided(decision, offer, **said_as)

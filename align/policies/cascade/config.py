"""What a cascade is made of, as a YAML file says it and as `export` keeps it.

ear: silero
llm:
  endpoint: {base_url: "http://127.0.0.1:8000/v1", model: NAME}
  speech: {}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs import located_yaml
from envs.chat.config import EndpointConfig
from envs.errors import UptakeError, nearest

EARS = ("energy", "silero")
KIND = "uptake-cascade"
"""`model_type` in config.json."""


@dataclass
class ReplyEndpoint(EndpointConfig):
    """The model that answers the user."""

    section: ClassVar[str] = "llm.endpoint"
    needed: ClassVar[str] = "the cascade asks a language model what to answer"

    body: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 120})
    timeout_s: float = 10.0
    retries: int = 1
    patience_s: float = 20.0
    cache: str = ".reply-cache"


@dataclass
class SpeechConfig:
    """Who speaks an answer that the pack has no clip of."""

    engine: str = ""
    """`kokoro`, `flite`, or an entry point of `uptake.speech_engines`; empty: whichever is installed."""
    voice: str = ""
    """Empty: the voice of the pack's answers if the engine has it, else its first."""
    voices: str = ""
    """Kokoro's folder of voices."""
    cache: str = ".speech-cache"
    """Folder of what was spoken, by engine, voice and text."""


@dataclass
class LlmConfig:
    """Where answers come from, if not from the pack in turn. Times are seconds of the conversation."""

    endpoint: ReplyEndpoint = field(default_factory=ReplyEndpoint)
    instructions: str = "You are a friendly voice assistant on the phone."
    """Who the model is; how it must answer is added."""
    recogniser: str = "whisper"
    """Who reads what the user said: `whisper`, an entry point of the group `uptake.asr`, or path/to/file.py:name."""
    speech: SpeechConfig | None = None
    """None: it chooses among the sentences of the pack."""
    ask_after_s: float = 0.2
    """Silence of the user after which it is asked, on the chance that the turn is over; at the decision at the latest.
    If the user goes on, the question is dropped, and asked again with all that was said."""
    think_s: float = 0.8
    """From the question to the first sound that could be played: recognition, model and synthesis together."""
    turns: int = 8
    """Turns of the conversation that it is told, the last one included."""
    requests: int = 40
    """Questions in a conversation; after that, answers are the pack's."""
    log: str = ""
    """The folder of a conversation that was had before, in place of the endpoint."""


@dataclass
class CascadeConfig:
    """A cascade, without the weights of its head."""

    pack: str = "core"
    """Whose clips of kind `agent` it answers with: a pack that ships with the package, or a folder."""
    ear: str = "energy"
    """Who hears the user speak: energy, or silero (pip install 'uptake[silero]')."""
    answer_after_s: float = 0.7
    """Silence after which a new head answers with even odds."""
    stop_after_s: float = 0.3
    """Speech of the user after which a new head stops with even odds."""
    response_s: float = 0.24
    """From the decision to answer to the first sound, to the nearest frame; longer where the model thinks longer."""
    llm: LlmConfig | None = None
    """None: the pack's answers, one after the other."""

    def check(self) -> None:
        """Raise `UptakeError` for a value that cannot be."""
        if self.ear not in EARS:
            raise UptakeError(f"cascade: ear = {self.ear!r}: none{nearest(self.ear, EARS)}")
        times: list[tuple[str, float]] = [("response_s", self.response_s)]
        for name in ("answer_after_s", "stop_after_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UptakeError(f"cascade: {name} = {getattr(self, name)}: must be more than 0 s")
        if self.llm is not None:
            times += [("llm.ask_after_s", self.llm.ask_after_s), ("llm.think_s", self.llm.think_s)]
            for name in ("turns", "requests"):
                if getattr(self.llm, name) < 1:
                    raise UptakeError(f"cascade: llm.{name} = {getattr(self.llm, name)}: must be at least 1")
            if not self.llm.log:
                self.llm.endpoint.check()
        for name, seconds in times:
            if not 0 <= seconds < math.inf:
                raise UptakeError(f"cascade: {name} = {seconds}: must be 0 s or more")


def read_yaml(path: Path) -> CascadeConfig:
    """The cascade that a YAML file describes.

    Raises:
        UptakeError: it cannot be read, is no mapping, or holds an unknown key or a value that cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UptakeError(f"{path}: cannot be read ({error})") from error
    documents = located_yaml.read(text, str(path))
    if len(documents) != 1 or not isinstance(documents[0].data, dict):
        raise UptakeError(f"{path}: describes no cascade; give one mapping of settings (docs/policies.md)")
    return from_values(documents[0].data, str(path))


def from_values(values: Mapping[str, Any], where: str) -> CascadeConfig:
    """The configuration of plain values; `UptakeError` that begins with `where` for what cannot be."""
    _check_keys(values, CascadeConfig, where, "")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CascadeConfig), dict(values)))
    except OmegaConfBaseException as error:
        what = str(error.msg).splitlines()[0] if error.msg else type(error).__name__
        raise UptakeError(f"{where}: {error.full_key or 'cascade'}: {what}") from error
    assert isinstance(made, CascadeConfig)
    try:
        made.check()
    except UptakeError as error:
        raise UptakeError(f"{where}: {error}") from error
    return made


def to_values(config: CascadeConfig) -> dict[str, Any]:
    """What `from_values` reads."""
    return asdict(config)


def _check_keys(values: Mapping[str, Any], kind: Any, where: str, prefix: str) -> None:
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    for name, value in values.items():
        if name not in known:
            raise UptakeError(f"{where}: unknown key '{prefix}{name}'{nearest(str(name), known)}")
        inner = next((one for one in (hints[name], *get_args(hints[name])) if is_dataclass(one)), None)
        if inner is None or value is None:
            continue
        if not isinstance(value, Mapping):
            raise UptakeError(f"{where}: {prefix}{name} = {value!r}: is a section of keys")
        _check_keys(value, inner, where, f"{prefix}{name}.")

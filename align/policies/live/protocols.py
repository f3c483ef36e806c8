"""What two kinds of speech servers say over a WebSocket, without the socket: messages in, messages out.

`moshi`: `python -m moshi.server` 0.2.13, path `/api/chat`. Binary messages; the first byte is 0 (handshake, from the
server), 1 (Opus) or 2 (a piece of text).

`realtime`: the events of OpenAI's Realtime API, path `/v1/realtime`. JSON; 16-bit audio at 24 kHz as base64; the server
says `session.created` first, detects turns and answers. Both the names of 2024 (`response.audio.delta`) and those of
2025 (`response.output_audio.delta`) are understood.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from align.policies.live.playout import Item
from envs.clock import CLOCK
from envs.episode import from_pcm16, to_pcm16
from envs.errors import UptakeError


@dataclass(frozen=True)
class Said:
    """What a message means for the listener."""

    audio: np.ndarray | None = None
    """(n,) float32 to play after what came before."""
    text: str = ""
    item: Item = ("", 0)
    """What utterance the sound or the text is of."""
    ready: bool = False
    """The server listens from now on."""
    turn: bool = False
    """The user's turn is over, the server says: it answers from now on."""
    flush: bool = False
    """Forget what was not played yet, and its words: the user has begun to speak."""
    fault: str = ""
    """Kind of fault that the server told of, or that the message is."""


class Wire(Protocol):
    """One conversation."""

    steady: bool
    """Every frame is answered by a frame."""

    def greeting(self) -> list[str | bytes]:
        """Sent when the connection is open."""

    def frame(self, pcm: np.ndarray) -> str | bytes:
        """What carries (F,) float32 of the microphone."""

    def cut(self, heard: Mapping[Item, int]) -> list[str | bytes]:
        """Sent when the user has cut utterances, of which so many samples were heard."""

    def read(self, message: str | bytes) -> Said:
        """What a message means."""


class Moshi:
    """`python -m moshi.server`."""

    steady = True

    def __init__(self) -> None:
        import sphn

        self._writer = sphn.OpusStreamWriter(CLOCK.sample_rate)
        self._reader = sphn.OpusStreamReader(CLOCK.sample_rate)

    def greeting(self) -> list[str | bytes]:
        """Nothing: the server speaks first."""
        return []

    def frame(self, pcm: np.ndarray) -> bytes:
        """Opus, which may carry nothing yet."""
        return b"\x01" + self._writer.append_pcm(pcm)

    def cut(self, heard: Mapping[Item, int]) -> list[str | bytes]:
        """Nothing: the model hears the user, and what it says is played as it comes."""
        return []

    def read(self, message: str | bytes) -> Said:
        """Handshake, sound or text."""
        if isinstance(message, str) or not message:
            return Said(fault="malformed")
        kind, payload = message[0], message[1:]
        if kind == 0:
            return Said(ready=True)
        if kind == 1:
            try:
                return Said(audio=self._reader.append_bytes(payload))
            except (ValueError, RuntimeError):
                return Said(fault="malformed")
        if kind == 2:
            return Said(text=payload.decode("utf-8", "replace"))
        return Said(fault="malformed")


class Realtime:
    """A server with the events of the Realtime API, which detects turns by itself."""

    steady = False
    _AUDIO = ("response.output_audio.delta", "response.audio.delta")
    _TEXT = ("response.output_audio_transcript.delta", "response.audio_transcript.delta")

    def greeting(self) -> list[str | bytes]:
        """Nothing: the session is as the server begins it (audio in and out, its own turn detection)."""
        return []

    def frame(self, pcm: np.ndarray) -> str:
        """`input_audio_buffer.append`."""
        audio = base64.b64encode(to_pcm16(pcm).astype("<i2").tobytes()).decode()
        return json.dumps({"type": "input_audio_buffer.append", "audio": audio})

    def cut(self, heard: Mapping[Item, int]) -> list[str | bytes]:
        """`conversation.item.truncate`: the server takes what was not heard out of what its model remembers."""
        return [
            json.dumps(
                {
                    "type": "conversation.item.truncate",
                    "item_id": name,
                    "content_index": part,
                    "audio_end_ms": 1000 * samples // CLOCK.sample_rate,
                }
            )
            for (name, part), samples in heard.items()
            if name
        ]

    def read(self, message: str | bytes) -> Said:
        """Sound, text, the beginning or the end of the user's speech, or an error; other events mean nothing here."""
        try:
            event: Any = json.loads(message)
            kind = event["type"]
            item = str(event.get("item_id") or ""), int(event.get("content_index") or 0)
            if kind in self._AUDIO:
                pcm = np.frombuffer(base64.b64decode(event["delta"], validate=True), "<i2")
                return Said(audio=from_pcm16(pcm.astype(np.int16)), item=item)
            if kind in self._TEXT:
                text = event["delta"].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written
                return Said(text=text, item=item)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return Said(fault="malformed")
        if kind == "input_audio_buffer.speech_started":
            return Said(flush=True)
        if kind == "input_audio_buffer.speech_stopped":
            return Said(turn=True)
        return Said(ready=kind == "session.created", fault="server_error" if kind == "error" else "")


def choose(address: str) -> type[Moshi] | type[Realtime]:
    """The protocol of an address, by its path; UptakeError for another one, or where a package is missing."""
    path = address.partition("?")[0].rstrip("/")
    if not path.startswith(("ws://", "wss://")):
        raise UptakeError(f"live:{address}: must be a ws:// or wss:// address, as live:ws://127.0.0.1:8998/api/chat")
    kind: type[Moshi] | type[Realtime]
    if path.endswith("/realtime"):
        kind = Realtime
    elif path.endswith("/api/chat"):
        kind = Moshi
    else:
        raise UptakeError(f"live:{address}: the path must end in /api/chat (moshi.server) or /realtime (Realtime API)")
    missing = [name for name in ("websockets", *(("sphn",) if kind is Moshi else ())) if find_spec(name) is None]
    if missing:
        raise UptakeError(f"live:{address}: needs {', '.join(missing)}; run: pip install 'uptake[live]'")
    return kind

"""An agent that is a server somewhere: what it hears is sent in real time, what has come back in time is played.

Frame k of the microphone is sent when it would be complete on the wall, (k + 1) * 80 ms after the start; what arrived
by then is played in frame k + 1. So every delay, of network, codec and computing, is in the sound as a listener would
have it, and the ledger says how much it was. A connection that fails in the middle leaves silence and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from align.files import one_line
from align.policies.live.ledger import Ledger
from align.policies.live.playout import Playout
from align.policies.live.protocols import Wire, choose
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed

KEY = "UPTAKE_LIVE_KEY"
"""Environment variable of a key that is sent as a bearer token, if it is set."""
PATIENCE = 10.0
"""Seconds for a connection and its handshake."""
BEHIND = 125
"""Frames (10 s) that may wait to be sent; a server that reads no more is given up."""


class Live:
    """A server as a system for `align.evaluation.evaluate`: `Live("ws://...")(env)` is its agent."""

    sessions = 1
    """Conversations side by side: `moshi.server` holds one at a time."""

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        """UptakeError for an address or a key that is none, or a missing package; nothing is connected yet."""
        try:
            parts = urlsplit(address)
            secret, *_ = parts.username or parts.password, parts.port, (parts.hostname or "").encode("idna")
        except ValueError as error:
            shown = address.rpartition("@")[2]
            example = "live:ws://127.0.0.1:8998/api/chat"
            raise UptakeError(f"live:{shown}: no address ({error}); give one such as {example}") from error
        if secret:
            raise UptakeError(f"live: the address of {parts.hostname} holds a password; put a key into {KEY}")
        self.protocol, self.address, self.patience = choose(address), address, patience
        key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise UptakeError(f"live: {KEY} holds a space or a sign that is not ASCII; set it to the key alone")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __call__(self, env: Any) -> LiveAgent:
        """An agent for the rows of an environment."""
        return LiveAgent(self, env.num_envs)


class LiveAgent:
    """See `envs.agents.Agent`."""

    def __init__(self, live: Live, num_envs: int) -> None:
        self.live, self.num_envs = live, num_envs
        self._calls: list[_Call] = []

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Connect every row anew; UptakeError, one line, if the server refuses or does not answer in time."""
        if rows is not None:
            raise UptakeError("a live agent begins all of its conversations together")
        self.close()
        self._calls = []
        try:
            for _ in range(self.num_envs):
                self._calls.append(_Call(self.live))
        except UptakeError:
            self.close()
            raise
        self._start, self._frame = time.monotonic(), 0

    def act(self, mic: np.ndarray) -> np.ndarray:
        """Send frame k (B, F) when it is due; returns what is there to be played in frame k + 1."""
        self._frame += 1
        due = self._start + self._frame * CLOCK.frame_seconds
        time.sleep(max(0.0, due - time.monotonic()))
        for call, frame in zip(self._calls, mic, strict=True):
            call.send(frame, due)
        return np.stack([call.play(self._frame) for call in self._calls])

    def transcript(self, row: int) -> tuple[Word, ...]:
        """The words that were told, each at the frame after the one in which its text arrived."""
        return self._calls[row].words()

    def latency_ledger(self, row: int) -> dict[str, Any]:
        """What the row's conversation cost in time."""
        return self._calls[row].figures()

    def close(self) -> None:
        """Hang up."""
        for call in self._calls:
            call.close()


class _Call:
    """One connection, in a thread with an event loop of its own. What crosses threads is guarded by a lock."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._wire: Wire = live.protocol()
        self._ledger = Ledger()
        self._lock = threading.Lock()
        self._playout = Playout()
        self._begun = False
        self._problem = ""
        self._opened, self._closing = threading.Event(), False
        self._loop = asyncio.new_event_loop()
        self._queue: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()
        self._opened.wait(live.patience + 1)
        if not self._opened.is_set() or self._problem:
            problem = self._problem or f"no handshake within {live.patience:g} s; is another conversation going on?"
            self.close()
            raise UptakeError(f"live:{live.address}: {problem}")

    # In the thread of the environment -------------------------------------------------------------------------------

    def send(self, pcm: np.ndarray, due: float) -> None:
        """Queue a frame (F,); one that cannot be sent any more is counted."""
        if not self._thread.is_alive() or self._queue.qsize() > BEHIND:
            with self._lock:
                self._ledger.dropped += 1
                if self._thread.is_alive():
                    self._ledger.faults.setdefault("stalled", 1)
            return
        message = self._wire.frame(pcm)
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)
        except RuntimeError:  # the loop has closed in between
            with self._lock:
                self._ledger.dropped += 1
            return
        now = time.monotonic()
        with self._lock:
            self._ledger.sent.append(now)
            self._ledger.late.append(max(0.0, now - due))

    def play(self, frame: int) -> np.ndarray:
        """(F,) of what has arrived, for frame `frame` of the conversation; silence fills up."""
        with self._lock:
            out = self._playout.play(frame)
            self._begun = (self._begun and self._wire.steady) or bool(len(out))
            if self._begun and len(out) < CLOCK.frame and self._wire.steady:
                self._ledger.starved += 1
        return np.clip(np.pad(out, (0, CLOCK.frame - len(out))), -1, 1)

    def words(self) -> tuple[Word, ...]:
        """What it said that was heard; see `Playout.words`."""
        with self._lock:
            return self._playout.words()

    def figures(self) -> dict[str, Any]:
        """The ledger as JSON."""
        with self._lock:
            found = self._ledger.figures(CLOCK.frame, self._wire.steady)
        return found | ({"problem": self._problem} if self._problem else {})

    def close(self) -> None:
        """Hang up; waits a moment and no longer."""
        self._closing = True
        if self._task is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has closed in between
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(3.0)

    # In its own thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._talk())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # a panic in Rust, as sphn is, is no Exception
            self._problem = f"the client failed ({type(error).__name__}: {one_line(error)})"
            with self._lock:
                self._ledger.fault("client_error")
        self._opened.set()
        self._loop.close()

    async def _talk(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, WebSocketException

        try:
            async with asyncio.timeout(self._live.patience):
                socket = await connect(
                    self._live.address, additional_headers=self._live.headers, open_timeout=None, close_timeout=1,
                    max_size=2**24, ping_interval=None,
                )  # fmt: skip
        except TimeoutError:
            self._problem = f"no connection within {self._live.patience:g} s"
            return
        except (OSError, ValueError, ImportError, WebSocketException) as error:
            why = one_line(getattr(error, "msg", error))  # without the address of a proxy, which may hold a password
            proxy = ", and is the environment's proxy (http_proxy, all_proxy, ...) right" if getproxies() else ""
            self._problem = f"no connection ({why}); is the server running{proxy}?"
            return
        others: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._live.patience):
                while not self._hear(await socket.recv()):
                    pass
            self._opened.set()
            others = [asyncio.create_task(work(socket)) for work in (self._sending, self._pinging)]
            while True:
                self._hear(await socket.recv())
        except TimeoutError:
            self._problem = f"no handshake within {self._live.patience:g} s; is another conversation going on?"
        except ConnectionClosed as error:
            if not self._opened.is_set():
                self._problem = "the server closed before the conversation began"
            elif not self._closing:
                with self._lock:
                    self._ledger.fault(_end(error))
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.5):
                    await socket.close()
            socket.transport.abort()

    async def _sending(self, socket: Any) -> None:
        for message in self._wire.greeting():
            await socket.send(message)
        while True:
            await socket.send(await self._queue.get())

    async def _pinging(self, socket: Any) -> None:
        while True:
            seconds = await (await socket.ping())
            with self._lock:
                self._ledger.round_trips.append(seconds)
            await asyncio.sleep(1.0)

    def _hear(self, message: str | bytes) -> bool:
        """Take a message in; returns whether it said that the server is ready."""
        said = self._wire.read(message)
        with self._lock:
            if said.fault:
                self._ledger.fault(said.fault)
            if said.turn:
                self._ledger.owed = time.monotonic()
            if said.flush:
                self._ledger.owed = None  # the user goes on
                for told in self._wire.cut(self._playout.flush()):
                    self._queue.put_nowait(told)
            if said.audio is not None and len(said.audio):
                self._ledger.heard(time.monotonic(), len(said.audio))
                self._playout.add(said.audio, said.item)
            if said.text:
                self._playout.say(said.text, said.item)
        return said.ready


def _end(error: ConnectionClosed) -> str:
    """The fault by which a connection ended; it is closed from here only on a message that breaks the protocol."""
    if error.sent is not None and not error.rcvd_then_sent:
        return "malformed"
    return "lost" if error.rcvd is None else "closed"

"""What an action can be, and the sound that it becomes: one frame a row.

`pcm` is audio itself. `canned` is one of {silent, speak, backchannel}, said with clips of the pack, so that a policy
learns timing and nothing else (as in ASPIRin, where the action space is projected to speak or silent). Tokens are codes
of a codec that is handed in: this package knows none and needs no torch.

All of them keep a state a row that can be copied, so that a conversation that is forked goes on the same.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from envs.agents import ScriptedAgent
from envs.clock import CLOCK
from envs.codec import Codec
from envs.errors import UptakeError, nearest
from envs.event import Event, Word
from envs.pack import Clip, Pack

SILENT, SPEAK, BACKCHANNEL = 0, 1, 2
"""The actions of `canned`."""
_FADE = 240  # samples (10 ms): nobody stops with a click
KINDS = ("pcm", "canned")


class Actions(Protocol):
    """Turns a batch of actions into sound."""

    single_space: gym.Space
    """The space of one row's action."""

    def check(self, actions: Any) -> np.ndarray:
        """The actions as an array with the batch first; raises `UptakeError` for what is none and changes nothing."""

    def speak(self, actions: np.ndarray) -> np.ndarray:
        """Checked actions to one frame of sound a row, (B, F) float32 in [-1, 1]."""

    def transcript(self, row: int) -> tuple[Word, ...]:
        """The words that were said in a row, where they are known."""

    def reset(self, rows: Iterable[int]) -> None:
        """Begin afresh in these rows."""

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""


def make_actions(
    act: str | Codec, num_envs: int, pack: Pack, events: Callable[[int], Sequence[Event]]
) -> Pcm | Canned | Tokens:
    """The actions that `act` names.

    Args:
        act: `pcm`, `canned`, a codec, or the place of a function that gives one, as ``package.module:function``.
        num_envs: rows.
        pack: whose clips the agent says by `canned`.
        events: what is settled about the user of a row, so that a canned answer is one to what was asked.
    """
    if act == "pcm":
        return Pcm(num_envs)
    if act == "canned":
        return Canned(num_envs, pack, events)
    return Tokens(find_codec(act, "act", KINDS), num_envs)


def find_codec(codec: str | Codec, what: str, known: Sequence[str] = ()) -> Codec:
    """A codec, or what the function at ``package.module:function`` returns, if it fits the clock.

    `what` it is given for, and what else is `known` there, is for messages.
    """
    if isinstance(codec, str):
        module, _, name = codec.partition(":")
        if not name:
            none = f" none of {', '.join(known)} and" if known else ""
            hint = nearest(codec, known) if known else ""
            raise UptakeError(f"{what} {codec!r} is{none} not package.module:function{hint}")
        try:
            made = getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError) as error:
            raise UptakeError(
                f"{what} {codec!r}: {error}; give package.module:function of something installed"
            ) from error
    else:
        made = codec
    if not isinstance(made, Codec):
        raise UptakeError(f"{what}: a {type(made).__name__} is no codec; it needs the methods of envs.codec.Codec")
    if (made.sample_rate, made.frame) != (CLOCK.sample_rate, CLOCK.frame):
        raise UptakeError(
            f"{what}: the codec has frames of {made.frame} samples at {made.sample_rate} Hz, the environment of "
            f"{CLOCK.frame} at {CLOCK.sample_rate}; give one with the same clock"
        )
    return made


class Pcm:
    """Audio as it is: (B, F) float32, clipped to [-1, 1]."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_space: gym.Space = gym.spaces.Box(-1.0, 1.0, (CLOCK.frame,), np.float32)

    def check(self, actions: Any) -> np.ndarray:
        """(B, F) float32, not yet clipped."""
        audio = np.asarray(actions)
        if audio.shape != (self.num_envs, CLOCK.frame):
            raise UptakeError(f"step: action has shape {audio.shape}, expected {(self.num_envs, CLOCK.frame)}: "
                              f"one frame of audio a row{_shape_hint(audio.shape)}")  # fmt: skip
        if audio.dtype.kind != "f":
            raise UptakeError(
                f"step: action is {audio.dtype}, expected float32 in [-1, 1]; divide 16-bit audio by 32768"
            )
        if not np.isfinite(audio).all():
            row = int(np.flatnonzero(~np.isfinite(audio).all(axis=1))[0])
            raise UptakeError(f"step: action of row {row} holds NaN or infinity; check the policy's audio")
        return audio.astype(np.float32, copy=False)

    def speak(self, actions: np.ndarray) -> np.ndarray:
        """What is beyond full scale saturates."""
        return np.clip(actions, -1.0, 1.0)

    def transcript(self, row: int) -> tuple[Word, ...]:
        """Nobody knows the words of audio."""
        return ()

    def reset(self, rows: Iterable[int]) -> None:
        """Nothing is kept."""

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Nothing is kept."""

    def get_state(self) -> Any:
        """Nothing is kept."""

    def set_state(self, state: Any) -> None:
        """Nothing is kept."""


def _shape_hint(shape: tuple[int, ...]) -> str:
    """What probably went wrong."""
    size = shape[-1] if shape else 0
    if not size:
        return "; it is empty"
    if len(shape) > 2:
        return "; mix the channels to mono"
    rates = (8000, 16000, 22050, 32000, 44100, 48000)
    rate = next((rate for rate in rates if size * CLOCK.sample_rate == rate * CLOCK.frame), None)
    if rate:
        return f"; {size} samples are a frame at {rate} Hz: resample to {CLOCK.sample_rate} (envs.wrappers.Resample)"
    if len(shape) == 2 and size < CLOCK.frame:
        return "; it is truncated: pad it with silence"
    return ""


class _Discrete:
    """What actions of whole numbers have in common: they are checked against their space."""

    def __init__(self, num_envs: int, space: gym.Space, highest: int, what: str) -> None:
        self._shape, self._highest, self._what = (num_envs, *(space.shape or ())), highest, what

    def __call__(self, actions: Any) -> np.ndarray:
        """(B, ...) int64."""
        found = np.asarray(actions)
        if found.shape != self._shape or found.dtype.kind not in "iu":
            raise UptakeError(
                f"step: action is {found.dtype} {found.shape}, expected whole numbers {self._shape}: {self._what}"
            )
        if found.size and not (found.min() >= 0 and found.max() <= self._highest):
            wrong = found[(found < 0) | (found > self._highest)].flat[0]
            raise UptakeError(f"step: action holds {wrong}; {self._what} are 0 to {self._highest}")
        return found.astype(np.int64)


class Canned(ScriptedAgent):
    """Silent (0), speak (1), backchannel (2), one choice a row and frame; the pack's agent clips are the voice.

    `speak` goes on with what is being said, or begins: the first clip not yet said that answers what was asked last
    (`Pack.answers`), else the next of the pack's. A policy has to find the time; the words are given. `silent` stops
    speech within 10 ms. A backchannel, once begun, is said to its end unless `speak` takes over.
    """

    def __init__(self, num_envs: int, pack: Pack, events: Callable[[int], Sequence[Event]]) -> None:
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")
        self._need(self.backchannels, "agent_backchannel")
        self.single_space: gym.Space = gym.spaces.Discrete(3)
        self.check = _Discrete(num_envs, self.single_space, 2, "canned actions (silent, speak, backchannel)")
        self._answers, self._events = pack.answers, events
        self._chosen: list[int] = [SILENT] * num_envs

    def speak(self, actions: np.ndarray) -> np.ndarray:
        """(B,) choices to (B, F) float32."""
        self._chosen = actions.tolist()
        self.now += CLOCK.frame
        return np.clip(self.play(), -1.0, 1.0)

    def decide(self, row: int, now: int) -> None:
        """Do what was chosen in the frame about to be played."""
        choice, sounding = self._chosen[row], self._sounding(row, now)
        speech_ends = sounding == "agent" and choice != SPEAK
        if speech_ends or (sounding == "agent_backchannel" and choice == SPEAK):
            self.hush(row, now + _FADE)
        if choice == SPEAK and sounding != "agent":
            self.say(row, self._next(row, now), now)
        elif choice == BACKCHANNEL and sounding != "agent_backchannel":
            number = sum(isinstance(said, Clip) and said.kind == "agent_backchannel" for said, *_ in self.said(row))
            self.say(row, self.backchannels[number % len(self.backchannels)], now)

    def _sounding(self, row: int, now: int) -> str:
        """The kind of clip that is being said; empty for none."""
        if not self._said[row] or self._said[row][-1].stop <= now:
            return ""
        clip = self._said[row][-1].clip
        assert isinstance(clip, Clip)
        return clip.kind

    def _next(self, row: int, now: int) -> Clip:
        said = [clip for clip, *_ in self.said(row) if isinstance(clip, Clip) and clip.kind == "agent"]
        asked = [event.reply for event in self._events(row) if event.onset < now]
        wanted = next((expect.content for expect in reversed(asked) if expect is not None), ())
        fresh = [clip for clip in self._answers(wanted) if clip not in said]
        return fresh[0] if fresh else self.clips[len(said) % len(self.clips)]

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        for row in rows:
            self.now[row] = self.now[source]
            self._said[row] = [replace(said) for said in self._said[source]]

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""
        return {"now": self.now.copy(), "said": [[replace(said) for said in row] for row in self._said]}

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""
        self.now = state["now"].copy()
        self._said = [[replace(said) for said in row] for row in state["said"]]


class Tokens:
    """Codes of a codec, (B, codebooks) whole numbers."""

    def __init__(self, codec: Codec, num_envs: int) -> None:
        self.codec = codec
        self.single_space: gym.Space = gym.spaces.MultiDiscrete([codec.card] * codec.codebooks)
        self.check = _Discrete(num_envs, self.single_space, codec.card - 1, "codes of the codec")
        self._state = codec.init_state(num_envs)

    def speak(self, actions: np.ndarray) -> np.ndarray:
        """(B, codebooks) codes to (B, F) float32."""
        return np.clip(self.codec.decode(self._state, actions), -1.0, 1.0)

    def transcript(self, row: int) -> tuple[Word, ...]:
        """Nobody knows the words of codes."""
        return ()

    def reset(self, rows: Iterable[int]) -> None:
        """Begin afresh in these rows."""
        self.codec.reset(self._state, np.asarray(list(rows), np.int64))

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        self.codec.fork(self._state, source, np.asarray(list(rows), np.int64))

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs."""
        return copy.deepcopy(self._state)

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""
        self._state = copy.deepcopy(state)

"""A policy at another sample rate than the world's: both directions, with a fixed and declared delay."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.wrappers.base import DuplexWrapper, add_latency

_ZEROS = 16  # zero crossings of the sinc on each side
_BETA = 8.0  # of the Kaiser window: 80 dB


class Stream:
    """Frames at one rate to frames at another: a windowed sinc (Smith, Digital Audio Resampling), causal."""

    def __init__(self, rate: int, to: int, frame: int) -> None:
        """`frame` samples at `rate` in, as many as last as long at `to` out."""
        divisor = math.gcd(rate, to)
        self._up, self._down = to // divisor, rate // divisor
        if frame * self._up % self._down:
            raise UptakeError(
                f"Resample: a frame of {frame} samples at {rate} Hz is no whole number of samples at {to} Hz; "
                "choose another rate"
            )
        slow = max(self._up, self._down)
        t = np.arange(-_ZEROS * slow, _ZEROS * slow + 1) / slow
        taps = np.sinc(t) * np.kaiser(t.size, _BETA)
        self._taps = (taps * (self._up / taps.sum())).astype(np.float64)
        self.delay_seconds = _ZEROS * slow / (rate * self._up)
        needed = -(-self._taps.size // self._up)
        self._before = np.zeros(-(-needed // self._down) * self._down, np.float32)  # the latest input

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(n,) float32 to (n * to / rate,) float32, `delay_seconds` late."""
        from scipy.signal import upfirdn  # scipy.signal takes half a second to import: only where it is used

        joined = np.concatenate([self._before, frame])
        skip = self._before.size * self._up // self._down
        out = upfirdn(self._taps, joined, self._up, self._down)[skip : skip + frame.size * self._up // self._down]
        self._before = joined[-self._before.size :].copy()
        return out.astype(np.float32)


class Resample(DuplexWrapper):
    """Observation `mic` and action at `rate`: (F · rate / 24000,) float32."""

    _KEPT = ("_down", "_up")

    def __init__(self, env: gym.Env, rate: int) -> None:
        """`rate` in Hz, such as 16000; a frame must be a whole number of samples in it."""
        super().__init__(env, rate=rate)
        self._needs_audio()
        if rate <= 0:
            raise UptakeError(f"Resample: rate {rate} is no sample rate; give Hz, such as 16000")
        self._rate = rate
        self._begin()
        size = CLOCK.frame * rate // CLOCK.sample_rate
        audio = gym.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = audio
        self.observation_space = gym.spaces.Dict({**self.env.observation_space.spaces, "mic": audio})  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._down = Stream(CLOCK.sample_rate, self._rate, CLOCK.frame)
        self._up = Stream(self._rate, CLOCK.sample_rate, CLOCK.frame * self._rate // CLOCK.sample_rate)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        return self._heard(obs), self._told(info)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Say one frame at the policy's rate."""
        audio = np.clip(self._up.process(self._audio(action)), -1.0, 1.0)
        obs, reward, terminated, truncated, info = self.env.step(audio)
        return self._heard(obs), reward, terminated, truncated, self._told(info)

    def _heard(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {**obs, "mic": np.clip(self._down.process(obs["mic"]), -1.0, 1.0)}

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return add_latency(info, "resample_ms", 1000.0 * (self._down.delay_seconds + self._up.delay_seconds))

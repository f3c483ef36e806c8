"""A policy that takes time (F4 of the taxonomy): what is not there when it should be played is missing.

A live system plays frame after frame whether or not the next one is ready. The policy gets microphone frame k at its
end, works on it for some time, one frame after the other, and its answer is played `buffer_ms` after that end: a buffer
that hides work up to its length and costs as much latency. What comes later has lost as much of its beginning, which is
silence instead: an under-run, counted in ``info["underrun_ms"]`` and charged to the reward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.convolution import Delay
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.wrappers.base import DuplexWrapper, add_latency


class Deadline(DuplexWrapper):
    """Charges a policy that is slower than its frame."""

    _KEPT = ("_buffer", "_frame", "_busy", "_missing", "_worked")

    def __init__(
        self,
        env: gym.Env,
        seconds: float | tuple[float, float] | None = None,
        clock: Callable[[], float] | None = None,
        buffer_ms: float = 1000.0 * CLOCK.frame_seconds,
        charge: float = 1.0,
        abort_s: float = float("inf"),
    ) -> None:
        """Say how long the policy takes.

        Args:
            env: whose action is audio.
            seconds: how long a frame takes, or a range from which that is drawn for every frame.
            clock: in its place, what measures it, such as `time.perf_counter`: from the return of `reset` or `step` to
                the next `step`. Such conversations do not come out the same twice.
            buffer_ms: of the player.
            charge: what a second of under-run takes off the reward.
            abort_s: seconds of under-run after which the conversation is truncated.
        """
        super().__init__(
            env, seconds=seconds, clock=clock, buffer_ms=buffer_ms, charge=charge, abort_s=abort_s
        )  # fmt: skip
        self._needs_audio()
        if (seconds is None) == (clock is None):
            raise UptakeError("Deadline: give either seconds a frame or a clock such as time.perf_counter")
        low, high = seconds if isinstance(seconds, (tuple, list)) else (seconds or 0.0, seconds or 0.0)
        if not 0 <= low <= high or buffer_ms < 0 or charge < 0 or abort_s <= 0:
            raise UptakeError(
                f"Deadline: seconds={seconds}, buffer_ms={buffer_ms}, charge={charge}, abort_s={abort_s}; "
                "seconds are a number or (lowest, highest), and nothing is negative"
            )
        self._range, self._clock, self._charge, self._abort = (low, high), clock, charge, abort_s
        self._lead = CLOCK.nearest_sample(buffer_ms / 1000.0)
        self._begin()

    def _begin(self) -> None:
        self._buffer = Delay(self._lead)
        self._frame = 0  # the microphone frame that the policy got last
        self._busy = 0  # samples: until when it works
        self._missing = self._worked = 0  # samples: of all under-runs, of all work
        self._handed = self._clock() if self._clock else 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        return obs, add_latency(info, "compute_ms", 1000.0 * CLOCK.seconds(self._lead))

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Play what is there in time of one frame."""
        audio = self._audio(action)
        took = self._clock() - self._handed if self._clock else float(self.np_random.uniform(*self._range))
        work = CLOCK.nearest_sample(took)
        got = (self._frame + 1) * CLOCK.frame  # the end of the microphone frame
        self._busy = max(self._busy, got) + work
        late = min(max(self._busy - got - self._lead, 0), CLOCK.frame)
        self._frame, self._missing, self._worked = self._frame + 1, self._missing + late, self._worked + work
        if late:
            audio = np.concatenate([np.zeros(late, np.float32), audio[late:]])
        obs, reward, terminated, truncated, info = self.env.step(self._buffer.process(audio))
        info = add_latency(info, "compute_ms", 1000.0 * CLOCK.seconds(self._lead))
        info["underrun_ms"] = 1000.0 * CLOCK.seconds(late)
        info["underrun_total_ms"] = 1000.0 * CLOCK.seconds(self._missing)
        info["real_time_factor"] = self._worked / (self._frame * CLOCK.frame)
        truncated = truncated or CLOCK.seconds(self._missing) > self._abort
        if self._clock:
            self._handed = self._clock()
        return obs, float(reward) - self._charge * CLOCK.seconds(late), terminated, truncated, info

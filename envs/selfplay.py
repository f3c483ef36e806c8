"""Two policies talk to each other: a `pettingzoo.ParallelEnv` over the same simulator as all other users.

    env = SelfPlayEnv(frames=300, delay_ms=60)
    heard, info = env.reset(seed=7)
    heard, reward, over, cut, info = env.step({"user": audio, "agent": audio})     # (1920,) float32 each

Time is `DuplexVectorEnv`'s, for both sides alike: `reset` gives each its microphone frame 0; `step` plays both frames
during frame k + 1 and gives each its microphone frame k + 1, in which it hears the other one, sample by sample,
`delay_ms` later. The user sits where a user sits: acoustics (echo, noise, telephone, network) lie between it and the
agent as they do in `DuplexEnv`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from envs.acoustics.config import Acoustics, find_acoustics
from envs.acoustics.packets import PACKET_MS
from envs.activity import activity
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode, from_pcm16
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Pack
from envs.scenario import DEFAULT_ROOM_TONE_DB, Scenario
from envs.users.partner import PolicyDriver, measured
from envs.users.policy_user import PolicyUser
from envs.variables import Var

USER, AGENT = "user", "agent"


class _Puppet:
    """A partner that says nothing by itself and keeps what it hears."""

    context = sys.maxsize

    def __init__(self) -> None:
        self.ear = np.zeros((1, CLOCK.frame), np.float32)

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Nothing is kept."""

    def step(self, heard: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Keep a frame; silence."""
        self.ear = heard
        return np.zeros_like(heard)

    def words(self, row: int) -> Sequence[Word]:
        """None."""
        return ()

    def fork(self, source: int, rows: np.ndarray) -> None:
        """There is one row."""

    def get_state(self) -> np.ndarray:
        """What was heard last."""
        return self.ear.copy()

    def set_state(self, state: np.ndarray) -> None:
        """Continue from what `get_state` returned."""
        self.ear = state.copy()


class _World(DuplexVectorEnv):
    """One conversation whose user says what it is given."""

    def __init__(self, scenario: Scenario, frames: int) -> None:
        super().__init__(Pack("selfplay", "1", {}, [scenario], "", Path()), 1, frames=frames)
        self.puppet = _Puppet()
        self._side = PolicyDriver(1, lambda name, batch: self.puppet)
        self._driver.use("policy", self._side)

    def tone(self) -> np.ndarray:
        """What the user hears in frame 0, (F,) float32: nobody can have spoken."""
        plan = self._side.plans[0]
        assert plan is not None
        return from_pcm16(plan.tone()[: CLOCK.frame])

    def other_side(self, seen: Episode) -> tuple[np.ndarray, np.ndarray]:
        """What the user sent, and the agent's voice as it reached the user, (N,) float32 each."""
        late = self._chains[0].downlink_samples if self._chains else 0
        heard = np.concatenate([np.zeros(late, np.float32), seen.agent])[: seen.samples]
        return from_pcm16(self._voices[0].between(0, seen.samples)), heard

    def play(self, user: np.ndarray, agent: np.ndarray) -> tuple[np.ndarray, bool]:
        """Play a frame (F,) of each side; returns what the agent hears, (F,), and whether it was the last one."""
        both = [self.speech.speak(self.speech.check(np.asarray(audio)[None])) for audio in (user, agent)]
        self._mix([self._side.speak(0, both[0][0])])
        heard, _, _, truncated, _ = self.step(both[1])
        return heard["mic"][0], bool(truncated[0])


class SelfPlayEnv(ParallelEnv[str, np.ndarray, np.ndarray]):
    """Observation and action of both sides: (F,) float32 in [-1, 1]."""

    metadata: dict[str, Any] = {"name": "uptake_selfplay_v0", "render_modes": [], "is_parallelizable": True}

    def __init__(
        self,
        frames: int = 150,
        delay_ms: float = 0.0,
        acoustics: str | Path | Mapping[str, Any] | Acoustics | None = None,
        room_tone_db: float = DEFAULT_ROOM_TONE_DB,
        score: Callable[[Episode], float] | None = None,
    ) -> None:
        """Make the environment.

        Args:
            frames: steps after which both sides are truncated.
            delay_ms: from either side to the other: 0, or 20 (voice goes in packets of that) to 1000.
            acoustics: as in `DuplexVectorEnv`; babble and a second speaker need a pack's voices, and there is none.
            room_tone_db: dBFS of what both hear when nobody speaks.
            score: called for each side with its record (`episode`) in the last step; what it returns is its reward.
        """
        found = find_acoustics(acoustics)
        if delay_ms:
            if not PACKET_MS <= delay_ms <= 1000:
                raise UptakeError(f"delay_ms = {delay_ms:g}: must be 0, or from {PACKET_MS:g} to 1000")
            if "network" in found.effects:
                raise UptakeError(f"delay_ms = {delay_ms:g}: the acoustics have a network; give its delay_ms there")
            quantities = {"delay_ms": delay_ms - PACKET_MS, "buffer_ms": 0.0}
            found = found.beside("network", {name: Var("choice", (float(ms),)) for name, ms in quantities.items()})
        self._scenario = Scenario(
            id="selfplay",
            split="train",
            user=PolicyUser("the other side"),
            seed_group="selfplay",
            max_seconds=CLOCK.seconds(CLOCK.sample_of(frames + 2)),  # longer than any conversation here
            room_tone_db=room_tone_db,
            acoustics=found,
            source="selfplay",
        )
        self._world = _World(self._scenario, frames)
        self._score = score
        self.possible_agents = [USER, AGENT]
        self.agents: list[str] = []
        self._spaces = {name: gym.spaces.Box(-1.0, 1.0, (CLOCK.frame,), np.float32) for name in self.possible_agents}
        self._heard: list[np.ndarray] = []  # by the user
        self._conversations = 0  # since the seed was set

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """One microphone frame."""
        return self._spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """One frame to play."""
        return self._spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin a conversation.

        Args:
            seed: kept until another is given.
            options: `variant` (int) chooses the room tone and acoustics; left out, each conversation has the next.
        """
        self._conversations = 0 if seed is not None else self._conversations
        variant = (options or {}).get("variant", self._conversations)
        self._conversations += 1
        heard, _ = self._world.reset(seed=seed, options={"scenario": "selfplay", "variant": variant})
        self.agents = list(self.possible_agents)
        self._heard = [self._world.tone()]
        return {USER: self._heard[0].copy(), AGENT: heard["mic"][0]}, {name: {} for name in self.agents}

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Play one frame of both sides and hear the next."""
        if not self.agents or set(actions) != set(self.agents):
            asked = ", ".join(self.agents) or "nobody: call reset() first"
            raise UptakeError(f"step: actions of {', '.join(sorted(actions)) or 'nobody'}; expected {asked}")
        mic, last = self._world.play(actions[USER], actions[AGENT])
        self._heard.append(self._world.puppet.ear[0].copy())
        heard = {USER: self._heard[-1].copy(), AGENT: mic}
        score = self._score
        reward = {name: score(self.episode(name)) if last and score else 0.0 for name in self.agents}
        cut, sides = dict.fromkeys(self.agents, last), list(self.agents)
        if last:
            self.agents = []
        return heard, reward, dict.fromkeys(sides, False), cut, {name: {} for name in sides}

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs to continue exactly from here."""
        own = {"agents": list(self.agents), "heard": list(self._heard), "conversations": self._conversations}
        return {**own, "world": self._world.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self._world.set_state(state["world"])
        self.agents, self._heard = list(state["agents"]), list(state["heard"])
        self._conversations = state["conversations"]

    def episode(self, side: str = AGENT, transcript: Sequence[Word] = ()) -> Episode:
        """The record so far from one side: `agent` is what that side played, `user` what the other one did.

        The other side's events are read off its sound (`envs.users.partner.measured`), and what is expected about them
        is the usual, so that every reward and measure can judge either side. `transcript` is that side's own text.
        """
        seen = self._world.episode(0, transcript)
        if side == AGENT:
            return seen
        if side != USER:
            raise UptakeError(f"episode: no side {side!r}; give {USER!r} or {AGENT!r}")
        sent, voice = self._world.other_side(seen)
        sounds = [[(int(on), int(off)) for on, off in activity(track)] for track in (voice, sent)]
        events = measured(sounds[0], sounds[1], seen.samples, self._scenario)
        mic = np.concatenate(self._heard)[: seen.samples]
        return Episode(mic, voice, sent, list(events), tuple(transcript), {**seen.meta, "side": USER}, CLOCK)

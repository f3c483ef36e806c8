"""A batch of conversations as one `gymnasium.vector.VectorEnv`: 80 ms of microphone out, 80 ms of agent audio in.

    env = DuplexVectorEnv("core", num_envs=8)
    obs, info = env.reset(seed=7, options={"scenario": ids, "variant": variants})
    obs, reward, terminated, truncated, info = env.step(agent_audio)      # (8, 1920) float32

Time: `reset` returns microphone frame 0. `step(a_k)` plays `a_k` during frame k+1 and returns microphone frame k+1, so
the earliest audible reaction to a sample of frame k begins at the first sample of frame k+1.

Ends: `terminated` when the script is over (and `terminate.after_script_s` has passed), `truncated` after `frames`
steps. There is no autoreset: a row that has terminated stays so, hears room tone and records nothing more, while the
others go on, so that every row of every rank makes the same number of steps; `reset(options={"reset_mask": mask})`
starts rows afresh. The reward is the score of the finished episode, given once, in the step that ends it.

Everything that the simulated user may say is mixed into a row's buffer as soon as its time is settled, so a step is a
slice, a copy and a look at the agent's energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.acoustics.chain import Chain
from envs.acoustics.config import Acoustics, find_acoustics
from envs.acoustics.room_tone import room_tone
from envs.activity import OnlineActivity
from envs.clock import CLOCK
from envs.episode import Episode, from_pcm16, to_pcm16
from envs.errors import UptakeError
from envs.event import Event, Word
from envs.pack import Pack
from envs.scenario import Scenario
from envs.seeding import crc
from envs.users.drivers import Plan, Users, bind
from envs.users.script import Cue
from envs.users.turn_models import Heard

SIMULATOR_VERSION = 1
"""Raised whenever the same seed would give other audio or other events."""

_TRACKS = ("_scene", "_user", "_agent")
_COUNTERS = ("_frame", "_end", "_terminated")


class DuplexVectorEnv(gym.vector.VectorEnv):
    """`num_envs` conversations in lockstep. Observation: dict with `mic` (B, F) float32; action: (B, F) float32."""

    def __init__(
        self,
        pack: Pack | str | Path = "core",
        num_envs: int = 1,
        split: str = "train",
        frames: int = 150,
        score: Callable[[Episode], float] | None = None,
        acoustics: str | Path | Mapping[str, Any] | Acoustics | None = None,
    ) -> None:
        """Make the environment.

        Args:
            pack: a loaded pack, its folder, or the name of one that ships with the package.
            num_envs: B, conversations at once.
            split: where scenarios are drawn from when `reset` does not name them.
            frames: steps after which every row is truncated.
            score: called once a row as its episode ends; what it returns is that step's reward.
            acoustics: how scenarios sound that say nothing about it: a preset such as `cafe`, a YAML file, or a mapping
                as under `acoustics:` of a scenario.
        """
        if num_envs < 1 or frames < 1:
            raise UptakeError(f"environment: num_envs={num_envs}, frames={frames}; both must be at least 1")
        self.pack = pack if isinstance(pack, Pack) else Pack.load(pack)
        self.split = split
        self.frames = frames
        self.score = score
        self.acoustics = find_acoustics(acoustics)
        self.clock = CLOCK
        self.num_envs = num_envs
        size = self.clock.frame
        audio = gym.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.single_observation_space = gym.spaces.Dict({"mic": audio})
        self.single_action_space = audio
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}
        self.spec = None

        self._ids = [scenario.id for scenario in self.pack.scenarios(split)]
        shape = (num_envs, frames + 1, size)
        self._scene = np.zeros(shape, np.int16)  # what the microphone hears: room tone, user and others
        self._user = np.zeros(shape, np.int16)  # the user's voice alone
        self._agent = np.zeros(shape, np.int16)  # what the agent played
        self._frame = np.full(num_envs, -1, np.int64)  # current frame; -1 before the first reset
        self._end = np.zeros(num_envs, np.int64)  # frames in the episode once it has ended, else 0
        self._terminated = np.zeros(num_envs, bool)
        self._heard = OnlineActivity(num_envs)
        self._driver = Users(num_envs)
        self._chains: dict[int, Chain] = {}  # row -> what acoustics do to its sound; no entry where they are clean
        self._run_seed: int | None = None
        self.agent_words: Callable[[int], Sequence[Word]] | None = None
        """Gives the words that the agent has said so far in a row, from its text stream or by speech recognition: set
        by whoever plays the agent. Only users that read a transcript (`llm`) ask for them."""
        self._rows = np.arange(num_envs)

    # -- gymnasium -----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start conversations.

        Args:
            seed: the run seed; kept until another is given.
            options: `scenario` (an id, or one a row) and `variant` (an int, or one a row; 0 if left out) choose the
                conversations; without them both are drawn. `reset_mask` (B,) bool says which rows start afresh.

        Returns:
            The current frame of every row, and info.
        """
        options = dict(options or {})
        rows = self._masked(options.pop("reset_mask", None))
        scenarios, variants = options.pop("scenario", None), options.pop("variant", None)
        if options:
            raise UptakeError(f"reset: unknown option {next(iter(options))!r}; known: reset_mask, scenario, variant")
        if seed is not None or self._run_seed is None:
            super().reset(seed=seed)
            self._run_seed = int(np.random.default_rng().integers(2**31)) if seed is None else int(seed)
            self._sampler = np.random.default_rng(np.random.SeedSequence(self._run_seed, spawn_key=(crc("scenarios"),)))
        chosen = self._choose(rows, scenarios, variants)
        for row, (scenario, variant) in zip(rows, chosen, strict=True):
            self._begin(int(row), scenario, variant)
        self._heard.reset(rows)
        self._heard.now[rows] = self.clock.frame  # frame 0: the agent cannot have said anything yet
        info = self._info()
        plans = [self._driver.plans[row] for row in range(self.num_envs)]
        info["scenario"] = np.array([plan.scenario.id if plan else "" for plan in plans], dtype=object)
        info["variant"] = np.array([plan.seeds.variant if plan else -1 for plan in plans])
        return self._observe(), info

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one frame of agent audio (B, F) in [-1, 1] (clipped) and hear the next microphone frame."""
        audio = self._checked(actions)
        spent = np.flatnonzero((self._frame >= self.frames) | (self._frame < 0))
        if spent.size:
            what = "was never reset" if self._frame[spent[0]] < 0 else f"is at its last frame ({self.frames})"
            raise UptakeError(f"step: row {spent[0]} {what}; call reset(options={{'reset_mask': mask}}) first")
        self._frame += 1
        self._agent[self._rows, self._frame] = to_pcm16(audio)
        heard = self._sound(audio) if self._chains else audio
        self._heard.update(heard)
        self._mix(
            self._driver.advance(Heard((self._frame + 1) * self.clock.frame, self._heard, heard, self.agent_words))
        )

        for row in np.flatnonzero(~self._terminated):
            done_at = self._driver.done_at(int(row))
            self._terminated[row] = done_at is not None and (self._frame[row] + 1) * self.clock.frame >= done_at
        truncated = self._frame >= self.frames
        ending = np.flatnonzero((self._terminated | truncated) & (self._end == 0))
        self._end[ending] = self._frame[ending] + 1
        reward = np.zeros(self.num_envs, np.float64)
        if self.score is not None:
            for row in ending:
                reward[row] = self.score(self.episode(int(row)))
        return self._observe(), reward, self._terminated.copy(), truncated, self._info()

    # -- conversations -------------------------------------------------------------------------------------------------

    def episode(self, row: int, transcript: Sequence[Word] = ()) -> Episode:
        """The record of a row so far (to its end, if it has ended). `transcript` is the agent's own text, if any.

        Its events are those that are over; one that has begun and is not over stands in `meta["running"]`, so that a
        reward knows of it (`EpisodeView.events`) now as it will later.
        """
        self._check_row(row)
        plan = self._driver.plans[row]
        assert plan is not None
        frames = int(self._end[row] or self._frame[row] + 1)
        length = self.clock.sample_of(frames)
        events = [event for event in self._driver.events(row) if event.onset < length]
        ended = None
        if self._end[row]:
            ended = "script" if self._terminated[row] else "frames"
        meta = {
            "scenario": plan.scenario.id,
            "driver": plan.scenario.driver,
            "split": plan.scenario.split,
            "tags": list(plan.scenario.tags),
            "twin": plan.scenario.twin,
            "variant": plan.seeds.variant,
            "seed": self._run_seed,
            "vars": dict(plan.values),
            "voice": plan.voice,
            "room_tone_db": plan.room_tone_db,
            "acoustics": self._chains[row].truth if row in self._chains else {},
            "pack": self.pack.name,
            "pack_hash": self.pack.hash,
            "simulator": SIMULATOR_VERSION,
            "frames": frames,
            "ended": ended,
            "skipped": self._driver.skipped(row),
            "unfinished": [event.id for event in events if event.offset > length],
            "running": [event.to_json() for event in events if event.offset > length],
            **self._driver.notes(row),
            "references": {event.id: texts for event in events if (texts := self._references(event))},
        }
        mic, user, agent = (from_pcm16(getattr(self, name)[row, :frames].reshape(-1)) for name in _TRACKS)
        events = [event for event in events if event.offset <= length]
        return Episode(mic, user, agent, events, tuple(transcript), meta, self.clock, self._driver.decisions(row))

    def privileged(self, row: int) -> tuple[Event, ...]:
        """What is settled about a row, the future included: for scripted oracles, never for a policy."""
        self._check_row(row)
        return tuple(self._driver.events(row))

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue exactly from where row `source` stands, so that a group starts from one state."""
        self._check_row(source)
        index = np.asarray(list(rows), np.int64)
        if index.size and not (index.min() >= 0 and index.max() < self.num_envs):
            raise UptakeError(f"fork: rows {index.tolist()} are not all in 0..{self.num_envs - 1}")
        for name in (*_TRACKS, *_COUNTERS):
            getattr(self, name)[index] = getattr(self, name)[source]
        self._heard.fork(source, index)
        self._driver.fork(source, index.tolist())
        chain = self._chains.get(source)
        for row in index.tolist():
            if chain is None:
                self._chains.pop(row, None)
            elif row != source:
                self._chains[row] = chain.fork()

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs to continue exactly from here."""
        state = {name: getattr(self, name).copy() for name in (*_TRACKS, *_COUNTERS)}
        sampler = self._sampler.bit_generator.state if self._run_seed is not None else None
        more = {"heard": self._heard.get_state(), "driver": self._driver.get_state()}
        chains = {row: chain.fork() for row, chain in self._chains.items()}
        return {**state, **more, "chains": chains, "run_seed": self._run_seed, "sampler": sampler}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        for name in (*_TRACKS, *_COUNTERS):
            if state[name].shape != getattr(self, name).shape:
                raise UptakeError(
                    f"set_state: {name} has shape {state[name].shape}, expected {getattr(self, name).shape}; "
                    "num_envs and frames must be the same"
                )
            setattr(self, name, state[name].copy())
        self._heard.set_state(state["heard"])
        self._driver.set_state(state["driver"])
        self._chains = {row: chain.fork() for row, chain in state["chains"].items()}
        self._run_seed = state["run_seed"]
        if state["sampler"] is not None:
            self._sampler = np.random.default_rng()
            self._sampler.bit_generator.state = state["sampler"]

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _references(self, event: Event) -> list[str]:
        """What the pack's agent would say to an event that expects certain words: reference answers for rewards."""
        expect = event.expected("responds")
        return [clip.text for clip in self.pack.answers(expect.content)] if expect else []

    def _begin(self, row: int, scenario: Scenario, variant: int) -> None:
        assert self._run_seed is not None
        plan = bind(self.pack, scenario, self._run_seed, variant, self.clock, self.acoustics)
        tone = room_tone(self._scene[row].size, plan.room_tone_db, plan.seeds.rng("noise"), plan.seeds.rng("room"))
        self._scene[row] = tone.reshape(self._scene[row].shape)
        self._user[row] = 0
        self._agent[row] = 0
        self._frame[row] = 0
        self._end[row] = 0
        self._terminated[row] = False
        self._chains.pop(row, None)
        if not plan.conditions.clean:
            self._surround(row, plan)
        self._mix(self._driver.reset(row, plan))
        if row in self._chains:  # frame 0: the agent cannot have said anything yet
            silence = np.zeros(self.clock.frame, np.float32)
            _, self._scene[row, 0] = self._chains[row].step(silence, self._user[row, 0], self._scene[row, 0])

    def _surround(self, row: int, plan: Plan) -> None:
        """Give a row the chain of its conditions, and what sounds by itself there."""
        scenario = plan.scenario
        others = self.pack.other_voices(scenario.split, plan.voice) if plan.conditions.peopled else []
        if plan.conditions.peopled and not others:
            raise scenario.error(
                f"acoustics: babble and speaker need {scenario.split} clips of another voice than {plan.voice!r}; "
                "add some to the pack"
            )
        chain = Chain(plan.conditions, plan.seeds, others, self._scene[row].size, self.clock)
        background = chain.take_background()
        if background is not None:
            scene = self._scene[row].reshape(-1)
            scene[:] = to_pcm16(from_pcm16(scene) + background)
        self._chains[row] = chain

    def _sound(self, agent: np.ndarray) -> np.ndarray:
        """Send a frame (B, F) on its way and write what the agents hear; returns what the users hear of it, (B, F)."""
        heard = agent.copy()
        for row, chain in self._chains.items():
            frame = self._frame[row]
            heard[row], self._scene[row, frame] = chain.step(
                agent[row], self._user[row, frame], self._scene[row, frame]
            )
        return heard

    def _mix(self, cues: Iterable[Cue]) -> None:
        """Add what will be said to what will be heard."""
        for cue in cues:
            scene, user, pcm = self._scene[cue.row].reshape(-1), self._user[cue.row].reshape(-1), cue.pcm
            targets = [scene] if cue.source != "user" else [scene, user]
            if cue.row in self._chains:  # there the voice meets the surroundings only frame by frame
                targets = [user] if cue.source == "user" else [scene]
                pcm = pcm if cue.source == "user" else self._chains[cue.row].place(pcm)
            for track in targets:
                part = track[cue.onset : cue.onset + len(pcm)]
                total = part.astype(np.int32) + pcm[: len(part)]
                part[:] = np.clip(total, -32768, 32767)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"mic": from_pcm16(self._scene[self._rows, np.maximum(self._frame, 0)])}

    def _info(self) -> dict[str, Any]:
        ledger = {
            "frame_ms": 1000.0 * self.clock.frame_seconds,
            "codec_ms": 0.0,
            "compute_ms": 0.0,
            "network_ms": self._network_ms(),
        }
        return {
            "frame": self._frame.copy(),
            "t": (self._frame + 1) * self.clock.frame_seconds,
            "ended": self._end > 0,
            "latency_ledger": ledger,
        }

    def _network_ms(self) -> np.ndarray:
        """(B,) milliseconds there and back that acoustics add between the agent and the user."""
        ms = np.zeros(self.num_envs)
        for row, chain in self._chains.items():
            ms[row] = 1000.0 * (chain.uplink_samples + chain.downlink_samples) / self.clock.sample_rate
        return ms

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        audio = np.asarray(actions, np.float32)
        if audio.shape != (self.num_envs, self.clock.frame):
            raise UptakeError(
                f"step: action has shape {audio.shape}, expected {(self.num_envs, self.clock.frame)}: "
                "one frame of audio a row"
            )
        if not np.isfinite(audio).all():
            row = int(np.flatnonzero(~np.isfinite(audio).all(axis=1))[0])
            raise UptakeError(f"step: action of row {row} holds NaN or infinity; check the policy's audio")
        return np.clip(audio, -1.0, 1.0)

    def _masked(self, mask: Any) -> np.ndarray:
        if mask is None:
            return self._rows
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise UptakeError(f"reset: reset_mask is {mask.dtype} {mask.shape}, expected bool ({self.num_envs},)")
        return np.flatnonzero(mask)

    def _choose(self, rows: np.ndarray, scenarios: Any, variants: Any) -> list[tuple[Scenario, int]]:
        """One (scenario, variant) for each of `rows`; what is not given is drawn."""
        if scenarios is None and not self._ids:
            raise UptakeError(f"pack {self.pack.name!r} has no scenario in split {self.split!r}; name one in options")
        named = self._spread(scenarios, "scenario", str)
        numbers = self._spread(variants, "variant", (int, np.integer))
        chosen = []
        for row in rows:
            name = named[row] if named else self._ids[int(self._sampler.integers(len(self._ids)))]
            drawn = 0 if named else int(self._sampler.integers(2**31))
            variant = int(numbers[row]) if numbers else drawn
            if variant < 0:
                raise UptakeError(f"reset: variant {variant} of row {row} is negative; use 0 or more")
            chosen.append((self.pack.scenario(name), variant))
        return chosen

    def _spread(self, value: Any, what: str, kind: type | tuple[type, ...]) -> list[Any]:
        if value is None:
            return []
        values = [value] * self.num_envs if isinstance(value, kind) else list(value)
        if len(values) != self.num_envs or not all(isinstance(v, kind) for v in values):
            raise UptakeError(f"reset: option {what!r} is {value!r:.80}; give one, or a list of {self.num_envs}")
        return values

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_envs or self._frame[row] < 0:
            raise UptakeError(f"row {row} is not in 0..{self.num_envs - 1} or was never reset")

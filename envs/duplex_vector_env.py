"""A batch of conversations as one `gymnasium.vector.VectorEnv`: 80 ms of microphone out, 80 ms of agent audio in.

    env = DuplexVectorEnv("core", num_envs=8)
    obs, info = env.reset(seed=7, options={"scenario": ids, "variant": variants})
    obs, reward, terminated, truncated, info = env.step(agent_audio)      # (8, 1920) float32

Time: `reset` returns microphone frame 0. `step(a_k)` plays `a_k` during frame k+1 and returns microphone frame k+1, so
the earliest audible reaction to a sample of frame k begins at the first sample of frame k+1.

Ends: `terminated` when the script is over (and `terminate.after_script_s` has passed), `truncated` after `frames`
steps. The reward is the score of the finished episode, given once, in the step that ends it. What comes then is
`autoreset_mode` (`gymnasium.vector.AutoresetMode`):

* `DISABLED`, unless said otherwise: a row that has terminated stays so, hears room tone and records nothing more, while
  the others go on, so that every row of every rank makes the same number of steps; a row at its last frame must be
  reset. `reset(options={"reset_mask": mask})` starts rows afresh.
* `NEXT_STEP`: the step after the end starts the row afresh: its action is swallowed, it hears frame 0, the reward is 0.
* `SAME_STEP`: the step that ends a row starts it afresh and returns frame 0 of the new conversation; the last frame of
  the old one is in `info["final_obs"]`, what was known in `info["final_info"]`, both with the mask that Gymnasium uses.

Rows that start by themselves draw their conversations from the run seed, their number and how often they did it, so
that what a row meets does not depend on when the others end.

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
from envs.actions import Pcm, find_codec, make_actions
from envs.activity import OnlineActivity
from envs.clock import CLOCK
from envs.codec import Codec
from envs.ear import Ear
from envs.episode import Episode, from_pcm16, to_pcm16
from envs.errors import UptakeError
from envs.event import Event, Word
from envs.pack import Pack, open_pack
from envs.reset_options import find_mode, masked, spread
from envs.scenario import Scenario
from envs.seeding import crc
from envs.timeline import image
from envs.users.drivers import Plan, Users, bind
from envs.users.script import Cue, shifted
from envs.users.turn_models import Heard
from envs.voice import Voice, mix

SIMULATOR_VERSION = 3
"""Raised whenever the same seed would give other audio or other events."""

_TRACKS = ("_scene", "_agent")
_COUNTERS = ("_frame", "_end", "_terminated", "_restarts")


class DuplexVectorEnv(gym.vector.VectorEnv):
    """`num_envs` conversations in lockstep. Observation: dict with `mic` (B, F) float32, or as `obs` says; action: as
    `act` says."""

    def __init__(
        self,
        pack: Pack | str | Path = "core",
        num_envs: int = 1,
        split: str = "train",
        frames: int = 150,
        score: Callable[[Episode], float] | None = None,
        acoustics: str | Path | Mapping[str, Any] | Acoustics | None = None,
        act: str | Codec = "pcm",
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        privileged: bool = False,
        users: str | Path = "",
        render_mode: str | None = None,
        obs: str | Codec = "pcm",
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
            act: what an action is: `pcm`, (B, F) float32; `canned`, (B,) of {silent, speak, backchannel}; or a codec,
                whose codes (B, codebooks) are then played (`envs.actions`).
            autoreset_mode: what happens to rows that have ended; the enumeration or its value (`NextStep`).
            privileged: tell in ``info["privileged"]["events"]`` everything that is settled, the future included.
            users: other scenarios for the pack's audio, as `Pack.load` takes them.
            render_mode: None, or `rgb_array`: `render` draws every row so far.
            obs: what is heard: `pcm`, or a codec, of which `codes` (B, codebooks) then stand in the place of `mic`.
        """
        if num_envs < 1 or frames < 1:
            raise UptakeError(f"environment: num_envs={num_envs}, frames={frames}; both must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise UptakeError(f"environment: render_mode={render_mode!r}; give None or 'rgb_array'")
        if isinstance(pack, Pack):
            self.pack = pack.with_users(users) if users else pack
        else:
            self.pack = open_pack(pack, users)
        self.split = split
        self.frames = frames
        self.score = score
        self.acoustics = find_acoustics(acoustics)
        self.clock = CLOCK
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = find_mode(autoreset_mode)
        self.act, self.obs, self.tells = act, obs, privileged
        size = self.clock.frame
        self.speech = make_actions(act, num_envs, self.pack, self._settled)
        self.ear = None if obs == "pcm" else Ear(find_codec(obs, "obs", ("pcm",)), num_envs)
        mic = gym.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.single_observation_space = gym.spaces.Dict(
            {"mic": mic} if self.ear is None else {"codes": self.ear.single_space}
        )
        self.single_action_space = self.speech.single_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": 1.0 / self.clock.frame_seconds,
            "autoreset_mode": self.autoreset_mode,
        }
        self.spec = None

        self._ids = [scenario.id for scenario in self.pack.scenarios(split)]
        shape = (num_envs, frames + 1, size)
        self._scene = np.zeros(shape, np.int16)  # what the microphone hears: room tone, user and others
        self._voices = [Voice() for _ in range(num_envs)]  # the users alone
        self._agent = np.zeros(shape, np.int16)  # what the agent played
        self._frame = np.full(num_envs, -1, np.int64)  # current frame; -1 before the first reset
        self._end = np.zeros(num_envs, np.int64)  # frames in the episode once it has ended, else 0
        self._terminated = np.zeros(num_envs, bool)
        self._restarts = np.zeros(num_envs, np.int64)  # conversations that rows started by themselves
        self._heard = OnlineActivity(num_envs)
        self._driver = Users(num_envs)
        self._chains: dict[int, Chain] = {}  # row -> what acoustics do to its sound; no entry where they are clean
        self._run_seed: int | None = None
        self.agent_words: Callable[[int], Sequence[Word]] | None = None
        """Gives the words that the agent has said so far in a row, from its text stream or by speech recognition: set
        by whoever plays the agent (None: what canned actions said). Only users that read (`llm`) ask for them, and a
        state or a fork does not take it along."""
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
        rows = masked(options.pop("reset_mask", None), self.num_envs)
        scenarios, variants = options.pop("scenario", None), options.pop("variant", None)
        if options:
            raise UptakeError(f"reset: unknown option {next(iter(options))!r}; known: reset_mask, scenario, variant")
        if seed is not None or self._run_seed is None:
            super().reset(seed=seed)
            self._run_seed = int(np.random.default_rng().integers(2**31)) if seed is None else int(seed)
            self._sampler = np.random.default_rng(np.random.SeedSequence(self._run_seed, spawn_key=(crc("scenarios"),)))
        if seed is not None:
            self._restarts[:] = 0
        self._start(rows, self._choose(rows, scenarios, variants))
        info = self._info()
        return self._observe(), {**info, **self._which()}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one frame of the agent a row (audio is clipped to [-1, 1]) and hear the next microphone frame."""
        checked = self.speech.check(actions)
        again = self._end > 0 if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        spent = np.flatnonzero(((self._frame >= self.frames) & ~again) | (self._frame < 0))
        if spent.size:
            what = "was never reset" if self._frame[spent[0]] < 0 else f"is at its last frame ({self.frames})"
            raise UptakeError(f"step: row {spent[0]} {what}; call reset(options={{'reset_mask': mask}}) first")
        rows = np.flatnonzero(~again)
        audio = self.speech.speak(checked)
        self._frame[rows] += 1
        self._agent[rows, self._frame[rows]] = to_pcm16(audio)[rows]
        heard = self._sound(audio, rows) if self._chains else audio
        self._heard.update(heard)
        now = (self._frame + 1 + again) * self.clock.frame
        words = self.agent_words or self.speech.transcript
        self._mix(self._driver.advance(Heard(now, self._heard, heard, words)))

        for row in np.flatnonzero(~self._terminated & ~again):
            self._terminated[row] = now[row] >= self._driver.done_at(int(row))
        truncated = (self._frame >= self.frames) & ~again
        ending = np.flatnonzero((self._terminated | truncated) & (self._end == 0))
        self._end[ending] = self._frame[ending] + 1
        reward = np.zeros(self.num_envs, np.float64)
        if self.score is not None:
            for row in ending:
                reward[row] = self.score(self.episode(int(row)))
        terminated = self._terminated & ~again
        self._hear(rows)
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ending.size:
            final = self._final(ending)
            again[ending] = True
        if again.any():
            self._restart(np.flatnonzero(again))
            final |= self._which()
        info = self._info()
        if isinstance(self.speech, Pcm):
            info["clipped"] = np.count_nonzero(checked != audio, axis=1)
        return self._observe(), reward, terminated, truncated, {**info, **final}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture (height, width, 3) uint8 of every conversation so far; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        return tuple(image(self.episode(row)) for row in range(self.num_envs))

    # -- conversations -------------------------------------------------------------------------------------------------

    def episode(self, row: int, transcript: Sequence[Word] | None = None) -> Episode:
        """The record of a row so far (to its end, if it has ended). `transcript` is the agent's own text, if any.

        Left out, it is what canned actions said. A row that started afresh by itself has another conversation already.
        All of it is in the agent's time: the user's voice and events lie where the agent can hear them (`_settled`).
        Its events are those that are over; one that has begun and is not over stands in `meta["running"]`, so that a
        reward knows of it (`EpisodeView.events`) now as it will later.
        """
        self._check_row(row)
        plan = self._driver.plans[row]
        assert plan is not None
        frames = int(self._end[row] or self._frame[row] + 1)
        length = self.clock.sample_of(frames)
        events = [event for event in self._settled(row) if event.onset < length]
        ended = None
        if self._end[row]:
            ended = "script" if self._terminated[row] else "frames"
        meta = {
            "scenario": plan.scenario.id,
            "driver": plan.scenario.driver,
            "split": plan.scenario.split,
            "tags": list(plan.scenario.tags),
            "twin": plan.scenario.twin,
            "shares": list(self.pack.shares(plan.scenario)),
            "variant": plan.seeds.variant,
            "seed": plan.seeds.run_seed,
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
            "topics": self.pack.topics,
            "references": {event.id: texts for event in events if (texts := self._references(event))},
        }
        mic, agent = (from_pcm16(getattr(self, name)[row, :frames].reshape(-1)) for name in _TRACKS)
        late = self._chains[row].uplink_samples if row in self._chains else 0
        user = from_pcm16(self._voices[row].between(-late, length - late))
        events = [event for event in events if event.offset <= length]
        if transcript is None:
            transcript = [word for word in self.speech.transcript(row) if word.onset < length]
        return Episode(mic, user, agent, events, tuple(transcript), meta, self.clock, self._driver.decisions(row))

    def privileged(self, row: int) -> tuple[Event, ...]:
        """What is settled about a row, the future included: for scripted oracles, never for a policy."""
        self._check_row(row)
        return tuple(self._settled(row))

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
        self.speech.fork(source, index.tolist())
        if self.ear is not None:
            self.ear.fork(source, index.tolist())
        voice = self._voices[source]
        for row in index.tolist():
            self._voices[row] = voice.fork()
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
        more = {
            "heard": self._heard.get_state(),
            "driver": self._driver.get_state(),
            "speech": self.speech.get_state(),
            "voices": [voice.fork() for voice in self._voices],
            "ear": None if self.ear is None else self.ear.get_state(),
        }
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
        if (self.ear is None) != (state["ear"] is None):
            raise UptakeError("set_state: one hears sound and the other codes; obs must be the same")
        self._heard.set_state(state["heard"])
        self._driver.set_state(state["driver"])
        self.speech.set_state(state["speech"])
        if self.ear is not None:
            self.ear.set_state(state["ear"])
        self._voices = [voice.fork() for voice in state["voices"]]
        self._chains = {row: chain.fork() for row, chain in state["chains"].items()}
        self._run_seed = state["run_seed"]
        if state["sampler"] is not None:
            self._sampler = np.random.default_rng()
            self._sampler.bit_generator.state = state["sampler"]

    def _settled(self, row: int) -> list[Event]:
        """What is settled about a user, in the agent's time: each event when the agent can hear it, and what the user
        heard of the agent when the agent sent it. They differ by the ways through a network."""
        events, chain = self._driver.events(row), self._chains.get(row)
        if chain is None or not (chain.uplink_samples or chain.downlink_samples):
            return events
        since = [event.anchors.get("agent_speaking_since", -1) for event in events]
        sent = [max(heard - chain.downlink_samples, -1) for heard in since]
        return [shifted(event, chain.uplink_samples, at) for event, at in zip(events, sent, strict=True)]

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _references(self, event: Event) -> list[str]:
        """What the pack's agent would say to an event that expects certain words: reference answers for rewards."""
        expect = event.expected("responds")
        return [clip.text for clip in self.pack.answers(expect.content)] if expect else []

    def _start(self, rows: np.ndarray, chosen: Sequence[tuple[Scenario, int]]) -> None:
        """Begin these conversations in these rows."""
        for row, (scenario, variant) in zip(rows, chosen, strict=True):
            self._begin(int(row), scenario, variant)
        self._heard.reset(rows)
        self._heard.now[rows] = self.clock.frame  # frame 0: the agent cannot have said anything yet
        self.speech.reset(rows.tolist())
        if self.ear is not None:
            self.ear.reset(rows)
            self._hear(rows)

    def _restart(self, rows: np.ndarray) -> None:
        """Let rows begin conversations by themselves."""
        self._need_ids()
        assert self._run_seed is not None
        chosen = []
        for row in rows.tolist():
            key = (crc("restarts"), row, int(self._restarts[row]))
            rng = np.random.default_rng(np.random.SeedSequence(self._run_seed, spawn_key=key))
            chosen.append((self.pack.scenario(self._ids[rng.integers(len(self._ids))]), int(rng.integers(2**31))))
        self._restarts[rows] += 1
        self._start(rows, chosen)

    def _final(self, rows: np.ndarray) -> dict[str, Any]:
        """What is lost as these rows start afresh in the step that ends them, in the form that Gymnasium gives it."""
        ended = np.zeros(self.num_envs, bool)
        ended[rows] = True
        last = np.full(self.num_envs, None, object)
        heard = self._observe()
        for row in rows:
            last[row] = {name: value[row].copy() for name, value in heard.items()}
        told = self._info() | self._which()
        told |= {f"_{key}": ended.copy() for key in list(told)}
        return {"final_obs": last, "_final_obs": ended, "final_info": told, "_final_info": ended.copy()}

    def _begin(self, row: int, scenario: Scenario, variant: int) -> None:
        assert self._run_seed is not None
        plan = bind(self.pack, scenario, self._run_seed, variant, self.clock, self.acoustics)
        tone = room_tone(self._scene[row].size, plan.room_tone_db, plan.seeds.rng("noise"), plan.seeds.rng("room"))
        self._scene[row] = tone.reshape(self._scene[row].shape)
        self._voices[row] = Voice()
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
            voice = self._voices[row].between(0, self.clock.frame)
            _, self._scene[row, 0] = self._chains[row].step(silence, voice, self._scene[row, 0])

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

    def _sound(self, agent: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Send a frame (B, F) on its way and write what the agents of `rows` hear; returns what the users hear."""
        heard, size = agent.copy(), self.clock.frame
        for row in rows.tolist():
            if (chain := self._chains.get(row)) is not None:
                frame = int(self._frame[row])
                voice = self._voices[row].between(frame * size, (frame + 1) * size)
                heard[row], self._scene[row, frame] = chain.step(agent[row], voice, self._scene[row, frame])
        return heard

    def _mix(self, cues: Iterable[Cue]) -> None:
        """Add what will be said to what will be heard, up to the frame that ends the conversation in any case."""
        for cue in cues:
            plan = self._driver.plans[cue.row]
            assert plan is not None
            end = self.clock.sample_of(self.clock.frames_covering(plan.longest))
            pcm = cue.pcm[: max(0, end - cue.onset)]
            own, chain = cue.source == "user", self._chains.get(cue.row)
            if own:
                self._voices[cue.row].add(cue.onset, pcm)
            if chain is not None and not own:
                pcm = chain.place(pcm)
            if chain is None or not own:  # in a chain the voice meets the surroundings only frame by frame
                mix(self._scene[cue.row].reshape(-1)[cue.onset :], pcm)

    def _mic(self) -> np.ndarray:
        """The current frame of every row, (B, F) float32."""
        return from_pcm16(self._scene[self._rows, np.maximum(self._frame, 0)])

    def _hear(self, rows: np.ndarray) -> None:
        """Let the ear of `rows` hear their current frame: once a frame, since a codec goes on with every call."""
        if self.ear is not None:
            self.ear.hear(self._mic(), rows)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"mic": self._mic()} if self.ear is None else {"codes": self.ear.codes.copy()}

    def _info(self) -> dict[str, Any]:
        ledger = {
            "frame_ms": 1000.0 * self.clock.frame_seconds,
            "codec_ms": 0.0,
            "compute_ms": 0.0,
            "network_ms": self._network_ms(),
        }
        info = {
            "frame": self._frame.copy(),
            "t": (self._frame + 1) * self.clock.frame_seconds,
            "ended": self._end > 0,
            "latency_ledger": ledger,
        }
        if self.tells:
            events = np.full(self.num_envs, None, object)
            for row, plan in enumerate(self._driver.plans):
                events[row] = [event.to_json() for event in self._settled(row)] if plan else []
            info["privileged"] = {"events": events}
        return info

    def _which(self) -> dict[str, np.ndarray]:
        """Which conversations the rows are having."""
        plans = self._driver.plans
        return {
            "scenario": np.array([plan.scenario.id if plan else "" for plan in plans], dtype=object),
            "variant": np.array([plan.seeds.variant if plan else -1 for plan in plans]),
        }

    def _network_ms(self) -> np.ndarray:
        """(B,) milliseconds there and back that acoustics add between the agent and the user."""
        ms = np.zeros(self.num_envs)
        for row, chain in self._chains.items():
            ms[row] = 1000.0 * (chain.uplink_samples + chain.downlink_samples) / self.clock.sample_rate
        return ms

    def _choose(self, rows: np.ndarray, scenarios: Any, variants: Any) -> list[tuple[Scenario, int]]:
        """One (scenario, variant) for each of `rows`; what is not given is drawn."""
        if scenarios is None:
            self._need_ids()
        named = spread(scenarios, "scenario", str, self.num_envs)
        numbers = spread(variants, "variant", (int, np.integer), self.num_envs)
        chosen = []
        for row in rows:
            name = named[row] if named else self._ids[int(self._sampler.integers(len(self._ids)))]
            drawn = 0 if named else int(self._sampler.integers(2**31))
            variant = int(numbers[row]) if numbers else drawn
            if variant < 0:
                raise UptakeError(f"reset: variant {variant} of row {row} is negative; use 0 or more")
            chosen.append((self.pack.scenario(name), variant))
        return chosen

    def _need_ids(self) -> None:
        if not self._ids:
            raise UptakeError(f"pack {self.pack.name!r} has no scenario in split {self.split!r}; name one in options")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_envs or self._frame[row] < 0:
            raise UptakeError(f"row {row} is not in 0..{self.num_envs - 1} or was never reset")

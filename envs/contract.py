"""The contract of a duplex environment, one check a clause. `envs.checks` runs them.

A check gets a `Subject` and returns what it saw in a few words; it raises `UptakeError` where the clause is broken and
`Skip` where it does not apply.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from envs.activity import OnlineActivity
from envs.clock import CLOCK
from envs.ear import Ear
from envs.episode import Episode
from envs.errors import UptakeError
from envs.leak import probe

F = CLOCK.frame
SOONEST = CLOCK.samples(0.001)
"""Samples (1 ms, in which sound travels 34 cm) after which the earliest echo of an action may be heard."""
LEAK = 0.55
"""The highest AUC of the leak probe."""
_LONGEST = 4500  # frames (6 minutes) of a conversation that the leak probe listens to


class Skip(Exception):
    """The clause does not apply; says why."""


@dataclass
class Subject:
    """An environment under examination."""

    env: gym.Env[Any, Any]
    seed: int = 3
    frames: int = 12
    """How many frames a quick check plays."""
    hours: float = 1.0
    """How much conversation is played for the check of drift."""
    pairs: int = 40
    """How many twins the leak probe plays."""

    def __post_init__(self) -> None:
        space = self.env.observation_space
        self.ear: Ear | None = getattr(getattr(self.env.unwrapped, "vector", None), "ear", None)
        self.sense = "mic" if self.ear is None else "codes"
        if not isinstance(space, gym.spaces.Dict) or self.sense not in space.spaces:
            raise UptakeError(
                f"observation space {space}: has no '{self.sense}'; give a Dict with a frame of audio under that name"
            )
        if self.ear is None and space["mic"].shape != (F,):
            raise UptakeError(f"observation 'mic' has shape {space['mic'].shape}, expected ({F},): a frame of audio")
        self.audio = isinstance(self.env.action_space, gym.spaces.Box)
        self.quiet, self.loud = _voices(self.env)
        self.record: Callable[[], Episode] | None = getattr(self.env.unwrapped, "episode", None)

    def play(self, actions: list[Any], options: dict[str, Any] | None = None) -> np.ndarray:
        """What is heard, (n + 1, F) or (n + 1, codebooks), while n actions are played after a reset; fewer where the
        conversation ends before."""
        obs, _ = self.env.reset(seed=self.seed, options=options)
        heard = [obs[self.sense].copy()]
        for action in actions:
            obs, _, terminated, truncated, _ = self.env.step(action)
            heard.append(obs[self.sense].copy())
            if terminated or truncated:
                break
        return np.stack(heard)

    def listener(self) -> Callable[[dict[str, Any]], np.ndarray]:
        """Turns one observation after the other into sound, (1, F) float32."""
        if self.ear is None:
            return lambda obs: obs["mic"][None]
        codec, state = self.ear.codec, self.ear.codec.init_state(1)
        return lambda obs: codec.decode(state, obs["codes"][None])


def _voices(env: gym.Env[Any, Any]) -> tuple[Any, Any]:
    """An action that says nothing and one that is loud."""
    noise = np.clip(0.1 * np.random.default_rng(0).standard_normal(F), -1, 1).astype(np.float32)
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and space.shape == (F,):
        return np.zeros(F, np.float32), noise
    if isinstance(space, gym.spaces.Discrete) and space.n >= 2:
        return int(space.start), int(space.start) + 1
    codec = getattr(getattr(getattr(env.unwrapped, "vector", None), "speech", None), "codec", None)
    if isinstance(space, gym.spaces.MultiDiscrete) and codec is not None:
        both = [codec.encode(codec.init_state(1), frame[None])[0] for frame in (np.zeros(F, np.float32), noise)]
        return both[0], both[1]
    raise UptakeError(
        f"action space {space}: expected Box ({F},) float32, a Discrete of silence and speech, or codes of an own codec"
    )


def fingerprint(subject: Subject, row: np.ndarray | None = None) -> str:
    """SHA-256 of what is heard while nothing is said, or of `row` (n, F), in its place."""
    heard = subject.play([subject.quiet] * subject.frames) if row is None else row
    return hashlib.sha256(np.ascontiguousarray(heard, np.float32).tobytes()).hexdigest()


# -- clauses -----------------------------------------------------------------------------------------------------------


def gymnasium_contract(subject: Subject) -> str:
    """Gymnasium's own checker."""
    check_env(subject.env)
    return f"gymnasium {gym.__version__}"


def same_seed(subject: Subject) -> str:
    """The same seed gives the same audio."""
    first = fingerprint(subject)
    if first != fingerprint(subject):
        raise UptakeError("the same seed gave other audio; draw everything random from the seed of reset()")
    return f"SHA-256 {first[:12]}"


def sound(subject: Subject) -> str:
    """The microphone is finite, within full scale, and never digital silence."""
    if subject.ear is not None:
        raise Skip("what is heard are codes")
    heard = subject.play([subject.quiet] * subject.frames)
    if not np.isfinite(heard).all() or np.abs(heard).max() > 1.0:
        raise UptakeError("the microphone is not finite or exceeds full scale; clip what is mixed")
    dead = np.flatnonzero(np.abs(heard).max(axis=1) == 0)
    if dead.size:
        raise UptakeError(f"microphone frame {int(dead[0])} is digital silence; add room tone")
    level = 10 * np.log10(np.mean(np.square(heard, dtype=np.float64), axis=1).min())
    return f"the quietest frame has {level:.0f} dBFS"


def causality(subject: Subject) -> str:
    """What is said changes nothing that was heard before: to the sample for audio, else to the frame."""
    k, cut = subject.frames // 2, F // 2
    quiet = [subject.quiet] * subject.frames
    other = list(quiet)
    if subject.audio:
        other[k] = np.concatenate([subject.quiet[:cut], subject.loud[cut:]])
    else:
        other[k], cut = subject.loud, 0
    one, two = subject.play(quiet), subject.play(other)
    changed = np.flatnonzero(one.reshape(-1) != two.reshape(-1))
    soonest = (k + 1) * one.shape[1] + (cut + SOONEST if subject.ear is None else 0)
    if changed.size and changed[0] < soonest:
        raise UptakeError("an action changed the microphone before it could be heard; play action k in frame k+1")
    return "to the sample" if subject.audio and subject.ear is None else "to the frame"


def silence_identity(subject: Subject) -> str:
    """Where nobody listens and nothing echoes, the microphone does not depend on the agent at all."""
    fixed = getattr(subject.env.unwrapped, "unmoved", None)
    if fixed is None:
        raise Skip("the environment does not say which of its conversations ignore the agent: unmoved()")
    options = fixed()
    if options is None:
        raise Skip("every user here listens, or hears an echo")
    frames = max(subject.frames, 40)
    one, two = (subject.play([action] * frames, options) for action in (subject.quiet, subject.loud))
    if not np.array_equal(one, two):
        frame = int(np.flatnonzero((one != two).any(axis=1))[0])
        raise UptakeError(f"the agent is heard in microphone frame {frame} of a conversation that ignores it")
    return f"{len(one)} frames alike to the last bit"


def bad_actions(subject: Subject) -> str:
    """Bad actions are refused by name."""
    if subject.audio:
        zeros = np.zeros(F, np.float32)
        cases: dict[str, Any] = {
            "NaN": zeros + np.nan,
            "wrong shape": np.zeros(F + 1, np.float32),
            "two channels": np.zeros((F, 2), np.float32),
            "no samples": np.zeros(0, np.float32),
        }
    elif isinstance(subject.env.action_space, gym.spaces.Discrete):
        cases = {"a choice that there is not": int(subject.env.action_space.n) + 7}
    else:
        cases = {"a code that there is not": np.asarray(subject.quiet) + 10**6}
    for what, bad in cases.items():
        subject.env.reset(seed=subject.seed)
        try:
            subject.env.step(bad)
        except ValueError:
            continue
        raise UptakeError(f"an action with {what} was accepted; raise a ValueError that names it")
    return ", ".join(cases)


def impulse(subject: Subject) -> str:
    """An impulse in action k lies on its sample of frame k+1 of the record, the first after a reset included."""
    if not subject.audio:
        raise Skip("the action is not audio")
    if subject.record is None:
        raise Skip("there is no record: episode()")
    for k in (0, subject.frames - 1):  # frame 0 follows a reset after other steps: no action may be swallowed
        clicks = [subject.quiet.copy() for _ in range(k + 1)]
        clicks[k][7] = 1.0
        subject.play(clicks)
        found = np.flatnonzero(subject.record().agent)
        if found.tolist() != [(k + 1) * F + 7]:
            raise UptakeError(
                f"an impulse at sample 7 of action {k} was recorded at {found[:4].tolist()}, expected "
                f"{[(k + 1) * F + 7]}; play action k in frame k+1"
            )
    return "0 samples off"


def drift(subject: Subject) -> str:
    """Nothing is gained or lost in hours of conversation: every click of every frame lies on its sample."""
    if subject.record is None:
        raise Skip("there is no record: episode()")
    wanted, played, conversations = round(subject.hours * 3600 / CLOCK.frame_seconds), 0, 0
    while played < wanted:
        subject.env.reset(seed=subject.seed + conversations)
        places: list[int] = []
        ended = False
        while not ended and len(places) < wanted:
            action, k = subject.quiet, len(places)
            place = (k + 1) * F + 7 * k % F
            if subject.audio:
                action = subject.quiet.copy()
                action[7 * k % F] = 0.5
            places.append(place)
            _, _, terminated, truncated, info = subject.env.step(action)
            ended = terminated or truncated
            if "t" in info and abs(float(info["t"]) - (k + 2) * CLOCK.frame_seconds) > 1e-6:
                raise UptakeError(f"info['t'] is {float(info['t'])} s after {k + 2} frames; count samples")
        record = subject.record()
        if record.samples != (len(places) + 1) * F:
            raise UptakeError(f"{len(places) + 1} frames were heard, {record.samples} samples recorded; count samples")
        if subject.audio and np.flatnonzero(record.agent).tolist() != places:
            raise UptakeError(f"clicks of conversation {conversations} are not recorded on their samples")
        played, conversations = played + len(places), conversations + 1
    return f"0 samples in {played * CLOCK.frame_seconds / 3600:.2f} h, {conversations} conversations"


def batch_sizes(subject: Subject) -> str:
    """The first row of a batch of any size hears what one conversation alone does."""
    spec = subject.env.unwrapped.spec
    if spec is None:
        raise Skip("the environment was not made by gymnasium.make, so that no batch of it can be")
    alone = fingerprint(subject)
    for size in (1, 3):
        options = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
        batch = gym.make_vec(spec.id, num_envs=size, **options)
        obs, _ = batch.reset(seed=subject.seed)
        heard = [obs[subject.sense][0].copy()]
        for _ in range(subject.frames):
            obs, *_ = batch.step(np.stack([subject.quiet] * size))
            heard.append(obs[subject.sense][0].copy())
        batch.close()
        if fingerprint(subject, np.stack(heard)) != alone:
            raise UptakeError(f"row 0 of a batch of {size} does not hear what it hears alone; seed rows by themselves")
    return "batches of 1 and 3"


def processes(subject: Subject) -> str:
    """Another process hears the same."""
    spec = subject.env.unwrapped.spec
    if spec is None:
        raise Skip("the environment was not made by gymnasium.make, so that no other process can")
    try:
        told = spec.to_json()
    except (TypeError, ValueError) as error:
        raise Skip(f"what it was made with cannot be sent to another process ({error})") from error
    code = (
        "import sys, envs\n"
        "from gymnasium.envs.registration import EnvSpec\n"
        "from envs.contract import Subject, fingerprint\n"
        "env = EnvSpec.from_json(sys.argv[1]).make().unwrapped\n"
        "print(fingerprint(Subject(env, seed=int(sys.argv[2]), frames=int(sys.argv[3]))))\n"
    )
    command = [sys.executable, "-c", code, told, str(subject.seed), str(subject.frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UptakeError(f"another process could not make it: {done.stderr.strip().splitlines()[-1]}")
    if done.stdout.split()[-1] != fingerprint(subject):
        raise UptakeError("another process heard something else; use no hash(), set order, time or global generator")
    return "the same SHA-256"


def leak(subject: Subject) -> str:
    """No classifier tells twins apart before the decision point (`envs.leak`)."""
    twins = getattr(subject.env.unwrapped, "twins", None)
    if twins is None or subject.record is None:
        raise Skip("the environment names no twins: twins()")
    every = twins()
    if not every:
        raise Skip("there are no twins")
    chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, subject.pairs).astype(int))]
    found = probe([(_listen(subject, one), _listen(subject, other)) for one, other in chosen])
    if not found.pairs:
        raise Skip("no twins differ in their events")
    said = f"AUC {found.auc:.3f} over {found.pairs} twins, {found.alike} of them alike to the last bit"
    if found.auc > LEAK:
        raise UptakeError(f"{said}: what comes next can be told before it comes; give twins the same seeds and padding")
    return said


def _listen(subject: Subject, options: Mapping[str, Any]) -> Episode:
    """One conversation with an agent that answers any silence after speech with three seconds of noise."""
    obs, _ = subject.env.reset(seed=subject.seed, options=dict(options))
    ear, ended, frames, sound_of = OnlineActivity(1), False, 0, subject.listener()
    while not ended and frames < _LONGEST:
        frames += 1
        ear.update(sound_of(obs))
        quiet_for = CLOCK.seconds(int(ear.now[0] - ear.offset[0]))
        talks = ear.offset[0] >= 0 and 0.5 <= quiet_for < 3.5
        obs, _, terminated, truncated, _ = subject.env.step(subject.loud if talks else subject.quiet)
        ended = terminated or truncated
    assert subject.record is not None
    return subject.record()


QUICK: Mapping[str, Callable[[Subject], str]] = {
    "gymnasium": gymnasium_contract,
    "same seed, same audio": same_seed,
    "microphone": sound,
    "causality": causality,
    "silence identity": silence_identity,
    "bad actions": bad_actions,
    "impulse": impulse,
}
"""What needs nothing but the environment and a few frames."""
THOROUGH: Mapping[str, Callable[[Subject], str]] = {
    "drift": drift,
    "batch sizes": batch_sizes,
    "processes": processes,
    "leak": leak,
}

"""Checks that anyone can run on their own duplex environment, and on the score that they hand to one.

    check_duplex_env(gymnasium.make("Uptake/Duplex-v0", pack="my_pack").unwrapped)
    check_score(pack, my_score)

Both raise `UptakeError` naming the first thing that does not hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from envs.agents import AlwaysBackchannel, AlwaysTalking, Metronome, Oracle, ScriptedAgent, Silent, converse
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.pack import Pack


def check_duplex_env(env: gym.Env[Any, Any], frames: int = 12, seed: int = 3) -> None:
    """Check that an environment keeps the contract of a duplex one.

    Gymnasium's own checker; same seed, same audio; a microphone that is finite, within full scale and never digital
    silence; an action that changes nothing before it can be heard; bad actions refused by name. Where the environment
    records (`episode()`), also that an impulse in action k lands on its sample of frame k+1, the first action after a
    reset included.

    Args:
        env: takes (F,) float32 and returns a dict with `mic` (F,) float32.
        frames: how many frames each check plays.
        seed: the seed of each check.
    """
    check_env(env)
    size = CLOCK.frame
    silence = np.zeros((frames, size), np.float32)
    heard = _play(env, silence, seed)
    if _digest(heard) != _digest(_play(env, silence, seed)):
        raise UptakeError("the same seed gave other audio; draw everything random from the seed of reset()")
    if not np.isfinite(heard).all() or np.abs(heard).max() > 1.0:
        raise UptakeError("the microphone is not finite or exceeds full scale; clip what is mixed")
    if not np.abs(heard).max(axis=1).all():
        frame = int(np.flatnonzero(np.abs(heard).max(axis=1) == 0)[0])
        raise UptakeError(f"microphone frame {frame} is digital silence; add room tone")
    loud = silence.copy()
    loud[frames // 2] = 0.5 * np.sin(np.arange(size) * 0.1)
    if not np.array_equal(heard[: frames // 2 + 2], _play(env, loud, seed)[: frames // 2 + 2]):
        raise UptakeError("an action changed the microphone before it could be heard; play action k in frame k+1")
    for bad, what in ((np.full(size, np.nan, np.float32), "NaN"), (np.zeros(size + 1, np.float32), "wrong shape")):
        env.reset(seed=seed)
        try:
            env.step(bad)
        except ValueError:
            continue
        raise UptakeError(f"an action with {what} was accepted; raise a ValueError that names it")
    record: Callable[[], Episode] | None = getattr(env, "episode", None)
    if record is not None:
        for k in (0, frames - 1):  # frame 0 follows a reset after other steps: no action may be swallowed
            impulse = silence[: k + 1].copy()
            impulse[k, 7] = 1.0
            _play(env, impulse, seed)
            found = np.flatnonzero(record().agent)
            if found.tolist() != [(k + 1) * size + 7]:
                raise UptakeError(
                    f"an impulse at sample 7 of action {k} was recorded at {found[:4].tolist()}, expected "
                    f"{[(k + 1) * size + 7]}; play action k in frame k+1"
                )


def rank_agents(
    pack: Pack,
    score: Callable[[Episode], float],
    split: str = "train",
    scenarios: Sequence[str] = (),
    frames: int = 150,
    seed: int = 0,
) -> dict[str, float]:
    """Mean score of each degenerate agent and of the oracle over the same conversations."""
    names = list(scenarios) or [scenario.id for scenario in pack.scenarios(split)]
    env = DuplexVectorEnv(pack, len(names), split, frames)
    kinds: tuple[type[ScriptedAgent], ...] = (Silent, AlwaysTalking, AlwaysBackchannel, Metronome)
    agents: list[ScriptedAgent] = [kind(len(names), pack) for kind in kinds]
    agents.append(Oracle(len(names), pack, env))
    means = {}
    for agent in agents:
        episodes = converse(env, agent, seed, {"scenario": names})
        means[type(agent).__name__] = float(np.mean([score(episode) for episode in episodes]))
    return means


def check_score(
    pack: Pack, score: Callable[[Episode], float], margin: float = 0.05, **options: Any
) -> dict[str, float]:
    """Check that no degenerate agent scores within `margin` of the oracle; returns the means of `rank_agents`."""
    means = rank_agents(pack, score, **options)
    for name, mean in means.items():
        if name != "Oracle" and mean > means["Oracle"] - margin:
            raise UptakeError(
                f"{name} scores {mean:.3f}, the oracle {means['Oracle']:.3f}: the score can be had without listening"
            )
    return means


def _play(env: gym.Env[Any, Any], actions: np.ndarray, seed: int) -> np.ndarray:
    """Microphone (n + 1, F) while `actions` (n, F) are played after a reset."""
    obs, _ = env.reset(seed=seed)
    heard = [obs["mic"]]
    for action in actions:
        obs, *_ = env.step(action)
        heard.append(obs["mic"])
    return np.stack(heard)


def _digest(audio: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(audio).tobytes()).hexdigest()

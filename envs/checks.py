"""Checks that anyone can run on their own duplex environment, and on the score that they hand to one.

    check_duplex_env(gymnasium.make("Uptake/Duplex-v0", pack="my_pack").unwrapped)
    examine(gymnasium.make("my_package:Mine-v0").unwrapped)      # every clause: `uptake check-env my_package:Mine-v0`
    check_score(pack, my_score)

What the environment needs is in `envs.contract`: `mic` (or codes of an own codec) in the observation, and audio,
{silent, speak, ...} or codes as action. More is checked where it has `episode()` (an `Episode` of the conversation so
far), `twins()` (pairs of options for `reset`, of conversations that part at one moment) and `unmoved()` (options of one
that ignores the agent, or None).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.config import Acoustics
from envs.agents import AlwaysBackchannel, AlwaysTalking, Metronome, Oracle, ScriptedAgent, Silent, converse
from envs.contract import QUICK, THOROUGH, Skip, Subject
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.pack import Pack


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    check: str
    result: str
    """`holds`, `broken` or `skipped`."""
    detail: str


def check_duplex_env(env: gym.Env[Any, Any], frames: int = 12, seed: int = 3) -> None:
    """Check that an environment keeps the contract of a duplex one, as far as a few frames show it.

    Gymnasium's own checker; same seed, same audio; a microphone that is finite, within full scale and never digital
    silence; an action that changes nothing before it can be heard; bad actions refused by name. Where the environment
    records (`episode()`), also that an impulse in action k lands on its sample of frame k+1, the first action after a
    reset included.

    Args:
        env: what `gymnasium.make` gives, unwrapped; see `envs.contract`.
        frames: how many frames each check plays.
        seed: the seed of each check.

    Raises:
        UptakeError: naming the first thing that does not hold.
    """
    subject = Subject(env, seed, frames)
    for check in QUICK.values():
        try:
            check(subject)
        except Skip:
            continue


def examine(
    env: gym.Env[Any, Any],
    hours: float = 1.0,
    pairs: int = 40,
    seed: int = 3,
    score: Callable[[Episode], float] | None = None,
) -> Iterator[Finding]:
    """Every clause of the contract, one finding each, as they are checked.

    Beyond `check_duplex_env`: no drift over `hours` of conversation, the same audio in batches and in another process,
    twins that cannot be told apart before they part, and with a `score`, no degenerate agent near the oracle.
    """
    subject = Subject(env, seed, hours=hours, pairs=pairs)
    clauses: dict[str, Callable[[Subject], str]] = {**QUICK, **THOROUGH}
    clauses["degenerate ranking"] = lambda subject: _ranking(subject, score)
    for name, check in clauses.items():
        try:
            yield Finding(name, "holds", check(subject))
        except Skip as why:
            yield Finding(name, "skipped", str(why))
        except (UptakeError, AssertionError) as error:  # Gymnasium's checker asserts
            yield Finding(name, "broken", str(error))
        # An environment may be anybody's code: whatever it raises is a finding, and the rest is still checked.
        except Exception as error:
            yield Finding(name, "broken", f"{type(error).__name__}: {error}")


def _ranking(subject: Subject, score: Callable[[Episode], float] | None) -> str:
    """No agent that does not listen scores like one that knows everything."""
    if score is None:
        raise Skip("no score was given")
    vector = getattr(subject.env.unwrapped, "vector", None)
    if not isinstance(vector, DuplexVectorEnv):
        raise Skip("the oracle knows the scenarios of our packs alone; see check_score")
    twins = subject.env.unwrapped.twins()  # type: ignore[attr-defined]
    chosen = [twins[i] for i in np.unique(np.linspace(0, len(twins) - 1, subject.pairs).astype(int))] if twins else []
    names = [options["scenario"] for pair in chosen for options in pair]
    where: dict[str, Any] = {"split": vector.split, "frames": vector.frames, "acoustics": vector.acoustics}
    means = check_score(vector.pack, score, scenarios=names, **where)
    return ", ".join(f"{name} {mean:+.2f}" for name, mean in sorted(means.items(), key=lambda item: -item[1]))


def rank_agents(
    pack: Pack,
    score: Callable[[Episode], float],
    split: str = "train",
    scenarios: Sequence[str] = (),
    frames: int = 150,
    seed: int = 0,
    acoustics: str | Acoustics | None = None,
) -> dict[str, float]:
    """Mean score of each degenerate agent and of the oracle over the same conversations, in these acoustics."""
    names = list(scenarios) or [scenario.id for scenario in pack.scenarios(split)]
    env = DuplexVectorEnv(pack, len(names), split, frames, acoustics=acoustics)
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

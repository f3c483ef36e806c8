"""How simulated users time themselves: conversations that are held now, and measured as recordings are.

    timings = simulated("human")

The users are the reactive ones that ship (`reactive`, train split) with the core pack's voices, and live by the laws
that are given. Their partner is the scripted oracle, whose own timing is not looked at.
"""

from __future__ import annotations

from dataclasses import replace

from envs.activity import activity
from envs.agents import Oracle, converse
from envs.corpora.speech import ENERGY
from envs.corpora.timing import Timing, measure
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from envs.users.persona import ReactiveUser

_SEED, _FRAMES = 20261122, 300  # as long as the users stay: 24 s


def simulated(laws: str = "human", conversations: int = 52) -> list[Timing]:
    """What users do who live by `laws` (`human`, or a file), one entry a conversation.

    Raises:
        UptakeError: laws that cannot be read.
    """
    shipped = Pack.load("core", "reactive")
    scenarios = []
    for scenario in shipped.scenarios("train"):
        assert isinstance(scenario.user, ReactiveUser)
        scenarios.append(replace(scenario, user=replace(scenario.user, laws=laws)))
    clips = {clip.id: clip for clip in shipped.clips()}
    pack = Pack(shipped.name, shipped.version, clips, scenarios, shipped.hash, shipped.folder)
    env = DuplexVectorEnv(pack, conversations, frames=_FRAMES)
    options = {
        "scenario": [scenarios[i % len(scenarios)].id for i in range(conversations)],
        "variant": list(range(conversations)),
    }
    found = []
    for episode in converse(env, Oracle(conversations, pack, env), _SEED, options):
        units = [[(int(on), int(off)) for on, off in activity(t, ENERGY)] for t in (episode.agent, episode.user)]
        found.append(measure(units, of=1))
    return found

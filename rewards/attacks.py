"""The conversations that an audit judges: the oracle and everybody who must not earn what it earns.

    for name, episodes in play(pack, paired_scenarios(pack, "dev")):
        ...                                  # "oracle" first, then every attack, in the same conversations

Scenarios come in pairs that share their audio up to the decision, so that no constant behaviour is right in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from envs.agents import AlwaysBackchannel, AlwaysTalking, Metronome, Oracle, ScriptedAgent, Silent, converse
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.impostors import (
    Agreeable,
    EchoChaser,
    Hummer,
    Mumbler,
    RandomTalker,
    RateMatched,
    Soup,
    Staccato,
    Stopwatch,
    Truncator,
    Whisperer,
)  # fmt: skip
from envs.pack import Pack
from envs.scenario import Scenario
from rewards.stopwatch import schedule, stories

ORACLE = "oracle"
SCENARIOS = 60
"""How many scenarios an audit plays if it is not told otherwise."""
FRAMES = 175
"""Length of a conversation in frames of 80 ms: 14 s."""

Attack = Callable[[DuplexVectorEnv, Oracle, Sequence[int]], ScriptedAgent]
"""Makes an attack from the environment, the oracle after its conversations, and how long those were in samples."""
Gamble = Callable[[DuplexVectorEnv, Oracle, Sequence[int], int], ScriptedAgent]
"""The same for one that rolls dice, from the number of the draw."""

CERTAIN: Mapping[str, Attack] = {
    "silent": lambda env, oracle, samples: Silent(env.num_envs),
    "always_talking": lambda env, oracle, samples: AlwaysTalking(env.num_envs, env.pack),
    "always_backchannel": lambda env, oracle, samples: AlwaysBackchannel(env.num_envs, env.pack),
    "metronome": lambda env, oracle, samples: Metronome(env.num_envs, env.pack),
    "mumbler": lambda env, oracle, samples: Mumbler(env.num_envs, env.pack, env),
    "whisperer": lambda env, oracle, samples: Whisperer(env.num_envs, env.pack, env),
    "truncator": lambda env, oracle, samples: Truncator(env.num_envs, env.pack, env),
    "echo_chaser": lambda env, oracle, samples: EchoChaser(env.num_envs, env.pack, env),
    "agreeable": lambda env, oracle, samples: Agreeable(env.num_envs, env.pack, env),
    "soup": lambda env, oracle, samples: Soup(env.num_envs, env.pack, env),
    "hum": lambda env, oracle, samples: Hummer(env.num_envs, env.pack, env),
    "staccato": lambda env, oracle, samples: Staccato(env.num_envs, env.pack, env),
    "stopwatch": lambda env, oracle, samples: Stopwatch(env.num_envs, env.pack, schedule(stories(env.pack, "train"))),
}
CHANCE: Mapping[str, Gamble] = {
    "random": lambda env, oracle, samples, draw: RandomTalker(env.num_envs, env.pack, draw),
    "rate_matched": lambda env, oracle, samples, draw: RateMatched(oracle, samples, draw),
}
ATTACKS = (*CERTAIN, *CHANCE)
"""Every degenerate policy by name: what it does is said in `envs.agents` and `envs.impostors`."""
DRAWS = 3
"""So often have those that roll dice the same conversations: where a pack has one story, one draw says little."""
PLAYS = 1 + len(CERTAIN) + DRAWS * len(CHANCE)
"""How often `play` has the conversations played."""


def paired_scenarios(pack: Pack, split: str = "dev", count: int = SCENARIOS) -> list[Scenario]:
    """About `count` scenarios of a split, every kind in turn, each with its twin.

    Kinds are told apart by the event types in their scripts and by what is expected of the agent. The choice depends on
    the scenarios' ids alone.

    Raises:
        UptakeError: the split is empty.
    """
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Scenario]] = {}
    for scenario in sorted(pack.scenarios(split), key=lambda one: one.id):
        wanted = {expect.agent for _, expect in scenario.expects}
        kinds.setdefault((tuple(sorted(scenario.types)), tuple(sorted(wanted))), []).append(scenario)
    if not kinds:
        raise UptakeError(f"pack {pack.name!r} has no scenario in split {split!r}")
    known = {scenario.id: scenario for found in kinds.values() for scenario in found}
    chosen: dict[str, Scenario] = {}
    decks = [list(reversed(found)) for _, found in sorted(kinds.items())]
    while len(chosen) < count and any(decks):
        for deck in decks:
            while deck and deck[-1].id in chosen:  # came in as the twin of another
                deck.pop()
            if deck:
                scenario = deck.pop()
                pair = [scenario, *([known[scenario.twin]] if scenario.twin in known else [])]
                chosen |= {one.id: one for one in pair}
    return list(chosen.values())


def play(
    pack: Pack,
    scenarios: Sequence[Scenario],
    frames: int = FRAMES,
    seed: int = 0,
    on_done: Callable[[str], None] = lambda agent: None,
) -> Iterator[tuple[str, list[Episode]]]:
    """Let the oracle, then each attack, have the same conversations; one agent's at a time, to spare memory.

    An attack that rolls dice comes `DRAWS` times under its name.

    Args:
        pack: whose clips the agents speak with.
        scenarios: of one split.
        frames: length of every conversation.
        seed: of the users' timing and rooms.
        on_done: called with the agent's name after each, `PLAYS` times in all.
    """
    env = DuplexVectorEnv(pack, len(scenarios), scenarios[0].split, frames)
    oracle = Oracle(env.num_envs, pack, env)
    options = {"scenario": [scenario.id for scenario in scenarios]}

    def talk(agent: ScriptedAgent) -> list[Episode]:
        episodes = converse(env, agent, seed, options)
        for episode in episodes:
            episode.meta["text_stream"] = True  # they all have one: no words then means that none was said
        return episodes

    best = talk(oracle)
    samples = [episode.samples for episode in best]
    yield ORACLE, best
    on_done(ORACLE)
    for name, make in CERTAIN.items():
        yield name, talk(make(env, oracle, samples))
        on_done(name)
    for name, gamble in CHANCE.items():
        for draw in range(DRAWS):
            yield name, talk(gamble(env, oracle, samples, draw))
            on_done(name)

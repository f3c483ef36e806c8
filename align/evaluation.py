"""Measure a policy or a scripted agent on a split.

    before = evaluate(policy, pack, "test", name="before")
    ...
    result = compare(before, after, [silent, oracle], run={"name": "mine"})      # align.comparison

Conversation (scenario, variant) sounds the same in every evaluation with the same seed, and the policy samples from
the same stream: only the weights differ. What is measured is said in `rewards.measures`.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from align import ranks, rollout
from align.curriculum import by_axis
from align.loading import Scripted
from align.policies.base import DuplexPolicy
from align.policies.live.agent import Live, LiveAgent
from align.unheard import add_twins, without_sounds
from envs import agents
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import EVENT_TYPES, Word
from envs.files import whole
from envs.pack import Pack
from envs.scenario import Scenario
from rewards.aggregate import aggregate
from rewards.bootstrap import units
from rewards.detector import ENERGY, DetectorConfig
from rewards.measures import measure

VERSION = 1
AXIS_ORDER = ("pause", "turn", "backchannel", "interruption", "continue")
Key = tuple[str, int]
"""(scenario id, variant): one conversation."""
Measurements = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Example:
    """A conversation that the report shows."""

    key: Key
    folder: str
    title: str


@dataclass
class Evaluation:
    """What was measured in every conversation of a split."""

    name: str
    split: str
    variants: int
    frames: int
    seed: int
    pack: str
    pack_hash: str
    scenarios: dict[str, list[Measurements]]
    """Scenario id -> contributions of variant 0, 1, ..."""
    shares: dict[str, list[str]]
    """Scenario id -> what it has in common with others (`envs.pack.Pack.shares`)."""
    seconds: float = 0.0
    """Wall-clock time."""
    acoustics: str = "clean"
    """How it sounded where a scenario did not say."""
    activity: DetectorConfig = ENERGY
    """Who was taken to speak when."""
    examples: list[Example] = field(default_factory=list)
    kept: dict[Key, Episode] = field(default_factory=dict)
    """Conversations that were asked for; not saved with the figures."""

    @property
    def episodes(self) -> int:
        """How many conversations."""
        return sum(len(rows) for rows in self.scenarios.values())

    @property
    def units(self) -> dict[str, list[Measurements]]:
        """The contributions of what is one case: scenarios that share a text or a seed (`rewards.bootstrap.units`)."""
        return units(self.scenarios, self.shares)

    def figures(self) -> dict[str, float]:
        """Every figure, pooled over the conversations; NaN where there was no case."""
        return aggregate([one for rows in self.scenarios.values() for one in rows])

    def save(self, path: Path) -> None:
        """Write everything but the kept conversations."""
        fields = {name: value for name, value in vars(self).items() if name not in ("kept", "examples")}
        examples = [{"key": list(e.key), "folder": e.folder, "title": e.title} for e in self.examples]
        fields["activity"] = asdict(self.activity)
        write_json({"version": VERSION, **fields, "examples": examples}, path)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote; raises `UptakeError` for a file that is missing or malformed."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.pop("version") != VERSION:
                raise UptakeError(f"{path}: written by another version; delete it to measure again")
            record["examples"] = [
                Example((str(e["key"][0]), int(e["key"][1])), e["folder"], e["title"]) for e in record["examples"]
            ]
            record["activity"] = DetectorConfig(**record.get("activity", {}))
            return cls(**record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UptakeError):
                raise
            raise UptakeError(f"{path}: no evaluation ({error}); delete it to measure again") from error


def evaluate(
    system: DuplexPolicy | Scripted,
    pack: Pack,
    split: str = "test",
    *,
    name: str,
    variants: int = 4,
    seed: int = 1234,
    frames: int = 150,
    batch: int = 32,
    acoustics: str = "clean",
    activity: DetectorConfig = ENERGY,
    keep: Sequence[Example] = (),
    transcribe: Callable[[Episode], Sequence[Word]] | None = None,
    watch: Callable[[Key, Episode, Sequence[Word] | None], None] = lambda key, episode, words: None,
    on_done: Callable[[int], None] = lambda conversations: None,
    together: bool = False,
) -> Evaluation:
    """Play every scenario of a split `variants` times and measure each conversation.

    A conversation with sounds that are not for stopping is played once more without them: its twin, by which it is
    known whether the agent would have stopped there anyway (`rewards.measures.UNHEARD`).

    Args:
        system: a policy, or a scripted agent.
        seed: of the users and of the policy's sampling.
        frames: length of every conversation.
        batch: conversations side by side; changes the speed and no scripted agent's figure.
        acoustics: how scenarios sound that say nothing about it: a preset's name or a YAML file.
        activity: who is taken to speak when.
        keep: conversations whose record is kept in `kept`.
        transcribe: gives the words to judge in place of the agent's own text, from its sound (`align.hearing`).
        watch: called with every conversation and what `transcribe` gave for it.
        on_done: called with the number of conversations that were just finished.
        together: every rank of the run calls this, plays its share, and returns what all have found.

    Raises:
        UptakeError: the split is empty, or the detector cannot hear the system.
    """
    check_hears(activity, system, name)
    scenarios = pack.scenarios(split)
    if not scenarios:
        raise UptakeError(f"pack {pack.name!r} has no scenario in split {split!r}")

    def run(world: Pack, keys: Sequence[Key]) -> list[Episode]:
        return play(
            system, world, keys, split=split, seed=seed, frames=frames, acoustics=acoustics, transcribe=transcribe
        )

    muted = without_sounds(pack)
    started = time.perf_counter()
    wanted = {example.key for example in keep}
    jobs = [(scenario.id, variant) for scenario in scenarios for variant in range(variants)]
    found: dict[Key, Measurements] = {}
    kept: dict[Key, Episode] = {}
    if isinstance(system, Live):
        batch = min(batch, system.sessions)
    parts = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    # The parts are those that one rank would play, so that the number of ranks changes no figure.
    for number, part in enumerate(parts):
        if number % world == rank:
            played = run(pack, part)
            add_twins(played, part, pack, lambda keys: run(muted, keys), activity, transcribe)
            for key, episode in zip(part, played, strict=True):
                words = transcribe(episode) if transcribe else None
                found[key] = measure(episode, words, activity)
                watch(key, episode, words)
                if key in wanted:
                    kept[key] = episode
        on_done(len(part))
    if together:
        ranks.watch().meet(f"measured {name}")  # a part may take longer than ranks may wait for each other
        for theirs, held in ranks.watch().collect((found, kept)):
            found |= theirs
            kept |= held
    measured = {scenario.id: [found[scenario.id, variant] for variant in range(variants)] for scenario in scenarios}
    return Evaluation(
        name=name, split=split, variants=variants, frames=frames, seed=seed, pack=pack.name, pack_hash=pack.hash,
        scenarios=measured, shares={scenario.id: list(pack.shares(scenario)) for scenario in scenarios},
        seconds=time.perf_counter() - started, acoustics=acoustics, activity=activity, examples=list(keep), kept=kept,
    )  # fmt: skip


def check_hears(activity: DetectorConfig, system: DuplexPolicy | Scripted, name: str) -> None:
    """Raise `UptakeError` for a detector that cannot work, or that hears codes where a scripted agent has none."""
    activity.check()
    if activity.detector == "codec" and callable(system):
        raise UptakeError(
            f"activity.detector = codec hears the codes that a policy samples, and the scripted agent {name} samples "
            "none; leave it out, or take energy, silero or text"
        )


def play(
    system: DuplexPolicy | Scripted,
    pack: Pack,
    keys: Sequence[Key],
    *,
    split: str,
    seed: int,
    frames: int,
    acoustics: str = "clean",
    transcribe: Callable[[Episode], Sequence[Word]] | None = None,
) -> list[Episode]:
    """Play conversations side by side and return their records, in the order of `keys`.

    A user who reads what the agent says is told the agent's own text, or what `transcribe` makes of its sound.
    """
    env = DuplexVectorEnv(pack, len(keys), split=split, frames=frames, acoustics=acoustics)
    scenarios, variants = [scenario for scenario, _ in keys], [variant for _, variant in keys]
    words = (lambda row: transcribe(env.episode(row))) if transcribe else None
    if callable(system):
        options = {"scenario": scenarios, "variant": variants}
        agent = system(env)
        if not isinstance(agent, LiveAgent):
            return agents.converse(env, agent, seed, options, words)
        try:
            episodes = agents.converse(env, agent, seed, options, words)
            for row, episode in enumerate(episodes):
                episode.meta["latency_ledger"] = agent.latency_ledger(row)
            return episodes
        finally:
            agent.close()
    seeds = [policy_seed(seed, *key) for key in keys]
    played = rollout.collect(system, env, scenarios, variants, 1, seeds, frames, env_seed=seed, words=words)
    for episode in played.episodes:
        # The policy went on to the last frame; the conversation may have ended before.
        episode.transcript = tuple(word for word in episode.transcript if word.onset < episode.samples)
    return played.episodes


def policy_seed(seed: int, scenario: str, variant: int) -> int:
    """The policy's seed for a conversation: the same whatever is played beside it."""
    words = np.random.SeedSequence([seed, zlib.crc32(scenario.encode()), variant]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def examples(scenarios: Sequence[Scenario], count: int) -> list[Example]:
    """Which conversations a report shows: the first scenario of each axis, then the second, before anything is known.

    Only variant 0. The choice depends on the scenarios' ids alone, so no result can have a say in it.
    """
    axes = by_axis(scenarios)
    known = {scenario.id: scenario for scenario in scenarios}
    order = [*AXIS_ORDER, *sorted(set(axes) - set(AXIS_ORDER))]
    queue = [axes[axis][turn] for turn in range(len(known)) for axis in order if turn < len(axes.get(axis, ()))]
    return [Example((name, 0), _folder(name), _title(known[name])) for name in queue[:count]]


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _title(scenario: Scenario) -> str:
    """What a scenario is about, in words: its tags that are event types, else its items."""
    text = ", then ".join(EVENT_TYPES[code] for code in scenario.about)
    return text[:1].upper() + text[1:]


def _folder(scenario: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", scenario).strip("-.") or "conversation"

"""Measure a policy or a scripted agent on a split.

    before = evaluate(policy, pack, "test", name="before")
    ...
    result = compare(before, after, [silent, oracle], run={"name": "mine"})      # align.comparison

Conversation (scenario, variant) sounds the same in every evaluation with the same seed, and the policy samples from
the same stream: only the weights differ. What is measured is said in `rewards.measures`.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from align import ranks, rollout
from align.codecs.base import place
from align.curriculum import by_axis
from align.partner import PolicyPartner
from align.policies.base import DuplexPolicy
from align.policies.cascade.config import KIND as CASCADE_KIND
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import CascadePolicy
from align.policies.chunk.config import KIND as CHUNK_KIND
from align.policies.chunk.policy import ChunkPolicy
from align.policies.live.agent import Live, LiveAgent
from align.policies.moshi.checkpoint import load_shape as load_moshi_shape
from align.policies.moshi.checkpoint import saved_dtype
from align.policies.moshi.layouts.kyutai import read_config
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.prompt import PromptConfig, make_prompt
from align.unheard import add_twins, without_sounds
from envs import agents
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import EVENT_TYPES, Word
from envs.files import whole
from envs.pack import Pack
from envs.scenario import Scenario
from envs.users.partner import set_loader
from rewards.aggregate import aggregate
from rewards.bootstrap import units
from rewards.detector import ENERGY, DetectorConfig
from rewards.measures import measure

VERSION = 1
AXIS_ORDER = ("pause", "turn", "backchannel", "interruption", "continue")
Key = tuple[str, int]
"""(scenario id, variant): one conversation."""
Measurements = dict[str, tuple[float, ...]]

Scripted = Callable[[DuplexVectorEnv], agents.Agent]
"""Makes a scripted agent for an environment."""


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
    for start in range(0, len(parts), world):
        for part in parts[start + rank : start + rank + 1]:
            played = run(pack, part)
            add_twins(played, part, pack, lambda keys: run(muted, keys), activity, transcribe)
            for key, episode in zip(part, played, strict=True):
                words = transcribe(episode) if transcribe else None
                found[key] = measure(episode, words, activity)
                watch(key, episode, words)
                if key in wanted:
                    kept[key] = episode
        on_done(sum(len(part) for part in parts[start : start + world]))
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


BASELINES: Mapping[str, Scripted] = {
    "silent": lambda env: agents.Silent(env.num_envs, env.pack),
    "always_talking": lambda env: agents.AlwaysTalking(env.num_envs, env.pack),
    "always_backchannel": lambda env: agents.AlwaysBackchannel(env.num_envs, env.pack),
    "metronome": lambda env: agents.Metronome(env.num_envs, env.pack),
    "vad_200": lambda env: agents.EnergyVad(env.num_envs, env.pack, ms=200),
    "vad_700": lambda env: agents.EnergyVad(env.num_envs, env.pack, ms=700),
    "oracle": lambda env: agents.Oracle(env.num_envs, env.pack, env),
}
"""Scripted agents by the name that a configuration gives them."""
LIVE = "live:"
"""Begins the address of a server that is talked to in real time."""
REPLAY = "replay:"
"""Begins the name of a recording that is played in every conversation."""
CASCADE = "cascade"
"""The cascade as built: `align.policies.cascade`."""


def find_scripted(name: str) -> Scripted | None:
    """What is no policy, by name: one of `BASELINES`, `replay:PLACE` (`envs.agents.Recorded.load`), or `live:ws://...`
    (`align.policies.live.agent`); None for any other name.

    Raises:
        UptakeError: no such recording, or an address that nothing can be connected to.
    """
    if name.startswith(LIVE):
        return Live(name.removeprefix(LIVE))
    if name.startswith(REPLAY):
        recorded = agents.Recorded.load(name.removeprefix(REPLAY))
        return lambda env: agents.Replay(env.num_envs, recorded)
    return BASELINES.get(name)


def find_folder(name: str) -> Path:
    """The checkpoint folder that a name or path means.

    Args:
        name: `pocket`, which ships with the package; a checkpoint folder; or a run folder, for the policy it trained.

    Raises:
        UptakeError: there is no such folder.
    """
    folder = Path(name)
    if name == "pocket" and not folder.is_dir():
        folder = Path(str(resources.files("align") / "policies" / "pocket"))
    elif (folder / "policy").is_dir():
        folder = folder / "policy"
    if not folder.is_dir():
        raise UptakeError(f"no checkpoint '{name}': not a folder; give `pocket`, a checkpoint folder or a run folder")
    return folder


LOADERS: Mapping[str, Callable[[Path], Any]] = {CASCADE_KIND: CascadePolicy.load, CHUNK_KIND: ChunkPolicy.load}
"""What reads a checkpoint folder, by `model_type` in its config.json; any other folder is a Moshi-class one."""


def is_cascade_file(name: str) -> bool:
    """Whether a policy's name is the YAML file of a cascade."""
    return Path(name).suffix in (".yaml", ".yml") and not Path(name).is_dir()


def load_policy(
    name: str, prompt: PromptConfig | None = None, context: int = 0, dtype: torch.dtype | None = None
) -> DuplexPolicy:
    """The policy that a name or path means, its codec with it on this rank's GPU if there is one: `cascade`, the YAML
    file of one (`align.policies.cascade.config`), or see `find_folder`.

    Args:
        prompt: what its conversations begin with.
        context: frames that a Moshi-class policy looks back; 0: as many as its checkpoint says.
        dtype: of its weights; None: float32 on a CPU, on a GPU that of the checkpoint (`saved_dtype`).

    Raises:
        UptakeError: no such checkpoint, or one that is incomplete or damaged; a prompt or context that does not fit it.
    """
    policy: Any  # each class says more of its model than the contract does
    if name == CASCADE and not Path(name).is_dir():
        policy = CascadePolicy(Pack.load("core"))
    elif is_cascade_file(name):
        policy = CascadePolicy.load(name)
    else:
        folder = find_folder(name)
        load = LOADERS.get(str(read_config(folder).get("model_type")))
        policy = load(folder) if load is not None else MoshiPolicy.load(folder, context=context)
    if context and not isinstance(policy, MoshiPolicy):
        raise UptakeError(f"'{name}': the context of a {type(policy).__name__} cannot be set; leave it out")
    device = _own_gpu()
    if dtype is None:
        published = device is not None and isinstance(policy, MoshiPolicy)
        dtype = saved_dtype(find_folder(name)) if published else torch.float32
    policy.model.to(dtype)  # first: the card need not hold it in float32
    if device is not None:
        policy.model.to(device)
        if hasattr(policy, "codec"):
            place(policy.codec, device)
    if prompt is not None and prompt != PromptConfig():
        if not isinstance(policy, MoshiPolicy):
            raise UptakeError(f"'{name}': a {type(policy).__name__} takes no prompt; leave it out")
        policy = policy.prompted(make_prompt(policy, prompt))
    return policy


def load_shape(name: str) -> tuple[nn.Module, int]:
    """The model of a policy and its `spec.hidden`, to be counted: one of the Moshi class without its weights.

    Args:
        name: as of `load_policy`.

    Raises:
        UptakeError: no such checkpoint, or its shape cannot be read.
    """
    cascade = is_cascade_file(name) or (name == CASCADE and not Path(name).is_dir())
    folder = None if cascade else find_folder(name)
    kind = None if folder is None else read_config(folder).get("model_type")
    if folder is None or kind == CASCADE_KIND:
        return TurnHead(), 0
    if kind == CHUNK_KIND:
        model: Any = ChunkPolicy.load(folder).model
    else:
        model = load_moshi_shape(folder)
    return model, model.config.dim


def _own_gpu() -> torch.device | None:
    """This rank's, if there is one."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None


def load_partner(name: str, batch: int) -> PolicyPartner:
    """A policy as the user of `policy` scenarios, frozen, with weights of its own; see `load_policy`."""
    policy = load_policy(name)
    policy.model.requires_grad_(False)
    return PolicyPartner(policy, batch)


set_loader(load_partner)


def _title(scenario: Scenario) -> str:
    """What a scenario is about, in words: its tags that are event types, else its items."""
    text = ", then ".join(EVENT_TYPES[code] for code in scenario.about)
    return text[:1].upper() + text[1:]


def _folder(scenario: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", scenario).strip("-.") or "conversation"

"""What a name means: a policy, a scripted agent, a recording, or a server.

policy = load_policy("pocket")                  # or a checkpoint, a run, `cascade`, the YAML file of one
scripted = find_scripted("vad_700")             # or "replay:call.wav", "live:ws://..."
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.codecs.base import place
from align.partner import PolicyPartner
from align.policies.base import DuplexPolicy
from align.policies.cascade.config import KIND as CASCADE_KIND
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import CascadePolicy
from align.policies.chunk.config import KIND as CHUNK_KIND
from align.policies.chunk.policy import ChunkPolicy
from align.policies.live.agent import Live
from align.policies.moshi.checkpoint import load_shape as load_moshi_shape
from align.policies.moshi.checkpoint import saved_dtype
from align.policies.moshi.layouts.kyutai import read_config
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.prompt import PromptConfig, make_prompt
from envs import agents
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.pack import Pack
from envs.users.partner import set_loader

Scripted = Callable[[DuplexVectorEnv], agents.Agent]
"""Makes a scripted agent for an environment."""
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
POCKET = "pocket"
"""The checkpoint that ships with the package."""
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
    if name == POCKET and not folder.is_dir():
        folder = Path(str(resources.files("align") / "policies" / "pocket"))
    elif (folder / "policy").is_dir():
        folder = folder / "policy"
    elif (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise UptakeError(f"{name}: a run that has not trained to its end; wait for it, or go on with --resume")
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

"""What a run will take: its memory from the shapes, its time from a few frames played and learned from here.

The pace is that of the machine on which this is asked: ask where the run will be, with the same ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from align import curriculum, rollout
from align.trainers.run_config import RunConfig
from envs.clock import CLOCK
from envs.codec import state_bytes
from envs.event import Word

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy, DuplexSpec
    from align.trainers.sft import Teaching
    from align.trainers.sft_config import SftConfig

PROBE_FRAMES = 25
"""Two seconds of conversation: long enough for a pace, short enough to wait for."""
ADAM = 8  # bytes a trained weight: two moments in fp32
MASTER = 4  # and under ZeRO the weight itself once more, in fp32


@dataclass(frozen=True)
class Pace:
    """Seconds and bytes, measured on `rows` conversations of `PROBE_FRAMES` frames."""

    frame: float
    """Seconds to play one frame of all rows."""
    score: float
    """Seconds to score one frame of one conversation without gradient."""
    update: float
    """Seconds to score it with gradient, and back."""
    activations: int
    """Bytes kept for that way back, a frame of a conversation."""


def loading(model: nn.Module, config: RunConfig | SftConfig) -> str:
    """What a rank holds before it shares anything: the whole checkpoint, which is read in float32, then its own copy.

    Args:
        model: as it was loaded.
    """
    every = sum(p.numel() for p in model.parameters())
    read, kept = every * 4 / 2**30, every * (2 if config.bf16 else 4) / 2**30
    return f"loading a rank, before that: {read:.2f} GiB of the host's memory, then {kept:.2f} GiB on its device"


def memory(model: nn.Module, spec: DuplexSpec, config: RunConfig, world: int, activations: int) -> dict[str, int]:
    """Bytes of one rank while it updates, by what they are for. The last conversations' memory is kept meanwhile.

    Args:
        model: after `learner.choose_trained`; may lie on the meta device.
        activations: bytes that a frame of a conversation keeps for the way back (`Pace.activations`).
    """
    size = 2 if config.bf16 else 4
    out = _stored(model, config, world)
    if config.kl_weight and not config.use_peft:
        out["reference"] = sum(p.numel() for p in model.parameters()) * size
    frames = min(spec.context, spec.lived + config.context_frames + config.frames)
    out["conversations"] = spec.cached * size * frames * config.conversations // world
    out["activations"] = activations * config.frames * config.per_device_train_batch_size
    return out


def _stored(model: nn.Module, config: RunConfig | SftConfig, world: int) -> dict[str, int]:
    """Bytes of a rank that do not depend on what is learned from."""
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = 2 if config.bf16 else 4
    shards = {stage: world if config.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    return {
        "weights": every * size // shards[3],
        "gradients": trained * size // shards[2],
        "optimiser": trained * (ADAM + (MASTER if config.zero_stage else 0)) // shards[1],
    }


def codec_memory(policy: DuplexPolicy, conversations: int) -> dict[str, int]:
    """Bytes of a codec that is on the policy's device: its weights, and what it remembers of a rank's conversations."""
    codec: Any = getattr(policy, "codec", None)
    if not isinstance(getattr(codec, "model", None), nn.Module):
        return {}
    weights = sum(tensor.nbytes for tensor in (*codec.model.parameters(), *codec.model.buffers()))
    state = codec.init_state(1)
    codec.decode(state, codec.encode(state, np.zeros((1, codec.frame), np.float32)))
    return {"codec": weights + conversations * state_bytes(state)}


def measure(policy: DuplexPolicy, env: Any, scenarios: Sequence[str], config: RunConfig) -> Pace:
    """Play and learn from `PROBE_FRAMES` frames of the run's own conversations. The policy's gradients are lost.

    Args:
        policy: after `learner.choose_trained`.
        env: a `DuplexVectorEnv` with the rows of one rank.
        scenarios: ids, of which it plays as many as it has rows, from the beginning.
    """
    rows, frames = env.num_envs, min(PROBE_FRAMES, config.frames)
    chosen = [scenarios[row % len(scenarios)] for row in range(rows)]
    rollout.collect(policy, env, chosen, [0] * rows, 1, list(range(rows)), 2)  # what happens once, happens now
    played = rollout.collect(policy, env, chosen, [0] * rows, 1, list(range(rows)), frames)
    size = min(rows, config.per_device_train_batch_size)
    part = played.trajectory.rows(slice(0, size))
    scored = size * played.trajectory.valid.shape[1]
    with torch.no_grad():
        policy.score(part, full=config.full)
        began = time.perf_counter()
        policy.score(part, full=config.full)
        score = time.perf_counter() - began
    began = time.perf_counter()
    kept = _Kept(policy.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        scores = policy.score(part, full=config.full)
    (scores.logp.sum() + scores.entropy.sum()).backward()
    update = time.perf_counter() - began
    policy.model.zero_grad()
    return Pace(played.seconds / frames, score / scored, update / scored, kept.bytes // scored)


def seconds(pace: Pace, config: RunConfig, rows: int) -> dict[str, float]:
    """One iteration of a rank with `rows` conversations, by phase; every conversation counted at its full length."""
    learned = rows * config.frames
    scoring = pace.score * learned
    reference = scoring * config.passes if config.kl_weight else 0.0
    return {
        "rollout": pace.frame * config.frames,
        "scoring": scoring,
        "update": pace.update * learned * config.passes + reference,
    }


def lines(needs: Mapping[str, int], phases: Mapping[str, float], iterations: int, measuring: float) -> list[str]:
    """The plan in words: memory, an iteration, the run.

    Args:
        measuring: seconds of the measurements before and after together.
    """
    iteration = sum(phases.values())
    whole = iterations * iteration + measuring
    return [
        "memory of a rank, without libraries: " + _sum(needs, lambda b: f"{b / 2**30:.2f}") + " GiB",
        "an iteration at the pace of this machine: " + _sum(phases, lambda s: f"{s:.1f}") + " s",
        f"the run: {iterations} iterations and {measuring:.0f} s of measuring, about {whole / 60:.0f} min",
    ]


def _sum(parts: Mapping[str, float], written: Any) -> str:
    return f"{' + '.join(f'{name} {written(value)}' for name, value in parts.items())} = {written(sum(parts.values()))}"


def measure_lesson(teaching: Teaching, config: SftConfig) -> Pace:
    """Learn once from `PROBE_FRAMES` frames of made-up conversation. The policy's gradients are lost.

    Args:
        teaching: after `sft.choose`.
    """
    frames, codec = min(PROBE_FRAMES, config.frames), teaching.codec
    rows = min(config.per_device_train_batch_size, config.train_batch_size)
    user, agent = curriculum.generator(0, "plan").integers(0, codec.card, (2, codec.codebooks, frames + 5))
    words = [Word("well", CLOCK.sample_of(at), CLOCK.sample_of(at + 3)) for at in range(0, frames, 4)]
    window = teaching.window(teaching.columns(words, user, agent), 0, frames, 0)
    codes = torch.from_numpy(window).long().expand(rows, -1, -1).to(teaching.model.device)
    delays = torch.zeros(rows, dtype=torch.long, device=codes.device)
    teaching(codes, delays)  # what happens once, happens now
    began, kept = time.perf_counter(), _Kept(teaching.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        out = teaching(codes, delays)
    torch.stack([out[f"sum/{term}"] for term, weight in teaching.weights.items() if weight]).sum().backward()
    update = time.perf_counter() - began
    teaching.zero_grad()
    return Pace(0.0, 0.0, update / (rows * frames), kept.bytes // (rows * frames))


def lesson_lines(model: nn.Module, pace: Pace, config: SftConfig, world: int) -> list[str]:
    """The plan of a warm start in words: memory, an iteration, the run; measuring and reading are not counted."""
    needs = _stored(model, config, world)
    needs["activations"] = pace.activations * config.frames * config.per_device_train_batch_size
    iteration = pace.update * config.frames * config.train_batch_size / world
    return [
        "memory of a rank, without libraries: " + _sum(needs, lambda b: f"{b / 2**30:.2f}") + " GiB",
        f"an iteration at the pace of this machine: {iteration:.1f} s; {config.iterations} of them: about "
        f"{config.iterations * iteration / 60:.0f} min",
    ]


class _Kept:
    """Counts the memory that autograd keeps, each block once and the weights not at all."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.bytes = 0

    def see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

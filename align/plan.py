"""What a run will take: its memory from the shapes, its time from a few frames played and learned from here.

The pace is that of the machine on which this is asked: ask where the run will be, with the same ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from align import curriculum, rollout
from align.trainers import learner, sft
from align.trainers.run_config import RunConfig
from align.trainers.sft_config import SftConfig
from envs.clock import CLOCK
from envs.codec import state_bytes
from envs.event import Word

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy, DuplexSpec, Trajectory
    from align.trainers.sft import Teaching

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
    lived_score: float = 0.0
    lived_update: float = 0.0
    lived_activations: int = 0
    """The same three of a frame that conversations begin with, a prompt or a context: gone through, not learned."""


def loading(model: nn.Module, config: RunConfig | SftConfig) -> str:
    """What a rank holds before it shares anything: the whole checkpoint, which is read in float32, then its own copy.

    Args:
        model: as it was loaded.
    """
    every = sum(p.numel() for p in model.parameters())
    read, kept = every * 4 / 2**30, every * (2 if config.bf16 else 4) / 2**30
    return f"loading a rank, before that: {read:.2f} GiB of the host's memory, then {kept:.2f} GiB on its device"


def memory(
    model: nn.Module, spec: DuplexSpec, config: RunConfig, world: int, activations: int, lived: int = 0
) -> dict[str, int]:
    """Bytes of one rank while it updates, by what they are for. The last conversations' memory is kept meanwhile.

    Args:
        model: after `learner.choose_trained`; may lie on the meta device.
        activations: bytes that a frame of a conversation keeps for the way back (`Pace.activations`).
        lived: those of a frame before it (`Pace.lived_activations`).
    """
    size = 2 if config.bf16 else 4
    out = _stored(model, config, world)
    if config.kl_weight and not config.use_peft:
        out["reference"] = sum(p.numel() for p in model.parameters()) * size
    before = spec.lived + config.context_frames
    frames = min(spec.context, before + config.frames)
    out["conversations"] = spec.cached * size * frames * config.conversations // world
    out["activations"] = (activations * config.frames + lived * before) * config.per_device_train_batch_size
    return out


def peak(needs: Mapping[str, int], model: nn.Module, config: RunConfig) -> str:
    """The most that a rank holds, in words: while it updates (`memory`), or with whole weights while it converses."""
    conversing = {name: size for name, size in needs.items() if name not in ("gradients", "activations")}
    if config.zero_stage == 3:
        conversing["whole weights"] = sum(p.numel() for p in model.parameters()) * (2 if config.bf16 else 4)
    if sum(conversing.values()) > sum(needs.values()):
        return f"and while it converses: {_sum(conversing, _gib)} GiB, its most"
    return f"which is its most: while it converses {sum(conversing.values()) / 2**30:.2f} GiB"


def written(model: nn.Module, hidden: int, config: RunConfig | SftConfig) -> tuple[int, int]:
    """What `disk` asks of a policy: its numbers, and those of them that are trained.

    Args:
        model: as it was loaded, or without its weights (`align.loading.load_shape`).
        hidden: its `spec.hidden`.
    """
    if isinstance(config, SftConfig):
        trained = sft.trained_parameters(model, config)
    else:
        trained = learner.trained_parameters(model, config, hidden)
    return sum(p.numel() for p in model.parameters()), trained


def checkpoint(trained: int, config: RunConfig | SftConfig) -> int:
    """Bytes of a checkpoint on the disk: the weights that are trained, their fp32 masters and two moments."""
    return trained * ((2 if config.bf16 else 4) + MASTER + ADAM)


def disk(every: int, trained: int, config: RunConfig | SftConfig, kept: int = 0) -> int:
    """Bytes that a run writes: checkpoints, the one that is written before the oldest goes, and the policy in fp32.

    Args:
        every, trained: as of `written`.
        kept: checkpoints that are there already.
    """
    return max(config.save_total_limit + 1 - kept, 0) * checkpoint(trained, config) + 4 * every


def disk_line(every: int, trained: int, config: RunConfig | SftConfig) -> str:
    """The same in words; what conversations and the report take is small beside it."""
    return (
        f"on the disk: {_gib(disk(every, trained, config))} GiB: {config.save_total_limit + 1} checkpoints of "
        f"{_gib(checkpoint(trained, config))}, one of them while it is written, and the policy"
    )


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
    part = replace(played.trajectory.rows(slice(0, size)), lived=None, lived_frames=None)
    frame = played.seconds / (policy.spec.lived + frames)
    alone = after = _learn(policy, part, config)
    if policy.spec.lived + config.context_frames:
        # Each conversation after one of its own length: what that adds is what a frame costs that is only gone through.
        before = torch.full((size,), part.valid.shape[1], device=part.codes.device)
        after = _learn(policy, replace(part, lived=part.codes, lived_frames=before), config)
    lived = [max(both - one, 0.0) for one, both in zip(alone, after, strict=True)]
    return Pace(frame, alone[0], alone[1], int(alone[2]), lived[0], lived[1], int(lived[2]))


def _learn(policy: DuplexPolicy, part: Trajectory, config: RunConfig) -> tuple[float, float, float]:
    """Of a frame of some conversations: seconds to score it without gradient, with it and back, bytes kept for that."""
    codebooks = learner.codebooks_learned(policy.spec, config)
    options: dict[str, Any] = {"full": config.full, **({"codebooks": codebooks} if codebooks else {})}
    with torch.no_grad():
        policy.score(part, **options)
        began = time.perf_counter()
        policy.score(part, **options)
        score = time.perf_counter() - began
    began = time.perf_counter()
    kept = _Kept(policy.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        scores = policy.score(part, **options)
    loss = scores.logp.sum() + scores.entropy.sum()
    (loss if scores.audio_logp is None else loss + scores.audio_logp.sum()).backward()
    update = time.perf_counter() - began
    policy.model.zero_grad()
    return score / part.valid.numel(), update / part.valid.numel(), kept.bytes / part.valid.numel()


def seconds(pace: Pace, config: RunConfig, rows: int, lived: int = 0) -> dict[str, float]:
    """One iteration of a rank with `rows` conversations, by phase; every conversation counted at its full length.

    Args:
        lived: frames of the policy's prompt. The longest context of an iteration grows with the run: half of it here.
    """
    before = lived + config.context_frames / 2
    scoring = rows * (pace.score * config.frames + pace.lived_score * before)
    updating = rows * (pace.update * config.frames + pace.lived_update * before)
    reference = scoring * config.passes if config.kl_weight else 0.0
    return {
        "rollout": pace.frame * (before + config.frames),
        "scoring": scoring,
        "update": updating * config.passes + reference,
    }


def lines(needs: Mapping[str, int], phases: Mapping[str, float], iterations: int, measuring: float) -> list[str]:
    """The plan in words: memory, an iteration, the run.

    Args:
        measuring: seconds of the measurements before and after together.
    """
    iteration = sum(phases.values())
    whole = iterations * iteration + measuring
    return [
        "memory of a rank while it updates, without libraries: " + _sum(needs, _gib) + " GiB",
        "an iteration at the pace of this machine: " + _sum(phases, lambda s: f"{s:.1f}") + " s",
        f"the run: {iterations} iterations and {measuring:.0f} s of measuring, about {whole / 60:.0f} min",
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


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
        "memory of a rank, without libraries: " + _sum(needs, _gib) + " GiB",
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

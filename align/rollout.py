"""Let a policy live in the environments, frame by frame, and keep what learning needs.

Policy and environment share one clock: the policy is given microphone frame k and its answer is action k, which the
environment plays during frame k + 1. The sound of a token leaves the policy `spec.emission_lag` frames after it was
sampled, so a token of step k is heard in frame k + `heard_after(spec)`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from rewards.detector import CODE_ACTIVITY

if TYPE_CHECKING:
    from collections.abc import Callable

    from align.policies.base import DuplexPolicy, DuplexSpec, Trajectory


@dataclass(frozen=True)
class Rollout:
    """B = groups x group size conversations; rows g * G to (g + 1) * G - 1 are group g.

    Where a conversation ends before the longest one does, `trajectory.valid` is False from there on.
    """

    trajectory: Trajectory
    episodes: list[Episode]
    """One per row."""
    groups: list[int]
    """Group of each row."""
    seconds: float
    """Wall-clock time."""

    @property
    def frames_per_second(self) -> float:
        """Conversation frames per second of wall-clock time, all rows together."""
        frames = sum(episode.samples // episode.clock.frame - 1 for episode in self.episodes)  # nothing is done in 0
        return frames / max(self.seconds, 1e-9)


def collect(
    policy: DuplexPolicy,
    env: Any,
    scenarios: Sequence[str],
    variants: Sequence[int],
    group_size: int,
    seeds: Sequence[int],
    frames: int,
    *,
    env_seed: int = 0,
    words: Callable[[int], Sequence[Word]] | None = None,
    prompts: Sequence[Any] | None = None,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> Rollout:
    """Play one group of conversations per scenario.

    The rows of a group meet the same user: same scenario, variant and environment seed. Only the policy's sampling
    differs between them.

    Args:
        policy: sampled without gradient.
        env: a `DuplexVectorEnv` with len(scenarios) * group_size rows and at least `frames` frames.
        scenarios, variants: one per group.
        seeds: the policy's, one per row.
        frames: the longest that a conversation may be.
        env_seed: the run's seed, from which the environment derives everything about the user.
        words: what a user who reads is told that the agent said so far in a row, in place of its own text.
        prompts: what each row begins with (`DuplexPolicy.reset`); left out: the policy's own.
        on_frame: called after each frame with its number; may raise to abandon the rollout.

    Raises:
        ValueError: the numbers of scenarios, variants, seeds and rows do not fit together.
    """
    rows = len(scenarios) * group_size
    if len(variants) != len(scenarios) or len(seeds) != rows or env.num_envs != rows:
        raise ValueError(
            f"{len(scenarios)} scenarios x {group_size} need as many variants, {rows} seeds and {rows} rows; "
            f"got {len(variants)} variants, {len(seeds)} seeds, {env.num_envs} rows"
        )
    started = time.perf_counter()
    world = getattr(env, "unwrapped", env)
    options = {
        "scenario": [scenario for scenario in scenarios for _ in range(group_size)],
        "variant": [variant for variant in variants for _ in range(group_size)],
    }
    observation, _ = env.reset(seed=env_seed, options=options)
    active = np.ones(rows, dtype=bool)
    pieces: list[list[str]] = []  # T lists of B
    with torch.inference_mode(), stepping_threads(policy):
        policy.reset(np.ones(rows, dtype=bool), list(seeds), prompts)
        spec, lag = policy.spec, heard_after(policy.spec)
        world.agent_words = words or (lambda row: transcript([p[row] for p in pieces], spec.frame, lag))
        for frame in range(frames):
            step = policy.step(observation["mic"], active)
            observation, _, terminated, truncated, _ = env.step(step.audio)
            pieces.append(list(step.text))
            on_frame(frame)
            # What a policy would say into a conversation that is over is neither recorded nor judged.
            active = active & ~(terminated | truncated)
            if not active.any():
                break
        trajectory = policy.trajectory()
    trajectory = trajectory.clone()  # tensors made in inference mode cannot be saved for a backward pass
    episodes = [
        env.episode(row, transcript=transcript([p[row] for p in pieces], spec.frame, lag)) for row in range(rows)
    ]
    # A policy may have `notes(row)`: more fields of the episode's meta.
    notes: Callable[[int], dict[str, Any]] = getattr(policy, "notes", lambda row: {})
    for row, (episode, seed) in enumerate(zip(episodes, seeds, strict=True)):
        episode.meta["text_stream"] = True  # no words then means that it said none
        episode.meta["policy_seed"] = int(seed)
        episode.meta |= notes(row)
    if silent := spec.streams[1].silent_ids if len(spec.streams) > 1 else None:
        spoken = ~np.isin(trajectory.codes[:, 1].cpu().numpy(), [-1, *silent])  # (B, T)
        for episode, row in zip(episodes, spoken, strict=True):
            signs = "0" * lag + "".join("1" if one else "0" for one in row)
            episode.meta[CODE_ACTIVITY] = signs[: episode.clock.frames_covering(episode.samples)]
    groups = [row // group_size for row in range(rows)]
    return Rollout(trajectory, episodes, groups, time.perf_counter() - started)


SMALL = 50_000_000
"""Parameters up to which a frame's matrices are too small to share between cores."""


@contextlib.contextmanager
def stepping_threads(policy: DuplexPolicy) -> Iterator[None]:
    """One thread while a small policy steps on a CPU: its cores would wait for each other more than they compute.

    Pocket, 80 rows, 2 cores that another process uses too: 9.5 s a rollout with one thread, 20 s with two.
    """
    threads = torch.get_num_threads()
    model = getattr(policy, "model", None)
    if model is not None and sum(p.numel() for p in model.parameters()) <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_context(spec: DuplexSpec, frames: int, what: str) -> None:
    """Raise UptakeError if a policy would forget the beginning of an episode of `frames`, which `what` sets.

    Such a policy can be streamed and scored, but it is judged by what it does about things that it cannot remember.
    """
    room = spec.context - spec.lived
    if frames > room:
        seconds = spec.frame / spec.sample_rate
        prompt = f", {spec.lived} of them for its prompt" if spec.lived else ""
        raise UptakeError(
            f"{what} = {frames}: the policy looks back {spec.context} frames ({spec.context * seconds:.1f} s){prompt}, "
            f"an episode has {frames} ({frames * seconds:.1f} s); set it to {max(room, 0)} or less, or give a "
            "checkpoint with a longer context"
        )


def heard_after(spec: DuplexSpec) -> int:
    """Frames from the step that samples a token to the frame of the conversation in which its sound is played."""
    return spec.emission_lag + 1


def transcript(pieces: Sequence[str], frame: int, lag: int) -> tuple[Word, ...]:
    """Join text pieces to words and time them by the frames in which they are heard.

    Args:
        pieces: one string a frame, often empty; a leading space begins a word.
        frame: samples a frame.
        lag: frames from a token to its sound (`heard_after`).

    Returns:
        Words with onset and offset in samples: from the first piece's frame to the end of the last piece's frame.
    """
    words: list[Word] = []
    begins = True
    for index, piece in enumerate(pieces):
        onset, offset = (index + lag) * frame, (index + lag + 1) * frame
        for position, part in enumerate(piece.split(" ")):
            begins = begins or position > 0
            if not part:
                continue
            if begins:
                words.append(Word(part, onset, offset))
            else:
                words[-1] = Word(words[-1].text + part, words[-1].onset, offset)
            begins = False
    return tuple(words)


def action_frames(window: tuple[int, int], frame: int, lag: int, frames: int) -> tuple[int, int]:
    """Frames [start, stop) whose actions are heard in a window of samples.

    Args:
        window: [onset, offset) in samples.
        frame: samples a frame.
        lag: frames from an action to its sound (`heard_after`).
        frames: length of the conversation.

    Returns:
        start <= stop, both in [0, frames]; empty for a window that no action of the conversation reaches.
    """
    start = window[0] // frame - lag
    stop = -(-window[1] // frame) - lag
    start = min(max(start, 0), frames)
    return start, min(max(stop, start), frames)

"""From recordings to batches for `align.trainers.sft`.

Each conversation goes through the policy's codec once, from its beginning to its end, as the policy would hear it. Its
columns are kept in the run folder (`data/`), under a name that says what they were made of: a run that goes on makes
none again. They are cut into examples of equal length. Which examples an iteration learns from, and with which delays,
follows from the seed and the iteration alone, whatever the number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from align import curriculum
from align.files import read_tensors, write_tensors
from align.ranks import watch
from envs.activity import levels
from envs.clock import CLOCK
from envs.codec import Codec
from envs.corpora.audio import Heard
from envs.corpora.dialogues import Dialogue, agent_words, blocks, find
from envs.corpora.recording import Refusal, Rejected
from envs.corpora.speech import ENERGY
from envs.errors import UptakeError
from envs.event import Word

if TYPE_CHECKING:
    from align.policies.chunk.teaching import ChunkTeaching
    from align.policies.moshi.teaching import MoshiTeaching
    from align.trainers.sft_config import DataConfig, SftConfig

LEAST_FRAMES = 25
"""A rest at the end of a recording that is shorter, 2 s, is no example."""
SAY_EVERY = 30.0
"""Seconds between two lines on how far the reading is."""
_BLOCK = 750  # frames that are read at a time: a minute


@dataclass(frozen=True)
class Examples:
    """Columns of conversations, and where examples begin in them."""

    columns: list[np.ndarray]
    """Of each conversation, (K, T) int32."""
    names: list[str]
    frames: int
    """Length of an example."""
    starts: list[tuple[int, int]]
    """(conversation, first column) of each example."""

    @classmethod
    def of(cls, columns: Sequence[np.ndarray], names: Sequence[str], frames: int) -> Examples:
        """Cut conversations into examples of `frames`; a last one may be shorter."""
        starts = [
            (n, start)
            for n, one in enumerate(columns)
            for start in range(0, one.shape[1], frames)
            if one.shape[1] - start >= LEAST_FRAMES or not start
        ]
        return cls(list(columns), list(names), frames, starts)

    @property
    def minutes(self) -> float:
        """Of conversation, all sides counted."""
        return sum(one.shape[1] for one in self.columns) * CLOCK.frame_seconds / 60

    def digest(self) -> str:
        """What a resumed run must have as well."""
        told = hashlib.sha256(str(self.frames).encode())
        for one in self.columns:
            told.update(str(one.shape).encode() + one.tobytes())
        return told.hexdigest()

    def drawn(self, iteration: int, size: int, seed: int) -> list[int]:
        """The examples of an iteration: each one comes once before any comes again."""
        out = []
        for place in range(iteration * size, (iteration + 1) * size):
            epoch, at = divmod(place, len(self.starts))
            out.append(_order(seed, epoch, len(self.starts))[at])
        return out

    def batch(
        self,
        teaching: MoshiTeaching | ChunkTeaching,
        chosen: Sequence[int],
        delays: Sequence[int],
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, K, frames) long and delays (B,) long of the examples `chosen`."""
        rows = []
        for example, delay in zip(chosen, delays, strict=True):
            which, start = self.starts[example]
            rows.append(teaching.window(self.columns[which], start, self.frames, delay))
        codes = torch.from_numpy(np.stack(rows).astype(np.int64))
        return codes.to(device), torch.tensor(list(delays), device=device)


@lru_cache(maxsize=2)  # an iteration asks for the same one many times, or for two
def _order(seed: int, epoch: int, size: int) -> list[int]:
    """The order of an epoch."""
    return curriculum.permutation(seed, "sft", size, epoch)


def delays(iteration: int, size: int, seed: int, longest: int) -> list[int]:
    """By how many frames the agent is late in each example of an iteration."""
    return [int(d) for d in curriculum.generator(seed, "delay", iteration).integers(0, longest + 1, size)]


def prepare(
    teaching: MoshiTeaching | ChunkTeaching,
    data: DataConfig,
    path: str,
    config: SftConfig,
    folder: Path,
    say: Callable[[str], None],
) -> Examples:
    """The examples in recordings; each rank makes its share of their columns, and all read them.

    Raises:
        UptakeError: a recording cannot be used and `data.skip_unusable` is false, or none can.
    """
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    root, found = find(Path(path), data.layout or None, data.agent)
    refused = {one.id: f"{one.reason}: {one.detail}" for one in found if isinstance(one, Refusal)}
    if refused and not data.skip_unusable:
        raise UptakeError(_refusal(refused))
    usable = [one for one in found if isinstance(one, Dialogue)]
    cache, identity = folder / "data", f"{type(teaching).__name__} {config.response_gap_s}"
    told = time.monotonic()
    for number, dialogue in enumerate(usable[rank::world]):
        doing = f"reading recording {number * world + rank + 1} of {len(usable)}"
        watch().doing(doing)
        if rank == 0 and time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"{path}: {doing}")
        try:
            columns(teaching, root, dialogue, cache, identity)
        except Rejected as fault:
            refused[dialogue.id] = f"{fault.reason}: {fault.detail}"
            if not data.skip_unusable:
                break
    refused = {name: why for one in watch().collect(refused) for name, why in one.items()}
    if refused and not data.skip_unusable:
        raise UptakeError(_refusal(refused))
    kept = [one for one in usable if one.id not in refused]
    made = [columns(teaching, root, one, cache, identity) for one in kept]
    whole = [(one.id, own) for one, own in zip(kept, made, strict=True) if own.shape[1]]
    if not whole:
        why = f"; {_refusal(refused)}" if refused else ""
        raise UptakeError(f"{path}: no recording that can be learned from{why}")
    examples = Examples.of([own for _, own in whole], [name for name, _ in whole], config.frames)
    if rank == 0:
        left_out = f"; {len(refused)} left out: {_refusal(refused)}" if refused else ""
        say(f"{path}: {len(whole)} conversations, {examples.minutes:.1f} minutes{left_out}")
    return examples


def _refusal(refused: dict[str, str]) -> str:
    """One line on recordings that cannot be used."""
    name, why = next(iter(refused.items()))
    others = f" (and {len(refused) - 1} more; data.skip_unusable=true leaves them out)" if len(refused) > 1 else ""
    return f"recording {name}: {why}{others}"


def columns(
    teaching: MoshiTeaching | ChunkTeaching, root: Path, dialogue: Dialogue, cache: Path, identity: str
) -> np.ndarray:
    """The columns (K, T) int32 of a conversation, out of the cache if they are there.

    Args:
        cache: the folder of files of columns.
        identity: of all else that they depend on: the policy, and how it is taught.

    Raises:
        Rejected: the audio cannot be used, or the words do not fit it.
    """
    path = cache / f"{_name(root, dialogue, identity)}.safetensors"
    if path.is_file():
        return read_tensors(path)["columns"].numpy()
    words, user, agent = encode(root, dialogue, teaching.codec)
    made = teaching.columns(words, user, agent)
    write_tensors(path, {"columns": torch.from_numpy(made)})
    return made


def encode(root: Path, dialogue: Dialogue, codec: Codec) -> tuple[list[Word], np.ndarray, np.ndarray]:
    """The agent's words in samples, and the codes (Q, T) of the user and of the agent.

    Raises:
        Rejected: as `columns`.
    """
    state = codec.init_state(2)
    codes: list[np.ndarray] = []
    power: list[np.ndarray] = []
    for block in blocks(root, dialogue, _BLOCK):
        power.append(levels(block, ENERGY.hop))
        for at in range(0, block.shape[1], codec.frame):
            codes.append(codec.encode(state, block[:, at : at + codec.frame]))  # (2, Q)
    loud = np.concatenate(power, axis=1)
    samples = len(codes) * codec.frame
    if loud.any() and np.array_equal(loud[0], loud[1]):
        raise Rejected("identical_channels", dialogue.recording.tracks[0].path)
    heard = Heard(loud if dialogue.agent else loud[::-1], samples, 0.0)
    both = np.stack(codes, axis=-1)  # (2, Q, T)
    return agent_words(dialogue, heard), both[0], both[1]


def _name(root: Path, dialogue: Dialogue, identity: str) -> str:
    status = [(root / track.path).stat() for track in dialogue.recording.tracks]
    files = [
        (track, stat.st_size, stat.st_mtime_ns) for track, stat in zip(dialogue.recording.tracks, status, strict=True)
    ]
    content = json.dumps([identity, dialogue.agent, files, dialogue.said])
    return hashlib.sha256(content.encode()).hexdigest()[:24]

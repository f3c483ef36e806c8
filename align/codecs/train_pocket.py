"""Learns the codewords of the pocket codec: residual k-means over frame descriptions.

python -m align.codecs.train_pocket PACK OUT.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np
import torch

from align.codecs.pocket import CODEBOOKS, DIM, FRAME, SUB, PocketCodec
from envs.pack import Pack


def describe(clips: Iterable[np.ndarray]) -> np.ndarray:
    """Descriptions of all frames of all clips: (N, SUB * DIM). Clips are (samples,) at 24 kHz."""
    blank = PocketCodec(np.zeros((CODEBOOKS, 1, SUB * DIM), np.float32), np.zeros(SUB * DIM, np.float32))
    rows = []
    for clip in clips:
        state = blank.init_state(1)
        padded = np.pad(clip, (0, -len(clip) % FRAME + FRAME)).astype(np.float32)
        rows += [blank.analyse(state, padded[None, i : i + FRAME]) for i in range(0, len(padded), FRAME)]
    return np.concatenate(rows)


def kmeans(points: torch.Tensor, count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm; an empty cell restarts at a random point. (N, D) -> (count, D)."""
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(steps):
        nearest = (points @ centres.T - 0.5 * centres.square().sum(-1)).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)
        empty = sizes == 0
        centres = sums / sizes.clamp(min=1)[:, None]
        centres[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return centres


def train(descriptions: np.ndarray, card: int = 512, steps: int = 25, seed: int = 0) -> PocketCodec:
    """Each codebook learns what the ones before left over."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(descriptions)
    mean = points.mean(0)
    rest = points - mean
    words = []
    for _ in range(CODEBOOKS):
        centres = kmeans(rest, card, steps, generator)
        nearest = (rest @ centres.T - 0.5 * centres.square().sum(-1)).argmax(-1)
        rest = rest - centres[nearest]
        words.append(centres)
    return PocketCodec(torch.stack(words).numpy(), mean.numpy())


def material(pack: Pack, clips: int, seed: int = 0) -> list[np.ndarray]:
    """What the codewords are learned from: user clips of the training split at several levels and phases of the frame,
    and the agent's clips as it will say them (from a frame boundary), several times over."""
    rng = np.random.default_rng(seed)
    users = [c for c in pack.clips("user") if c.split == "train"]
    chosen = [users[i] for i in rng.permutation(len(users))[:clips]]
    heard = []
    for clip in chosen:
        audio = np.pad(clip.audio * 10 ** (rng.uniform(-6, 3) / 20), (int(rng.integers(FRAME)), 0))
        heard.append((audio + rng.normal(0, 10 ** (rng.uniform(-75, -58) / 20), len(audio))).astype(np.float32))
    said = [c.audio for kind in ("agent", "agent_backchannel") for c in pack.clips(kind)]
    return heard + 4 * said


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", help="a pack, best a wide one")
    parser.add_argument("out")
    parser.add_argument("--card", type=int, default=256)
    parser.add_argument("--clips", type=int, default=600)
    args = parser.parse_args()
    codec = train(describe(material(Pack.load(args.pack), args.clips)), args.card)
    codec.save(args.out)


if __name__ == "__main__":
    main()

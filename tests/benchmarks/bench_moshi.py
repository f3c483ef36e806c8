"""Our stepping and scoring of a Moshi-class model beside the published generator's, on the same weights.

    pip install --no-deps moshi==0.2.13
    python tests/benchmarks/bench_moshi.py [--batch 1 2 4 8 16 32 64] [--shape pocket middle] [--threads 1]

Prints one JSON line a batch size: frames a second of `MoshiStream.step` and of `moshi`'s `LMGen.step` (both sample; no
codec on either side), in turn, medians of several rounds, and their ratio. Then one line a shape: seconds that
`MoshiPolicy.score` takes for the text stream alone and for all streams, without and with the way back, and the ratio of
the multiplications of the two. `middle` is four times as wide as pocket. One thread's time is that of the processor,
several threads' that of the wall. Compare ratios, not two machines.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from align.loading import find_folder, load_policy
from align.policies.checks import play
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import Sampling
from envs.clock import CLOCK

os.environ["NO_TORCH_COMPILE"] = "1"  # the published code compiles small functions otherwise, for minutes on a CPU
SCORINGS = 5  # a round of stepping is long, one of scoring short: so many more
SHAPES: dict[str, dict[str, Any]] = {
    "pocket": {},
    "middle": {"dim": 1024, "num_layers": 8, "num_heads": 16, "depformer_dim": 512, "depformer_num_layers": 4},
}


def config(shape: str) -> MoshiConfig:
    """Pocket's, with the sizes that the shape changes, and nothing that says where files are."""
    pocket = MoshiConfig.load(find_folder("pocket") / "config.json")
    return replace(pocket, extra={}, **SHAPES[shape])


def seconds(run: Callable[[], object]) -> float:
    """Of the processor where one thread computes, so that other users of the machine do not count; else of the wall."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    run()
    return clock() - began


def stepping(model: MoshiModel, batch: int, frames: int, rounds: int) -> dict[str, Any]:
    """Rounds of `frames` frames each, ours and theirs in turn; the first of each warms up."""
    from moshi.models import lm

    c = model.config
    user = np.random.default_rng(0).integers(0, c.card, (frames, batch, c.n_q - c.dep_q))
    sampling = Sampling(text_top_k=25)
    stream = MoshiStream(model, sampling, batch)
    active, seeds = np.ones(batch, bool), np.arange(batch, dtype=np.uint64)

    def ours() -> None:
        stream.reset(np.arange(batch), seeds)
        for heard in user:
            stream.step(heard, active)

    theirs = lm.LMModel(**c.to_dict()).eval()
    theirs.load_state_dict(model.state_dict())
    generator = lm.LMGen(
        theirs, temp=sampling.audio_temperature, temp_text=sampling.text_temperature,
        top_k=sampling.audio_top_k, top_k_text=sampling.text_top_k,
    )  # fmt: skip
    codes = torch.from_numpy(user)[..., None]  # (frames, B, Q, 1)

    def published() -> None:
        with torch.inference_mode(), generator.streaming(batch):
            for heard in codes:
                generator.step(heard)

    times = [(seconds(ours), seconds(published)) for _ in range(1 + rounds)][1:]
    mine, other = (batch * frames / median(t) for t in zip(*times, strict=True))
    return {
        "batch": batch, "frames_per_s": round(mine), "published_frames_per_s": round(other),
        "ratio": round(median(b / a for a, b in times), 2), "times_real_time": round(mine * 0.08, 1),
    }  # fmt: skip


def multiplications(model: MoshiModel, frames: int, depth: bool) -> int:
    """A frame's, in matrix products: one a weight, and attention's, half of whose square is masked."""
    c, parts = model.config, ["transformer.", "text_linear."]
    attention = c.num_layers * c.dim * (frames + 1)
    if depth:
        parts += ["depformer.", "depformer_in.", "linears."]
        attention += c.depformer_num_layers * c.depformer_dim * c.dep_q * (c.dep_q + 1)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith(tuple(parts))]
    return sum(p.numel() for p in matrices) + attention


def scoring(model: MoshiModel, batch: int, frames: int, rounds: int) -> dict[str, Any]:
    """`MoshiPolicy.score` of the text stream alone beside that of all streams: log-probs of `batch` conversations of
    `frames`, and the gradient of their sum."""
    pocket = load_policy("pocket")
    assert isinstance(pocket, MoshiPolicy)
    policy = MoshiPolicy(model, pocket.codec, pocket.tokenizer)
    policy.reset(np.ones(batch, bool), list(range(batch)))
    play(policy, np.random.default_rng(0).normal(0, 0.05, (frames, batch, CLOCK.frame)).astype(np.float32))
    trajectory = policy.trajectory().clone()

    def score(codebooks: int, back: bool) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(back):
                scores = policy.score(trajectory, codebooks=codebooks)
                loss = scores.logp.sum()
                if scores.audio_logp is not None:
                    loss = loss + scores.audio_logp.sum()
            if back:
                loss.backward()
                model.zero_grad()

        return run

    text = multiplications(model, frames, depth=False)
    ratio = multiplications(model, frames, depth=True) / text
    out: dict[str, Any] = {"batch": batch, "frames": frames, "multiplications_ratio": round(ratio, 2)}
    for name, back in (("score", False), ("score_and_back", True)):
        runs = score(0, back), score(model.config.dep_q, back)
        times = [(seconds(runs[0]), seconds(runs[1])) for _ in range(1 + rounds)][1:]
        out |= {f"{name}_text_s": round(median(a for a, _ in times), 4)}
        out |= {f"{name}_whole_s": round(median(b for _, b in times), 4)}
        out |= {f"{name}_ratio": round(median(b / a for a, b in times), 2)}
    return out


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["pocket"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for shape in options.shape:
        model = MoshiModel(config(shape), seed=0).eval()
        said = {"shape": shape, "parameters": sum(p.numel() for p in model.parameters()), "threads": options.threads}
        for batch in options.batch:
            print(json.dumps(said | stepping(model, batch, options.frames, options.rounds)), flush=True)
        print(json.dumps(said | scoring(model, 8, 100, SCORINGS * options.rounds)), flush=True)


if __name__ == "__main__":
    main()

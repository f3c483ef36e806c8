"""Steps a second (of CPU time) of 64 reactive users on one core, in whole conversations with agents that busy them.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_reactive.py

Prints one JSON line an agent. Goal: 10,000 steps (one conversation, one frame) a second. Rows that have ended count, as
they do in a rollout; `busy` is the share of steps whose row had not.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack


def bursts(batch: int, frames: int, on: int, off: int) -> np.ndarray:
    """(frames, batch, F) float32: noise for `on` frames, then silence for `off`, each row with another phase."""
    noise = (0.1 * np.random.default_rng(0).standard_normal((batch, CLOCK.frame))).astype(np.float32)
    speaks = (np.arange(frames)[:, None] + 7 * np.arange(batch)[None, :]) % (on + off) < on
    return noise[None] * speaks[:, :, None]


def measure(pack: Pack, batch: int, frames: int, actions: np.ndarray) -> dict[str, float]:
    """One round of whole conversations after one that warms up."""
    env = DuplexVectorEnv(pack, batch, frames=frames)
    names = [scenario.id for scenario in pack.scenarios("train")]
    ids = [names[row % len(names)] for row in range(batch)]
    took, slowest, busy = 0.0, 0.0, 0
    for seed in (0, 1):
        env.reset(seed=seed, options={"scenario": ids, "variant": list(range(batch))})
        took, slowest, busy = 0.0, 0.0, 0
        for action in actions:
            start = time.process_time()
            *_, info = env.step(action)
            step = time.process_time() - start
            took, slowest, busy = took + step, max(slowest, step), busy + int((~info["ended"]).sum())
    return {
        "steps_per_s": round(batch * frames / took),
        "slowest_step_ms": round(1e3 * slowest, 2),
        "busy": round(busy / (batch * frames), 2),
    }


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=150, help="frames a conversation")
    parser.add_argument("--batch", type=int, default=64, help="conversations at once")
    options = parser.parse_args()
    pack = Pack.load("core", "reactive")
    for name, on, off in (("silent", 0, 1), ("turns", 35, 40), ("talking", 1, 0)):
        found = measure(pack, options.batch, options.frames, bursts(options.batch, options.frames, on, off))
        print(json.dumps({"agent": name, "batch": options.batch, **found}))


if __name__ == "__main__":
    main()

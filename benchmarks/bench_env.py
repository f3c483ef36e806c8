"""How many frames a second the simulated users give, on one core, without a policy.

    python benchmarks/bench_env.py [--pack core] [--frames 150] [--batch 1 16 64]

Prints one JSON line a batch size: row-frames a second of `step` alone and with resets (fresh conversations) counted,
how many times real time that is, and the memory that one conversation holds.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack


def measure(pack: Pack, batch: int, frames: int) -> dict[str, float]:
    """Two rounds of whole conversations with a talking agent, so that triggers fire; the first one warms up."""
    env = DuplexVectorEnv(pack, batch, frames=frames)
    audio = (0.1 * np.random.default_rng(0).standard_normal((batch, CLOCK.frame))).astype(np.float32)
    quiet = np.zeros_like(audio)
    reset = step = 0.0
    for repeat in range(2):
        start = time.perf_counter()
        env.reset(seed=repeat)
        middle = time.perf_counter()
        for k in range(frames):
            env.step(audio if k // 25 % 2 else quiet)
        end = time.perf_counter()
        reset, step = middle - start, end - middle
    state = sum(track.nbytes for track in (env._scene, env._user, env._agent)) / batch
    return {
        "batch": batch,
        "row_frames_per_s": round(batch * frames / step),
        "row_frames_per_s_with_reset": round(batch * frames / (step + reset)),
        "times_real_time_with_reset": round(batch * frames * CLOCK.frame_seconds / (step + reset)),
        "reset_ms_per_row": round(1e3 * reset / batch, 2),
        "state_mib_per_row": round(state / 2**20, 2),
    }


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default="core", help="a pack's folder or name")
    parser.add_argument("--frames", type=int, default=150, help="frames a conversation")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="conversations at once")
    options = parser.parse_args()
    pack = Pack.load(options.pack)
    for batch in options.batch:
        print(json.dumps(measure(pack, batch, options.frames)))


if __name__ == "__main__":
    main()

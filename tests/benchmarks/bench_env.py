"""How many frames a second the simulated users give, on one core, without a policy.

    python tests/benchmarks/bench_env.py [--batch 1 16 64] [--acoustics clean echo cafe]

Prints one JSON line a batch size and kind of acoustics: row-frames a second of `step` alone and with resets (fresh
conversations) counted, how many times real time that is, the 99th percentile of one step, and the bytes that the state
of one conversation holds. Times are CPU time of this process, so other work on the machine counts little. `echo` is the
agent's echo over a 100 ms path and nothing else; any other name is a preset. Compare ratios, not two machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack

ECHO = {"echo": {"return_loss_db": 10, "delay_ms": 40, "tail_ms": 100, "cancel_db": 20, "converge_s": 1}}


def measure(pack: Pack, batch: int, frames: int, acoustics: str) -> dict[str, Any]:
    """Rounds of whole conversations with a talking agent, so that triggers fire; the first round warms up."""
    env = DuplexVectorEnv(pack, batch, frames=frames, acoustics=ECHO if acoustics == "echo" else acoustics)
    voice = (0.1 * np.random.default_rng(0).standard_normal((batch, CLOCK.frame))).astype(np.float32)
    quiet = np.zeros_like(voice)
    reset, steps = 0.0, np.zeros(frames)
    for repeat in range(2):
        start = time.process_time()
        env.reset(seed=repeat)
        times = [time.process_time()]
        for k in range(frames):
            env.step(voice if k // 25 % 2 else quiet)
            times.append(time.process_time())
        reset, steps = times[0] - start, np.diff(times)
    total = float(steps.sum())
    return {
        "acoustics": acoustics,
        "batch": batch,
        "row_frames_per_s": round(batch * frames / total),
        "row_frames_per_s_with_reset": round(batch * frames / (total + reset)),
        "times_real_time_with_reset": round(batch * frames * CLOCK.frame_seconds / (total + reset)),
        "reset_ms_per_row": round(1e3 * reset / batch, 2),
        "p99_step_ms": round(1e3 * float(np.quantile(steps, 0.99)), 2),
        "state_bytes_per_row": state_bytes(env.get_state()) // batch,
    }


def state_bytes(state: Any) -> int:
    """Bytes of all arrays that can be reached from a state, each counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [state]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            found[id(value)] = value.nbytes
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
            waiting += vars(value).values()
    return sum(found.values())


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default="core", help="a pack's folder or name")
    parser.add_argument("--frames", type=int, default=150, help="frames a conversation")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="conversations at once")
    parser.add_argument("--acoustics", nargs="+", default=["clean", "echo"], help="clean, echo or a preset")
    options = parser.parse_args()
    pack = Pack.load(options.pack)
    for acoustics in options.acoustics:
        for batch in options.batch:
            print(json.dumps(measure(pack, batch, options.frames, acoustics)), flush=True)


if __name__ == "__main__":
    main()

"""How much faster than real time a batch of llm users is, with an endpoint on loopback that takes its time.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_llm.py --latency 0.5

Prints one JSON line: seconds of conversation a second of wall time, all rows together and each row by itself, how many
requests were under way at once, and the 99th percentile of a step of one of these conversations once its answers are
known. The agent talks for 2.8 s and is silent for 3.2 s, each row with another phase.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from tests.benchmarks.bench_reactive import bursts
from tests.caller_server import act
from tests.judge_server import JudgeServer

SCENARIO = """\
schema: duplex.scenario/1
id: caller
split: train
duration_s: {{max: 60}}
user:
  driver: llm
  goal: Find out something.
  endpoint: {{base_url: '{url}', model: caller, concurrency: {batch}, cache: '{cache}'}}
"""


def known_step_ms(asked: DuplexVectorEnv, actions: np.ndarray) -> float:
    """99th percentile of a step, in wall-clock milliseconds, of row 0's conversation in an environment of one."""
    env, taken = DuplexVectorEnv(asked.pack, 1, frames=asked.frames), []
    env.reset(seed=0, options={"scenario": "caller", "variant": 0})
    for action in actions[:, :1]:
        start = time.perf_counter()
        env.step(action)
        taken.append(time.perf_counter() - start)
    llm = env.episode(0).meta["llm"]
    assert llm["cached"] == llm["decisions"]
    return 1000 * float(np.quantile(taken, 0.99))


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=250, help="frames a conversation")
    parser.add_argument("--batch", type=int, default=64, help="conversations at once")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the endpoint takes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, JudgeServer(given.latency, answer=act) as server:
        file = Path(folder) / "caller.yaml"
        file.write_text(SCENARIO.format(url=server.url, batch=given.batch, cache=Path(folder) / "cache"))
        env = DuplexVectorEnv(Pack.load("core", file), given.batch, frames=given.frames)
        actions = bursts(given.batch, given.frames, 35, 40)
        start = time.perf_counter()
        env.reset(seed=0, options={"scenario": "caller", "variant": list(range(given.batch))})
        for action in actions:
            env.step(action)
        wall = time.perf_counter() - start
        spoken = sum(env.episode(row).seconds for row in range(given.batch))
        found = {
            "batch": given.batch,
            "latency_s": given.latency,
            "requests": len(server.requests),
            "most_at_once": server.most_at_once,
            "wall_s": round(wall, 1),
            "times_real_time": round(given.frames * CLOCK.frame_seconds / wall, 2),
            "times_real_time_all_rows": round(spoken / wall, 1),
            "p99_ms_of_one_known": round(known_step_ms(env, actions), 2),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Kill a run at random moments, resume it each time, and compare what it ends with, bit for bit, with a run in peace.

    python -m tests.benchmarks.kill_resume --kills 100 --seed 0

The run is GRPO on a tiny Moshi-class policy in the real environment, with a checkpoint after every iteration. Each
attempt is a process of its own (forked, so that its start costs nothing) that gets SIGKILL either after a random time
or, every second one, at a random call of those that write a checkpoint: there a kill by the clock would rarely fall.
Runs follow each other until so many kills have happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from align import checkpoints, curriculum
from align.policies.sampling import Sampling
from align.trainers import grpo
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from rewards.compose import Composition
from tests import tiny_moshi
from tests.packs import write_tiny_pack

CONFIG = grpo.GrpoConfig(
    iterations=4, frames=30, num_groups=2, num_generations=4, steps_per_generation=2, learning_rate=2e-3, save_steps=1
)
WRITES = ("_write", "_write_tensors", "_sync_folder", "_sha256")
"""What `align.checkpoints` calls between the first byte of a checkpoint and its final name."""


def train(pack: Path, folder: Path) -> None:
    """Start the run, or go on with it."""
    loaded = Pack.load(str(pack))
    scenarios = curriculum.cards(loaded.scenarios("train"))
    grpo.train(
        CONFIG, tiny_moshi.policy(Sampling(text_top_k=0)),
        lambda rows: DuplexVectorEnv(loaded, rows, frames=CONFIG.frames), scenarios,
        Composition({"turn_taking": 1.0, "pause_handling": 1.0}), folder, seed=1,
        resume=bool(checkpoints.list_checkpoints(folder / "checkpoints")),
    )  # fmt: skip


def attempt(work: Callable[[], None], after: float | None, at_write: int | None) -> bool:
    """Run `work` in a child that may be killed; True if it was not."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            if at_write is not None:
                _die_at(at_write)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = None if after is None else time.monotonic() + after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                return False
            assert status == 0, f"the run failed by itself: status {status}"
            return True
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


def _die_at(call: int) -> None:
    """SIGKILL this process just before the given call of `WRITES`."""
    calls = 0

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return called

    for name in WRITES:
        setattr(checkpoints, name, dying(getattr(checkpoints, name)))


def outcome(folder: Path) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """Metrics without the clock's, and the exported weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "per_second")
    kept = [{name: value for name, value in line.items() if not any(word in name for word in timed)} for line in lines]
    weights = load_file(folder / "policy" / "model.safetensors")
    return kept, {name: value.contiguous().numpy().tobytes() for name, value in weights.items()}


def kill_and_compare(kills: int, seed: int) -> dict[str, float]:
    """Counts: `kills` that happened, of them `while_writing`; `runs` that ended, of them `bit_identical`."""
    rng = random.Random(seed)
    found = {"kills": 0, "while_writing": 0, "runs": 0, "bit_identical": 0}
    with tempfile.TemporaryDirectory() as work:
        pack = write_tiny_pack(Path(work) / "pack")
        peace = Path(work) / "peace"
        started = time.monotonic()
        assert attempt(lambda: train(pack, peace), None, None)
        seconds = time.monotonic() - started
        expected = outcome(peace)
        while found["kills"] < kills:
            folder = Path(work) / f"run-{found['runs']}"
            whole = False
            while not whole:
                enough = found["kills"] >= kills
                by_call = rng.random() < 0.5
                at_write = rng.randint(1, 20) if by_call and not enough else None
                after = None if by_call or enough else rng.uniform(0, seconds)
                whole = attempt(lambda folder=folder: train(pack, folder), after, at_write)  # type: ignore[misc]
                found["kills"] += not whole
                found["while_writing"] += not whole and any((folder / "checkpoints").glob(".*.tmp"))
            found["runs"] += 1
            found["bit_identical"] += outcome(folder) == expected
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(kill_and_compare(options.kills, options.seed)))


if __name__ == "__main__":
    main()

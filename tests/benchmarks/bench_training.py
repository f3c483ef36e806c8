"""What an iteration of training costs by phase against the floor of its parts, what a second rank brings, and how long
a run takes to begin.

    python -m tests.benchmarks.bench_training [iteration] [scaling] [start] [--rounds 3] [--groups 5]

Prints JSON lines; about five minutes on two quiet cores. Everything is pocket in the environment, with quickstart's
rewards, and one thread a rank.

`iteration`: GRPO, and after each iteration the floor of its parts on the same conversations, so that both see the same
machine: a rollout against bare stepping of the model, the environment, and the codec, alone; scoring against the bare
forward of the same micro-batches; an update against bare forward, backward and reference forward, and the optimiser's
step in plain torch. `ratio` is the median over iterations of the time over its floor; the first iteration warms up.
These times are processor time of the one thread, so other work on the machine counts little.

`scaling`: seconds of the wall that an iteration takes one rank, two with as many conversations a rank, and two that
have nothing to do with each other, in turn. `scaling` is the conversations a second of two ranks over those of one;
`independent` what the machine gives two processes, which share its memory and caches. Needs two idle cores.

`start`: seconds of the wall from a command that starts two ranks to the end of the first collective in both: imports,
configuration, pack, checkpoint, rewards, process group and `deepspeed.initialize`, with no compiler to be found.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG = [
    "wandb.mode=disabled", "grpo.lr_scheduler_type=constant", "grpo.save_steps=1000", "grpo.log_episodes_steps=0",
]  # fmt: skip


class Phases:
    """Seconds of processor time by name, of functions that are wrapped in place."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, owner: Any, name: str, phase: str, see: Callable[..., None] = lambda *a, **k: None) -> None:
        """Count what `owner.name` takes as `phase`; `see` is told its result and its arguments."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            out = function(*args, **kwargs)
            self.seconds[phase] += time.process_time() - began
            see(out, *args, **kwargs)
            return out

        setattr(owner, name, timed)

    def taken(self) -> dict[str, float]:
        """What has been counted, which begins anew."""
        out, self.seconds = dict(self.seconds), defaultdict(float)
        return out


def seconds(run: Callable[[], object]) -> float:
    """Of processor time."""
    began = time.process_time()
    run()
    return time.process_time() - began


PHASES = ("rollout", "scoring", "judging", "credit", "update")


def iteration(rounds: int, groups: int) -> None:
    """Run GRPO with a stop after each iteration, in which the floor of its parts is measured; print both."""
    from align.trainers import grpo, learner, run

    job, overrides = prepared([f"grpo.iterations={rounds + 1}", f"grpo.num_groups={groups}"])
    phases, rows = Phases(), []
    heard: list[tuple[Any, ...]] = []

    phases.time(run.Run, "converse", "rollout")
    phases.time(learner.Learner, "recompute", "scoring")
    for name, phase in (("begin", "judging"), ("judge", "judging"), ("_lessons", "credit"), ("_update", "update")):
        phases.time(grpo, name, phase)

    def step(out: Any, mic: Any, active: Any) -> None:
        heard.append((mic.copy(), active.copy(), out.tokens.copy(), out.audio))

    phases.time(job.policy, "step", "rollout/policy", step)
    end, began = run.Run.end_iteration, [time.process_time()]

    def ended(this: Any, number: int, tally: Any, played: Any, *rest: Any) -> Any:
        out = end(this, number, tally, played, *rest)
        spent = phases.taken() | {"iteration": time.process_time() - began[0]}
        spent["rollout/rest"] = spent["rollout"] - spent["rollout/policy"]
        spent["rest"] = spent["iteration"] - sum(spent[name] for name in PHASES)
        rows.append((spent, floor(this, played, heard, env, number)))
        heard.clear()
        phases.taken()
        began[0] = time.process_time()
        return out

    run.Run.end_iteration = ended  # type: ignore[method-assign]
    from launch.train import learn, make_env

    env = make_env(job, job.config.algorithm.conversations)
    with tempfile.TemporaryDirectory() as folder:
        learn(job, Path(folder), resume=False, tail=0.0)
    rows = rows[1:]
    whole = {"rollout": ROLLOUT, "scoring": SCORING, "update": UPDATE}
    for name, parts in whole.items():
        floors = {part: round(median(f[part] for _, f in rows), 3) for part in parts}
        ratio = median(spent[name] / sum(f[part] for part in parts) for spent, f in rows)
        took = round(median(spent[name] for spent, _ in rows), 3)
        print(json.dumps({"phase": name, "seconds": took, "ratio": round(ratio, 3), "floor": floors}), flush=True)
    for name in ("iteration", "rollout/policy", "rollout/rest", "judging", "credit", "rest"):
        print(json.dumps({"phase": name, "seconds": round(median(s[name] for s, _ in rows), 3)}), flush=True)
    floors = [sum(f[part] for parts in whole.values() for part in parts) for _, f in rows]
    ratio = median(spent["iteration"] / f for (spent, _), f in zip(rows, floors, strict=True))
    config = job.config.algorithm
    print(
        json.dumps({
            "phase": "iteration over the floor of its parts", "ratio": round(ratio, 3), "iterations": rounds,
            "conversations": config.conversations, "frames": config.frames, "overrides": overrides,
        }), flush=True,
    )  # fmt: skip


ROLLOUT = ("stepping", "environment", "codec")
SCORING = ("forward",)
UPDATE = ("forward and backward", "reference forward", "optimiser")


def floor(this: Any, played: Any, heard: Sequence[tuple[Any, ...]], env: Any, number: int) -> dict[str, float]:
    """Seconds of each part alone, on the conversations of one iteration.

    Args:
        this: the `Run`.
        heard: of each frame the microphone, who acts, the tokens and the sound.
        env: an environment of its own.
    """
    import numpy as np
    import torch

    from align import curriculum, rollout
    from align.codecs.shared_encoder import SharedEncoder
    from align.policies.moshi.streaming import MoshiStream

    policy, config = this.policy, this.config
    model, codec, batch = policy.model, policy.codec, len(played.episodes)
    own = 1 + model.config.dep_q
    out: dict[str, float] = {}
    with torch.inference_mode(), rollout.stepping_threads(policy):
        codes = np.random.default_rng(0).integers(0, model.config.card, (len(heard), batch, model.config.n_q + 1 - own))
        stream = MoshiStream(model, policy.sampling, batch)
        stream.reset(np.arange(batch), np.arange(batch, dtype=np.uint64))

        def stepping() -> None:
            for frame, (_, active, _, _) in zip(codes, heard, strict=True):
                stream.step(frame, active)

        ears, mouth = SharedEncoder(codec, batch), codec.init_state(batch)  # rows that hear the same share the work

        def coding() -> None:
            for mic, active, tokens, _ in heard:
                ears.encode(mic, active)
                codec.decode(mouth, tokens[:, 1:own].clip(0, codec.card - 1))

        drawn = curriculum.draw(
            curriculum.cards(env.pack.scenarios("train")), number, seed=this.seed, num_groups=config.num_groups,
            num_generations=config.num_generations,
        )  # fmt: skip
        options = {
            name: [getattr(draw, name) for draw in drawn for _ in range(config.num_generations)]
            for name in ("scenario", "variant")
        }

        def world() -> None:
            env.reset(seed=this.seed, options=options)
            for _, _, _, sound in heard:
                env.step(sound)

        out |= {"stepping": seconds(stepping), "environment": seconds(world), "codec": seconds(coding)}
    bare = copy.deepcopy(model)
    trained = [p for p in bare.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-9)
    trajectory, size = played.trajectory, config.per_device_train_batch_size

    def forward(rows: Any) -> torch.Tensor:
        codes, taken = trajectory.codes[rows], trajectory.codes[rows, 0].clamp(min=0)
        logits = bare.text_forward(codes)[1].float()
        return logits.log_softmax(-1).gather(-1, taken.unsqueeze(-1)).sum()

    @torch.no_grad()
    def forwards() -> None:
        for at in range(0, batch, size):
            forward(slice(at, at + size))

    share = batch // config.steps_per_generation
    starts = [
        (begin, min(begin + size, turn * share + share))
        for turn in range(config.steps_per_generation)
        for begin in range(turn * share, turn * share + share, size)
    ]

    def both() -> None:
        for begin, stop in starts:
            forward(slice(begin, stop)).backward()

    @torch.no_grad()
    def references() -> None:
        for begin, stop in starts:
            forward(slice(begin, stop))

    def steps() -> None:
        for _ in range(config.updates):
            optimiser.step()

    both()  # the copy's gradients, and memory that the run has long had
    out["forward"] = seconds(forwards)
    out["forward and backward"] = config.passes * seconds(both)
    out["reference forward"] = config.passes * seconds(references) if config.kl_in_loss else 0.0
    out["optimiser"] = seconds(steps)
    return out


def prepared(overrides: Sequence[str]) -> tuple[Any, list[str]]:
    """A quickstart with the overrides, loaded as `uptake train` loads it, and the overrides."""
    from align.config import load_config
    from align.memory import keep_memory
    from launch.train import prepare

    keep_memory()
    return prepare(load_config("quickstart", [*CONFIG, *overrides])), list(overrides)


RANK = """
import json, sys, tempfile
from pathlib import Path
from launch.train import learn
from tests.benchmarks.bench_training import prepared

groups, rounds = int(sys.argv[1]), int(sys.argv[2])
job, _ = prepared([f"grpo.iterations={rounds + 1}", f"grpo.num_groups={groups}", "grpo.frames=100"])
folder = Path(sys.argv[3])
learn(job, folder, resume=False, tail=0.0)
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
print(json.dumps([{name: line[name] for name in ("step_time", "time/rollout", "time/update")} for line in lines[1:]]))
"""


def scaling(rounds: int, groups: int) -> None:
    """One rank, two, and two that know nothing of each other, in turn; the same work a rank."""
    from tests.ranks import run_ranks

    def iterations(world: int) -> list[dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            found: list[dict[str, float]] = run_ranks(
                RANK, str(groups * world), str(rounds), folder, world=world, timeout=600.0
            )[0]
        return found

    times: dict[str, list[dict[str, float]]] = {"one": [], "two": [], "strangers": []}
    with ThreadPoolExecutor(2) as side_by_side:
        for _ in range(2):
            times["one"] += iterations(1)
            times["two"] += iterations(2)
            for lines in side_by_side.map(iterations, (1, 1)):
                times["strangers"] += lines
    seconds = {
        phase: {who: round(median(line[key] for line in lines), 3) for who, lines in times.items()}
        for phase, key in (("iteration", "step_time"), ("rollout", "time/rollout"), ("update", "time/update"))
    }
    step = seconds["iteration"]
    print(
        json.dumps({
            "conversations_a_rank": groups * 8, "seconds": seconds, "scaling": round(2 * step["one"] / step["two"], 3),
            "independent": round(2 * step["one"] / step["strangers"], 3),
        }), flush=True,
    )  # fmt: skip


COLD = """
import os, time
from align.trainers.learner import Learner
from tests.benchmarks.bench_training import prepared
import align.ranks

job, _ = prepared([])
align.ranks.start_ranks(60.0)
engine = Learner(job.policy, job.config.algorithm).engine
assert engine.total([1.0]) == [2.0]
os.write(1, f"first collective {time.time()}\\n".encode())  # one write: ranks share the pipe
"""


def start(rounds: int) -> None:
    """Two ranks by torchrun, from nothing, where no compiler is to be found."""
    took = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cold.py"
        program.write_text(COLD, encoding="utf-8")
        no_compiler = {"PATH": folder, "CC": "/no/cc", "CXX": "/no/cxx", "TORCH_EXTENSIONS_DIR": folder}
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | no_compiler
        for _ in range(rounds):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            began = time.time()
            done = subprocess.run(
                [*command, str(program)], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
            )
            ends = [float(end) for end in re.findall(r"first collective ([\d.]+)", done.stdout)]
            assert len(ends) == 2, done.stdout + done.stderr
            took.append(max(ends) - began)
    print(json.dumps({"cold_start_of_two_ranks_s": [round(each, 2) for each in took]}), flush=True)


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="iteration, scaling, start; all of them if none is given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5, help="of 8 conversations, a rank")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # before torch is imported
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    what = options.what or ["start", "scaling", "iteration"]
    if "start" in what:
        start(options.rounds)
    if "scaling" in what:
        scaling(options.rounds, options.groups)
    if "iteration" in what:
        iteration(options.rounds, options.groups)


if __name__ == "__main__":
    main()

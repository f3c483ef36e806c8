"""Two nodes train as one does; a cluster that takes its machines away loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from align.config import load_config, save_config
from envs.errors import AGAIN, MISTAKE
from launch import local, render
from tests import child
from tests.dialogues import write_dialogues
from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint

ROOT = Path(__file__).parents[2]
ITERATIONS = 6
SMALL = [
    f"grpo.iterations={ITERATIONS}", "grpo.num_groups=2", "grpo.num_generations=4", "grpo.frames=40", "grpo.beta=0.01",
    "grpo.learning_rate=2e-3", "evaluation.frames=60", "evaluation.split=train", "evaluation.variants=1",
    "evaluation.resamples=50", "evaluation.conversations=1", "evaluation.baselines=[]", "wandb.mode=disabled",
]  # fmt: skip
# A random policy does nothing that the shipped rewards tell apart; it does say more words or fewer.
BREVITY = """
from rewards.registry import reward
from rewards.verdict import Verdict


@reward("brevity", axis="pause", events=["A1", "A3", "B1", "B4", "C1", "D1"], horizon_s=1.0)
def brevity(view, event):
    return Verdict(max(-1.0, 1.0 - len(view.transcript) / 10), view.credit(event.onset, view.end), {})
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = [sys.executable, "-m", "launch.cli", "launch", "local", "quickstart"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    (folder / "brevity.py").write_text(BREVITY)
    rewards = [f"rewards.{name}=0" for name in load_config("quickstart").rewards]
    world = [f"policy={tiny_checkpoint(folder / 'policy')}", f"pack={write_tiny_pack(folder / 'pack')}"]
    return [*world, *rewards, f"rewards.{folder / 'brevity.py'}:brevity=1", *SMALL]


@pytest.fixture(scope="module")
def alone(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank that nobody disturbed."""
    runs = tmp_path_factory.mktemp("alone")
    subprocess.run([*LAUNCH, *world, f"runs={runs}"], env=ENVIRONMENT, cwd=ROOT, check=True, timeout=300)
    return runs / "quickstart"


@pytest.fixture
def two_nodes() -> Iterator[tuple[list[list[str]], str]]:
    """What begins a command on each of two nodes, and the address of the first.

    Two network namespaces joined by a cable where that is allowed (root on Linux), otherwise twice this machine.
    """
    names = [f"uptake-{os.getpid()}-{i}" for i in range(2)]
    ip = shutil.which("ip")
    if ip is None or subprocess.run([ip, "netns", "add", names[0]], capture_output=True, check=False).returncode:
        yield [[], []], "127.0.0.1"
        return

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True)

    try:
        run("netns", "add", names[1])
        run("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for i, name in enumerate(names):
            run("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"cable{i}")
            run("-n", name, "link", "set", f"cable{i}", "up")
            run("-n", name, "link", "set", "lo", "up")
        # gloo would take the address that the machine's name has, which is of no network here.
        inside = [[ip, "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME=cable{i}"] for i, name in enumerate(names)]
        yield inside, "10.77.0.1"
    finally:
        for name in names:
            subprocess.run([ip, "netns", "del", name], capture_output=True, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def launched(*arguments: str, inside: list[str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(inside or []), *LAUNCH, *arguments],
        env=ENVIRONMENT, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def until(reached: Callable[[], bool], *nodes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert not [node.communicate()[0] for node in nodes if node.poll() is not None]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.is_file() else 0


def test_two_nodes_that_are_taken_away_in_turn_start_again_both_and_give_the_losses_of_one(
    world, alone, two_nodes, tmp_path
):
    inside, address = two_nodes
    there = ["--nodes", "2", "--ranks", "1", "--master", f"{address}:{free_port()}"]
    run, printed = tmp_path / "quickstart", []

    def start() -> list[subprocess.Popen[str]]:
        return [launched(*world, f"runs={tmp_path}", *there, "--node-rank", str(i), inside=inside[i]) for i in range(2)]

    def ended(nodes: list[subprocess.Popen[str]]) -> list[int]:
        printed[:] = [node.communicate(timeout=300)[0] for node in nodes]
        return [node.returncode for node in nodes]

    nodes = start()
    until(lambda: lines(run / "metrics.jsonl") > 0, *nodes)
    nodes[1].terminate()
    assert ended(nodes) == [AGAIN, AGAIN], "\n".join(printed)
    assert "preflight: 2 nodes of one kind" in printed[0]
    assert 0 < lines(run / "metrics.jsonl") < ITERATIONS, "the run was over before it could be stopped"

    nodes = start()
    until((run / "policy").is_dir, *nodes)  # only the first node has work from here on
    nodes[0].terminate()
    assert ended(nodes) == [AGAIN, AGAIN], "\n".join(printed)
    assert not (run / "report.html").exists()

    assert ended(start()) == [0, 0], "\n".join(printed)
    assert (run / "report.html").is_file()
    one, two = metrics(alone), metrics(run)
    assert len(one) == len(two) == ITERATIONS
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "kl", "entropy", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    assert any(line["grad_norm"] > 0 for line in one)


def test_nodes_that_do_not_share_the_run_folder_are_told_so(world, tmp_path):
    there = ["--nodes", "2", "--ranks", "1", "--master", f"127.0.0.1:{free_port()}"]
    nodes = [launched(*world, f"runs={tmp_path / str(i)}", *there, "--node-rank", str(i)) for i in range(2)]
    printed = [" ".join(node.communicate(timeout=120)[0].split()) for node in nodes]
    assert [node.returncode for node in nodes] == [2, 2]
    for said in printed:
        assert "node 1" in said
        assert "does not see the run folder of node 0; put runs= on storage that all nodes share" in said
    assert not (tmp_path / "0" / "quickstart").exists()


def mistakes(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("uptake: ")]


def test_a_mistake_that_all_ranks_of_a_node_find_is_said_once(world, tmp_path):
    done = launched(*world, "evaluation.baselines=[nobody]", f"runs={tmp_path}", "--ranks", "2")
    said = done.communicate(timeout=240)[0]
    assert done.returncode == MISTAKE, said
    assert "Traceback" not in said
    (line,) = mistakes(said)
    assert line.startswith("uptake: evaluation.baselines: no scripted agent 'nobody'")


def test_a_run_folder_that_cannot_be_made_is_said_before_the_ranks_are_started(world):
    done = launched(*world, "runs=/proc/x", "--ranks", "2")
    said = done.communicate(timeout=240)[0]
    assert done.returncode == MISTAKE, said
    assert "Traceback" not in said
    (line,) = mistakes(said)
    assert line.startswith("uptake: /proc/x/quickstart: cannot be made or written (No such file or directory)")


def test_a_mistake_that_only_the_first_rank_finds_ends_every_node_with_it_at_once_each_with_one_line(world, tmp_path):
    """A run is there that was started with another seed."""
    folder = tmp_path / "quickstart"
    save_config(load_config("quickstart", [*world, f"runs={tmp_path}", "seed=7"]), folder / "config.yaml")
    there = ["--nodes", "2", "--ranks", "2", "--master", f"127.0.0.1:{free_port()}", "grpo.num_groups=4"]
    nodes = [launched(*world, f"runs={tmp_path}", *there, "--node-rank", str(i)) for i in range(2)]
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [MISTAKE, MISTAKE], "\n".join(printed)
    for said, who in zip(printed, ("uptake: ", "uptake: rank 0 has ended: "), strict=True):
        assert "Traceback" not in said
        (line,) = mistakes(said)
        assert line.startswith(f"{who}{folder} was started with seed = 7, now it is 0"), line


def test_a_warm_start_that_is_taken_away_writes_a_checkpoint_and_goes_on_from_it(world, tmp_path):
    start = [word for word in world if word.startswith("policy=")]
    data = write_dialogues(tmp_path / "recordings", 2, 130)
    run = [*start, f"data.path={data}", f"runs={tmp_path}", "sft.frames=40", "sft.train_batch_size=2",
           "sft.save_steps=1000", "wandb.mode=disabled", "--ranks", "2"]  # fmt: skip

    def launch(iterations: int) -> subprocess.Popen[str]:
        command = [*LAUNCH[:-1], "sft/pocket", *run, f"sft.iterations={iterations}"]
        return subprocess.Popen(
            command, env=ENVIRONMENT, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    folder = tmp_path / "warm-start"
    node = launch(100_000)
    until(lambda: lines(folder / "metrics.jsonl") > 0, node)
    node.terminate()
    said = node.communicate(timeout=120)[0]
    assert node.returncode == AGAIN, said
    assert "stopping at the next safe place" in said
    done = lines(folder / "metrics.jsonl")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"iteration-{done:06d}"]
    node = launch(done + 1)
    said = node.communicate(timeout=240)[0]
    assert node.returncode == 0, said
    assert lines(folder / "metrics.jsonl") == done + 1
    assert (folder / "policy" / "config.json").is_file()


def test_an_alarm_that_ends_the_run_ends_the_launcher_so_that_nothing_starts_it_again(world, tmp_path):
    alarm = ["grpo.alarms.stop=true", "grpo.alarms.patience=1", "grpo.alarms.talk_ratio_below=1.0"]
    done = launched(*world, *alarm, f"runs={tmp_path}", "--ranks", "2")
    said = done.communicate(timeout=240)[0]
    assert done.returncode == MISTAKE, said
    assert "it has fallen silent" in said
    assert lines(tmp_path / "quickstart" / "metrics.jsonl") == 1


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_node_that_is_taken_away_in_the_preflight_is_not_taken_for_trained(world, tmp_path, signal_number):
    node = launched(*world, f"runs={tmp_path}")
    until(lambda: bool(psutil.Process(node.pid).children()), node)
    node.send_signal(signal_number)
    said = node.communicate(timeout=120)[0]
    assert node.returncode == AGAIN, said
    assert not (tmp_path / "quickstart").exists()


def test_a_node_that_is_taken_away_while_it_measures_starts_again(world, tmp_path):
    node = launched(*world, f"runs={tmp_path}", "evaluation.variants=1000", "--ranks", "2")
    until((tmp_path / "quickstart" / "config.yaml").is_file, node)
    node.terminate()
    said = node.communicate(timeout=120)[0]
    assert node.returncode == AGAIN, said
    assert not (tmp_path / "quickstart" / "before").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_node_whose_peer_is_missing_starts_again(world, tmp_path, rank):
    def soon() -> None:
        local.MEETING_SECONDS = 2

    there = ["--nodes", "2", "--ranks", "1", "--master", f"127.0.0.1:{free_port()}", "--node-rank", rank]
    arguments = ["launch", "local", "quickstart", *world, f"runs={tmp_path}", *there]
    status, said = child.command(arguments, tmp_path / "errors", soon)
    assert status == AGAIN, said
    assert "the nodes did not meet" in " ".join(said)
    assert "Traceback" not in " ".join(said)


TOOLS = {
    "scontrol": 'case "$1" in show) echo 127.0.0.1 ;; requeue) echo requeue >> "$LOG" ;; esac',
    # srun's task is a node; scancel signals every process of it, as a cluster does.
    "srun": 'shift; "$@" & echo $! > "$LOG.step"; while wait $!; s=$?; kill -0 $! 2>/dev/null; do :; done; exit $s',
    "scancel": 'kill -USR1 "$(cat "$LOG.step")"',
    "uptake": f'exec "{sys.executable}" -m launch.cli "$@"',
}


def cluster(tmp_path: Path, **tools: str) -> dict[str, str]:
    """An environment in which a batch job finds `TOOLS`, or others in their place."""
    for name, body in (TOOLS | tools).items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/usr/bin/env bash\n{body}\n")
        tool.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0]", "SLURM_NODEID": "0"}
    return ENVIRONMENT | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")} | job


@pytest.mark.parametrize(("ended", "again"), [(0, False), (2, False), (75, True)])
def test_a_batch_job_knows_how_its_step_ended_even_if_that_was_while_it_asked_it_to_stop(ended, again, tmp_path):
    environment = cluster(
        tmp_path,
        srun=f'touch "$LOG.runs"; until [ -e "$LOG.end" ]; do sleep 0.02; done; exit {ended}',
        scancel='touch "$LOG.end"; sleep 0.5',
    )
    (tmp_path / "job.sh").write_text(render.slurm("quickstart", [], nodes=1, ranks=1, time="10"))
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment)
    until((tmp_path / "log.runs").exists, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == ended
    assert (tmp_path / "log").exists() == again


def test_a_batch_job_that_is_asked_to_stop_goes_on_from_its_checkpoint_as_if_it_had_not_been(world, alone, tmp_path):
    script, log = tmp_path / "job.sh", tmp_path / "log"
    script.write_text(render.slurm("quickstart", [*world, f"runs={tmp_path}"], nodes=1, ranks=1, time="10"))
    environment = cluster(tmp_path)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script)],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    first, run = start(), tmp_path / "quickstart"
    until(lambda: lines(run / "metrics.jsonl") > 0, first)
    first.send_signal(signal.SIGUSR1)
    said = first.communicate(timeout=240)[0]
    assert first.returncode == 75, said
    assert "stopping at the next safe place" in said
    assert log.read_text() == "requeue\n"
    done = len(metrics(run))
    assert 0 < done < ITERATIONS, "the run was over before it could be stopped"

    second = start()
    said = second.communicate(timeout=240)[0]
    assert second.returncode == 0, said
    assert log.read_text() == "requeue\n", "a finished job is not queued again"
    whole, stopped = metrics(alone), metrics(run)
    assert [line["iteration"] for line in stopped] == list(range(ITERATIONS))
    assert [line["loss"] for line in stopped] == [line["loss"] for line in whole]
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (run, alone))
    assert all((ours[name] == theirs[name]).all() for name in theirs)

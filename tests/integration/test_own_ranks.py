"""`uptake train` with `ranks` in its configuration: several processes, and one command that is stopped, killed and told
of mistakes as if it were one."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from align.config import load_config
from launch import own_ranks
from launch.children import Children
from launch.cli import app
from launch.own_ranks import gpus, ranks_here
from launch.threads import VARIABLES, shared
from tests.integration.test_quickstart import ROOT, SMALL, command, figures, stopped, uptake
from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint

TWO = ["ranks=2", "grpo.num_groups=4", "grpo.iterations=2", "evaluation.batch=2", "evaluation.baselines=[oracle]"]


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[None]:
    """As from a shell: a test of this process that has started ranks leaves what a launcher would have set, and what a
    script has started in the background does not hear Ctrl-C, nor do its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    policy, pack = tiny_checkpoint(folder / "policy"), write_tiny_pack(folder / "pack")
    return ["train", "quickstart", f"policy={policy}", f"pack={pack}", f"runs={folder / 'runs'}", *SMALL, *TWO]


def run(world: list[str], name: str) -> Path:
    return Path(next(word.partition("=")[2] for word in world if word.startswith("runs="))) / name


@pytest.fixture(scope="module")
def finished(world: list[str]) -> tuple[Path, str]:
    done = uptake(*world, "name=two")
    return run(world, "two"), done.stdout


def ended(pids: list[int]) -> bool:
    """Whether none of these is there any more, after at most ten seconds."""
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_two_ranks_measure_what_one_measures_and_train_as_one_trains(
    world: list[str], finished: tuple[Path, str]
) -> None:
    uptake(*world, "name=one", "ranks=1")
    two, one = finished[0], run(world, "one")
    for side in ("before", "after"):
        found = [json.loads((folder / side / "evaluation.json").read_text())["scenarios"] for folder in (one, two)]
        assert list(found[0]) == list(found[1])
        if side == "before":
            assert found[0] == found[1]
    for mine, theirs in zip(figures(one)[0], figures(two)[0], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["kl"] == pytest.approx(theirs["kl"], abs=1e-5)
    assert (
        json.loads((two / "eval.json").read_text())["systems"] == json.loads((one / "eval.json").read_text())["systems"]
    )
    played = {path.name for path in (one / "episodes" / "after").iterdir()}
    assert {path.name for path in (two / "episodes" / "after").iterdir()} == played


def test_what_is_printed_is_printed_once(finished: tuple[Path, str]) -> None:
    printed = finished[1]
    assert printed.count("training (grpo)") == printed.count("report: ") == 1
    assert "of memory" in printed


def test_a_dry_run_plans_for_the_ranks(world: list[str]) -> None:
    done = uptake(*world, "--dry-run")
    assert done.stdout.count("\nname: ") + done.stdout.startswith("name: ") == 1
    assert "ranks: 2" in done.stdout


def test_ctrl_c_at_the_command_alone_stops_its_ranks_at_a_checkpoint_and_the_run_can_go_on(
    world: list[str], finished: tuple[Path, str]
) -> None:
    broken = run(world, "broken")
    metrics = broken / "metrics.jsonl"
    status, errors = stopped(
        [*world, "name=broken"], lambda: metrics.is_file() and metrics.stat().st_size, signal.SIGINT
    )
    assert status == 130, errors
    assert "Traceback" not in errors
    assert errors.count("stopping at the next safe place") == errors.count("uptake: interrupted") == 1, errors
    assert list((broken / "checkpoints").glob("iteration-*"))
    uptake(*world, "name=broken", "--resume")
    assert figures(broken) == figures(finished[0])


def test_a_ctrl_c_while_it_measures_is_one_line(world: list[str]) -> None:
    folder = run(world, "measuring")
    status, errors = stopped(
        [*world, "name=measuring", "evaluation.variants=20"], (folder / "config.yaml").is_file, signal.SIGINT
    )
    assert (status, errors.strip()) == (130, "uptake: interrupted")


def test_ranks_do_not_outlive_the_command_that_was_killed(world: list[str], finished: tuple[Path, str]) -> None:
    killed = run(world, "killed")
    process = subprocess.Popen(command(*world, "name=killed", "grpo.save_steps=1"), cwd=ROOT, stdout=subprocess.DEVNULL)
    first, deadline = killed / "checkpoints" / "iteration-000001", time.monotonic() + 240
    while not first.is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    theirs = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(theirs) >= 3, "torchrun and two ranks"
    process.kill()
    process.wait()
    assert ended(theirs)
    uptake(*world, "name=killed", "grpo.save_steps=1", "--resume")
    assert figures(killed) == figures(finished[0])


def test_mistakes_are_one_line_as_from_one_process(world: list[str], finished: tuple[Path, str]) -> None:
    for extra, said in (
        (["name=two"], "go on with --resume, or start another with name=NAME"),
        (["name=new", "pack=nowhere"], "nowhere"),
        (["name=new", "grpo.num_groups=3"], "3"),
        (["name=new", "ranks=0"], "ranks = 0: must be at least 1"),
        (["name=new", "runs=/proc/x"], "/proc/x/new: cannot be made or written (No such file or directory); give"),
        (["name=new", "grpo.num_groups=3", "--dry-run"], "3"),
        (["name=new", "pack=nowhere", "--dry-run"], "nowhere"),
    ):
        errors = uptake(*world, *extra, expect=2).stderr.strip()
        assert said in errors and len(errors.splitlines()) == 1, errors


def test_each_rank_has_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "6")
    assert shared(2) == dict.fromkeys(VARIABLES, "3")
    assert shared(7) == dict.fromkeys(VARIABLES, "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "many")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert shared(2) == {"OMP_NUM_THREADS": "3"}


def test_what_cannot_be_split_over_the_ranks_is_refused_before_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_ranks, "run_ranks", lambda *_: pytest.fail("started"))
    done = CliRunner().invoke(app, ["train", "quickstart", "ranks=3", "grpo.num_groups=2", "--dry-run"])
    assert "grpo.num_groups = 2 cannot be split over 3 ranks" in str(done.exception)


@given(
    st.lists(st.sampled_from(["0", "1", " 2", "-1", "", "NoDevFiles", "x"]))
    | st.lists(st.sampled_from(["GPU-1a", "GPU-2b", "NoDevFiles"]))
    | st.lists(st.sampled_from(["MIG-1a", "MIG-2b", "-1"]))
)
def test_gpus_are_counted_as_torch_counts_them(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
        assert gpus() == len(torch.cuda._parse_visible_devices())


@pytest.mark.parametrize(
    ("shown", "wanted", "started"),
    [("0", 2, 1), ("0,1,2", 2, 2), ("", 2, 2), ("0,1", 8, 2), ("-1", 2, 2), ("0,-1,1", 2, 1), ("NoDevFiles", 2, 2)],
)
def test_no_two_ranks_are_started_on_one_gpu(
    monkeypatch: pytest.MonkeyPatch, shown: str, wanted: int, started: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.delenv("RANK", raising=False)
    config = load_config("quickstart", [f"ranks={wanted}"])
    assert ranks_here(config) == started
    monkeypatch.setenv("RANK", "0")
    assert ranks_here(config) == 1, "a launcher has said how many"


def test_a_rank_that_has_just_ended_does_not_keep_the_others_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, gone = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    ranks = [psutil.Process(gone.pid), psutil.Process(alive.pid)]
    gone.kill()
    gone.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda self: ranks)
    children = Children({})
    threading.Timer(0.5, children._stop, [signal.SIGINT]).start()
    children.run(["sleep", "1"])
    assert alive.wait(10) == -signal.SIGINT


UNSHARE = ["unshare", "--mount", "--uts", "--net"]


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode,
    reason="needs the right to a machine's name of its own",
)
def test_ranks_meet_on_a_machine_whose_name_points_to_where_it_is_not(world: list[str], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.99.0.1 elsewhere\n")
    moved = f"mount --bind {tmp_path}/hosts /etc/hosts && hostname elsewhere && ip link set lo up && exec "
    arguments = command(*world, "name=elsewhere", "grpo.iterations=1")
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", moved + shlex.join(arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

"""Reading in several processes: the same bytes, and no hang when one of them dies or the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs.corpora.extraction import extract
from envs.corpora.pool import spread
from launch.cli import app
from tests.corpora import minus_one, square, write_tones

ROOT = Path(__file__).parents[2]
FILES = ("recordings.jsonl", "segments.jsonl", "summary.json")


def corpus(root: Path) -> Path:
    for number in range(5):
        speech = [[(1.0, 3.0), (3.5 + number / 10, 6.0)], [(8.0, 9.0)]]
        write_tones(root / f"call{number}.wav", speech, 10.0, 8_000)
    return root


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    root = corpus(tmp_path / "corpus")
    for jobs in (1, 2):
        extract(root, tmp_path / f"jobs{jobs}", jobs=jobs)
    for name in FILES:
        assert (tmp_path / "jobs1" / name).read_bytes() == (tmp_path / "jobs2" / name).read_bytes()


def test_a_task_that_takes_its_process_down_costs_that_task_alone() -> None:
    tasks = [1, 2, 13, 3, 4, 5]
    assert dict(spread(square, tasks, 2, minus_one)) == {1: 1, 2: 4, 13: -1, 3: 9, 4: 16, 5: 25}


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from envs.corpora.pool import spread\n"
        "from tests.corpora import minus_one, wait_for_ever\n"
        "if __name__ == '__main__':\n"
        "    list(spread(wait_for_ever, [sys.argv[1]] * 2, 2, minus_one))\n"
    )
    (tmp_path / "parent.py").write_text(code)
    (tmp_path / "pids").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "pids")]
    parent = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    pids: list[int] = []
    while len(pids) < 2:
        assert parent.poll() is None
        time.sleep(0.1)
        pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
        time.sleep(0.1)  # the test's own time limit ends a hang


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("argument", [["--layout", "fischer"], ["--activity", "loud"]])
def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path, argument: list[str]) -> None:
    root = corpus(tmp_path / "corpus")
    command = [sys.executable, "-m", "launch.cli", "segments", str(root), "--out", str(tmp_path / "out"), *argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("uptake: ") and done.stderr.count("\n") == 1


def test_the_commands_print_what_they_found(tmp_path: Path) -> None:
    root, out = corpus(tmp_path / "corpus"), tmp_path / "out"
    (root / "words.wav").write_text("no audio")
    run = CliRunner()
    done = run.invoke(app, ["segments", str(root), "--out", str(out), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert "5 of 6 recordings read" in done.output
    assert "1 left out: unreadable" in done.output
    assert "5 segments" in done.output
    done = run.invoke(app, ["fit", str(out)])
    assert done.exit_code == 0, done.output
    assert "5 conversations" in done.output and "pause, s" in done.output
    again = run.invoke(app, ["fit", str(out), "--laws", str(out / "laws.json")])
    assert again.exit_code == 0, again.output

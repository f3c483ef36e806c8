"""A run folder belongs to one process, and to the run that it was started as."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from align import config as train_config
from align.config import dump_config, load_config, save_config
from align.loading import load_policy
from align.trainers import sft_config
from envs.errors import UptakeError
from launch import lock, sft
from launch.run_folder import alone, check_start, started_with
from launch.train import claim
from tests.tiny_checkpoint import tiny_checkpoint

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from launch import lock
lock.take(Path(sys.argv[1]))
left = None
if sys.argv[3] == "fork":
    left = os.fork()
    if not left:
        time.sleep(60)
if sys.argv[3] == "program":
    left = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid
print(left or os.getpid(), flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holder(folder: Path, seconds: float, leaves: str = "nothing") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has the folder for so long, and the one that it leaves behind."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds), leaves], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = int(process.stdout.readline())
    try:
        yield process, left
    finally:
        process.kill()
        process.wait()
        if left != process.pid:
            os.kill(left, signal.SIGKILL)


def test_a_folder_that_is_in_use_is_refused_with_the_process_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT", 0.3)
    with holder(tmp_path, 60) as (process, _), pytest.raises(UptakeError) as told:
        lock.take(tmp_path)
    assert str(told.value).startswith(f"{tmp_path} is in use: process {process.pid} on ")
    assert "wait for its end, or stop it and go on with --resume" in str(told.value)


@pytest.mark.parametrize("leaves", ["nothing", "fork", "program"])
def test_the_lock_of_a_process_that_was_killed_is_open_at_once_whatever_outlives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    monkeypatch.setattr(lock, "WAIT", 0.0)
    with holder(tmp_path, 60, leaves) as (process, left):
        process.kill()
        process.wait()
        if leaves != "nothing":
            os.kill(left, 0)  # it is there
        lock.release(lock.take(tmp_path))


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path, 1.0):
        lock.release(lock.take(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone(tmp_path / "run", resume=False):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/run/.lock: this file system has no locks" in line


def test_a_folder_that_holds_a_run_or_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match="no run to resume"), alone(tmp_path / "new", resume=True):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UptakeError, match="holds a run already"), alone(tmp_path, resume=False):
        pass
    assert not (tmp_path / ".lock").exists()


def test_what_a_run_starts_from_is_kept_and_what_has_changed_is_named(tmp_path: Path) -> None:
    check_start(tmp_path, True, {"pack mine": "a" * 64})  # a run of an older version
    check_start(tmp_path, True, {"pack mine": "a" * 64})
    for now, says in (
        ({"pack mine": "b" * 64}, "pack mine is not what it was when the run was started .SHA-256 aaaaaaaaaaaa, now b"),
        ({}, "pack mine is not what it was .* now missing"),
        ({"pack mine": "a" * 64, "more": "c"}, "more is not what it was .*SHA-256 missing, now c.; bring it back, or"),
    ):
        with pytest.raises(UptakeError, match=says):
            check_start(tmp_path, True, now)
    assert json.loads((tmp_path / "start.json").read_text()) == {"pack mine": "a" * 64}
    for content, says in (("", "empty; delete it"), ('{"pack', "not JSON"), ('{"pack mine": 3}', "SHA-256 3, now a")):
        (tmp_path / "start.json").write_text(content)
        with pytest.raises(UptakeError, match=says):
            check_start(tmp_path, True, {"pack mine": "a" * 64})


@pytest.mark.parametrize("content", [b"", b"name: [", b"\0" * 300, b"\xff\xfe", b"sft: {}\n", b"- 1\n"])
def test_a_run_whose_configuration_is_damaged_is_told_how_to_write_it_again(tmp_path: Path, content: bytes) -> None:
    config = load_config("quickstart", [f"runs={tmp_path}"])
    claim(config.folder, config, resume=False)
    file = config.folder / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UptakeError, match="write it again, with what --dry-run prints of the run as it was") as told:
        claim(config.folder, config, resume=True)
    assert str(told.value).startswith(f"{file}: not the configuration of this run (") and file.read_bytes() == content
    with pytest.raises(UptakeError, match="not the configuration of this run"):
        started_with(config.folder, sft_config.load_config)
    file.write_text(dump_config(config))
    claim(config.folder, config, resume=True)


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_config("quickstart", [f"runs={tmp_path}"])
    save_config(trained, trained.folder / "config.yaml")
    policy = f"policy={tiny_checkpoint(tmp_path / 'policy')}"
    warm = sft_config.load_config("pocket", [policy, "data.path=x", f"runs={tmp_path}"])
    loaded = load_policy(warm.policy)
    sft._claim(warm, loaded, resume=False)
    written = Path.write_text

    def killed(path: Path, text: str, encoding: str) -> None:
        written(path, text[:40], encoding)
        raise KeyboardInterrupt

    for folder, again in (
        (trained.folder, lambda: train_config.save_config(trained, trained.folder / "config.yaml")),
        (warm.folder, lambda: sft._claim(warm, loaded, resume=True)),
    ):
        before = (folder / "config.yaml").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                again()
        assert (folder / "config.yaml").read_bytes() == before

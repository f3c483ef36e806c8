"""A disk that is really full, again and again, under the real command: one line, status 2, nothing finished is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import checkpoints
from align.monitor import Monitor
from align.policies.moshi.policy import MoshiPolicy
from align.trainers.run import Run
from launch import train
from tests.child import command
from tests.integration.test_quickstart import SMALL, figures
from tests.packs import write_tiny_pack
from tests.small_disk import SmallDisk, small_disk
from tests.tiny_checkpoint import tiny_checkpoint

ITERATIONS = 4


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("full") / "disk") as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    return [
        "train", "quickstart", f"policy={tiny_checkpoint(folder / 'policy')}",
        f"pack={write_tiny_pack(folder / 'pack')}", *SMALL, f"grpo.iterations={ITERATIONS}", "grpo.save_steps=1",
        "grpo.log_episodes_steps=1",
    ]  # fmt: skip


def fill_before(disk: SmallDisk, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Fill the disk when the owner's function is about to be called with such arguments."""
    function = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            disk.fill()
        return function(*args, **kwargs)

    setattr(owner, name, called)


PLACES: list[tuple[str, Any, str, Callable[..., bool], int, str]] = [
    # what is about to be written; who writes it, and when; iterations in the last checkpoint; what the line names
    ("metrics", Monitor, "log", lambda monitor, iteration, *rest: iteration == 0, 0, "metrics.jsonl: no space left"),
    (
        "episode", Run, "_keep", lambda run, iteration, *rest: iteration == 1, 1,
        "episodes/training/iteration-000001: no space left",
    ),
    (
        "checkpoint", checkpoints, "save_checkpoint", lambda folder, iteration: iteration == 3, 2,
        "cannot write the checkpoint of iteration 3: .*; the last one, iteration-000002, is intact. Free some space",
    ),
    ("policy", MoshiPolicy, "export", lambda *rest: True, ITERATIONS, "policy/.*: no space left"),
    ("report", train, "write_report", lambda *rest: True, ITERATIONS, "report.html: no space left"),
]  # fmt: skip


def test_a_run_whose_disk_is_full_at_every_thing_it_writes_ends_bit_for_bit_as_in_peace(
    disk: SmallDisk, world: list[str], tmp_path: Path
) -> None:
    errors = tmp_path / "errors"
    assert command([*world, f"runs={tmp_path}", "name=peace"], errors)[0] == 0, errors.read_text()
    run, resume = disk.path / "again", []
    for place, owner, name, when, done, says in PLACES:
        disk.make_room()
        status, lines = command(
            [*world, f"runs={disk.path}", "name=again", *resume], errors,
            lambda o=owner, n=name, w=when: fill_before(disk, o, n, w),  # type: ignore[misc]
        )  # fmt: skip
        assert (status, len(lines)) == (2, 1), (place, lines)
        assert re.search(says, lines[0]), lines[0]
        assert "free some" in lines[0].lower() and "--resume" in lines[0], place
        found = checkpoints.list_checkpoints(run / "checkpoints")
        assert [checkpoints.verify(path) for path in found] == [None] * len(found), place  # all whole
        assert (found[-1].name if found else "") == (f"iteration-{done:06d}" if done else ""), place
        assert not list((run / "checkpoints").glob(".*")), place
        resume = ["--resume"]
    disk.make_room()
    assert command([*world, f"runs={disk.path}", "name=again", *resume], errors)[0] == 0, errors.read_text()
    assert figures(run) == figures(tmp_path / "peace")
    for file in (tmp_path / "peace" / "policy").iterdir():
        assert (run / "policy" / file.name).read_bytes() == file.read_bytes()
    assert (run / "report.html").stat().st_size > 10_000

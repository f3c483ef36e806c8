"""The time left that a run shows: what training still needs, and what comes after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import monitor
from align.monitor import Monitor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still: its reading is the list's only element."""
    now = [1000.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_left_holds_the_iterations_that_remain_and_what_comes_after(
    tmp_path: Path, clock: list[float]
) -> None:
    with Monitor(tmp_path, 12, first=7, tail=30.0) as shown:
        assert shown.time_left() == ""
        for iteration, left in ((7, "1 min 10 s"), (8, "1 min 00 s"), (9, "50 s"), (10, "40 s"), (11, "30 s")):
            clock[0] += 10.0
            shown.log(iteration, {}, {})
            assert shown.time_left() == f"{left} left"


def test_the_time_that_wandb_takes_to_start_is_not_an_iterations(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Started:
        def log(self, *arguments: object, **settings: object) -> None:
            pass

        finish = log

    def slowly(**settings: object) -> Started:
        clock[0] += 100.0
        return Started()

    monkeypatch.setattr(wandb, "init", slowly)
    with Monitor(tmp_path, 3, wandb_mode="offline") as shown:
        clock[0] += 10.0
        shown.log(0, {}, {})
        assert shown.time_left() == "20 s left"

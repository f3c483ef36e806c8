"""What a run says while it runs: `metrics.jsonl`, wandb if wanted, and one live line on the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Monitor:
    """Metrics of rank 0, an iteration at a time; other ranks hold a silent one.

    The time left is the mean of the iterations that this process has finished, times those that remain, plus `tail`,
    the seconds that whoever trains needs afterwards; until an iteration is finished it says nothing.
    """

    def __init__(
        self,
        folder: Path,
        iterations: int,
        *,
        first: int = 0,
        tail: float = 0.0,
        active: bool = True,
        wandb_mode: str = "disabled",
        project: str = "uptake",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder, self._iterations, self._first, self._active = folder, iterations, first, active
        self._tail = tail
        self._wandb_mode, self._project, self._config = wandb_mode, project, dict(config or {})
        self._wandb: Any = None
        self._progress: Progress | None = None
        self._started = 0.0
        self._iteration = first
        self._rewards = ""

    def __enter__(self) -> Monitor:
        if not self._active:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        _keep_before(self._folder / "metrics.jsonl", self._first)
        if self._wandb_mode != "disabled":
            import wandb

            self._wandb = wandb.init(
                project=self._project,
                name=self._folder.name,
                dir=str(self._folder),
                mode=self._wandb_mode,  # type: ignore[arg-type]
                config=self._config,
                settings=wandb.Settings(silent=True),  # it would write across the progress bar
            )
        console = Console(file=sys.stdout)
        if console.is_terminal:
            columns = (
                TextColumn("iteration {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}  {task.fields[rewards]}  {task.fields[phase]}"),
            )
            self._progress = Progress(*columns, console=console, refresh_per_second=4)
            self._progress.add_task("", total=self._iterations, completed=self._first, left="", rewards="", phase="")
            self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def phase(self, text: str) -> None:
        """What is being done right now."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], phase=text)

    def log(self, iteration: int, metrics: Mapping[str, float], rewards: Mapping[str, float]) -> None:
        """One finished iteration.

        Args:
            iteration: from 0.
            metrics: one line of `metrics.jsonl`.
            rewards: axis -> reward, for the terminal.
        """
        if not self._active:
            return
        with open(self._folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **metrics}, sort_keys=True) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=iteration)
        self._iteration = iteration + 1
        shown = "  ".join(f"{axis} {value:+.2f}" for axis, value in rewards.items())
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=self._iteration, left=self.time_left(), rewards=shown)
        else:
            print(f"iteration {self._iteration}/{self._iterations}  {self.time_left()}  {shown}", flush=True)

    def time_left(self) -> str:
        """`1 min 20 s left`, or an empty string while nothing is known."""
        done = self._iteration - self._first
        if done < 1:
            return ""
        seconds = (time.perf_counter() - self._started) / done * (self._iterations - self._iteration)
        return f"{duration(seconds + self._tail)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _keep_before(path: Path, iteration: int) -> None:
    """Drop the lines of iterations that will be done again, and a half-written last line."""
    path.touch()
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] < iteration:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)

"""What a run says while it runs: `metrics.jsonl`, wandb and TensorBoard if wanted, and live lines on the terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from envs.errors import UptakeError
from envs.files import named, whole

if TYPE_CHECKING:
    from envs.episode import Episode


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
        tensorboard: bool = False,
        config: Mapping[str, Any] | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """
        Args:
            on_phase: told what is being done, on every rank.
        """
        self._folder, self._iterations, self._first, self._active = folder, iterations, first, active
        self._tail = tail
        self._wandb_mode, self._project, self._config = wandb_mode, project, dict(config or {})
        self._on_phase = on_phase
        self._with_tensorboard = tensorboard
        self._wandb: Any = None
        self._tensorboard: Any = None
        self._progress: _Lines | None = None
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

            self._wandb = self._wandb_run(wandb)
        if self._with_tensorboard:
            self._tensorboard = _summary_writer(self._folder / "tensorboard", self._first)
        console = Console(file=sys.stdout)
        if console.is_terminal:
            columns = (
                TextColumn("iteration {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}  {task.fields[rewards]}  {task.fields[phase]}"),
            )
            self._progress = _Lines(*columns, console=console, refresh_per_second=4)
            self._progress.add_task("", total=self._iterations, completed=self._first, left="", rewards="", phase="")
            self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def _wandb_run(self, wandb: Any) -> Any:
        known = _wandb_id(self._folder)
        try:
            return wandb.init(
                project=self._project,
                name=self._folder.name,
                id=known,
                resume="allow" if known else None,
                dir=str(self._folder),
                mode=self._wandb_mode,
                config=self._config,
                settings=wandb.Settings(silent=True),  # it would write across the progress bar
            )
        except wandb.errors.Error as error:
            raise UptakeError(
                f"wandb.mode = {self._wandb_mode}: {error}; mend that, or go on with --resume wandb.mode=offline"
            ) from error

    def phase(self, text: str) -> None:
        """What is being done right now."""
        self._on_phase(f"iteration {self._iteration}: {text}")
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], phase=text)

    def log(
        self,
        iteration: int,
        metrics: Mapping[str, float],
        rewards: Mapping[str, float],
        alarms: Sequence[str] = (),
    ) -> None:
        """One finished iteration.

        Args:
            iteration: from 0.
            metrics: one line of `metrics.jsonl`.
            rewards: axis -> reward, for the terminal.
            alarms: lines that are shown at once and stay.
        """
        self._iteration = iteration + 1
        if not self._active:
            return
        path = self._folder / "metrics.jsonl"
        with named(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **metrics}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint survives a power cut, so must the lines before it
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=iteration)
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, iteration)
        shown = "  ".join(f"{axis} {value:+.2f}" for axis, value in rewards.items())
        detail = figures(metrics)
        for alarm in alarms:
            self._say(f"ALARM iteration {iteration}: {alarm}")
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.detail = detail
            self._progress.update(task, completed=self._iteration, left=self.time_left(), rewards=shown)
        else:
            said = f"iteration {self._iteration}/{self._iterations}  {self.time_left()}  {shown}"
            print(f"{said}  {detail}".rstrip(), flush=True)

    def conversation(self, iteration: int, episode: Episode) -> None:
        """Show one conversation of an iteration where audio and pictures can be shown."""
        if self._wandb is None and self._tensorboard is None:
            return
        import numpy as np
        from PIL import Image

        from align.report import stereo, timeline_png  # matplotlib: not before it is needed

        audio, rate = stereo(episode), episode.clock.sample_rate
        picture = np.asarray(Image.open(io.BytesIO(timeline_png(episode)[0])).convert("RGB"))  # (H, W, 3)
        if self._wandb is not None:
            import wandb

            said = " ".join(word.text for word in episode.transcript)
            shown = {
                "episode/audio": wandb.Audio(audio, sample_rate=rate, caption=said),
                "episode/timeline": wandb.Image(picture, caption=said),
            }
            self._wandb.log(shown, step=iteration)
        if self._tensorboard is not None:
            for side in ("user", "agent"):  # it plays one channel only
                self._tensorboard.add_audio(f"episode/{side}", getattr(episode, side)[None], iteration, rate)
            self._tensorboard.add_image("episode/timeline", picture, iteration, dataformats="HWC")

    def _say(self, line: str) -> None:
        """One line that stays."""
        if self._progress is not None:
            self._progress.console.print(escape(line), style="bold red", highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def time_left(self) -> str:
        """`1 min 20 s left`, or an empty string while nothing is known."""
        done = self._iteration - self._first
        if done < 1:
            return ""
        seconds = (time.perf_counter() - self._started) / done * (self._iterations - self._iteration)
        return f"{duration(seconds + self._tail)} left"


_FIGURES = (
    ("loss/text", "text {:.3f}"),
    ("loss/control", "control {:.3f}"),
    ("loss/audio", "audio {:.3f}"),
    ("dev/text", "dev text {:.3f}"),
    ("dev/control", "dev control {:.3f}"),
    ("dev/audio", "dev audio {:.3f}"),
    ("kl", "kl {:.4f}"),
    ("ratio/mean", "ratio {:.3f}"),
    ("entropy", "entropy {:.2f}"),
    ("frac_reward_zero_std", "no contrast {:.0%}"),
    ("sampling/sampling_logp_difference/mean", "mismatch {:.1e}"),
    ("time/rollout", "conversing {:.1f} s"),
    ("time/judge", "judging {:.1f} s"),
    ("time/update", "updating {:.1f} s"),
)


def figures(metrics: Mapping[str, float]) -> str:
    """What of an iteration's metrics is worth a line on the terminal: speed, health, and where the time went."""
    parts = []
    if "rollout/frames_per_second" in metrics:
        factor = metrics.get("rollout/real_time_factor", 0.0)
        parts.append(f"{metrics['rollout/frames_per_second']:.0f} frames/s ({factor:.0f} x real time)")
    parts += [text.format(metrics[name]) for name, text in _FIGURES if name in metrics]
    return "  ".join(parts)


class _Lines(Progress):
    """A progress bar with a line of figures below it."""

    detail = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.detail:
            yield self.detail


def _wandb_id(folder: Path) -> str | None:
    """What wandb calls the run of this folder, so that a resumed one goes on there; None if it has not met it."""
    met = sorted(path.name for path in folder.glob("wandb/*run-*-*"))
    return met[-1].rpartition("-")[2] if met else None


def _summary_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UptakeError(
            "tensorboard = true, and it is not installed: pip install 'uptake[tensorboard]', or set it to false"
        ) from error
    return SummaryWriter(str(folder), purge_step=first)


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
    with whole(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")

"""One conversation as one picture: what the user said, what the agent did, and how it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from envs.activity import activity
from envs.episode import Episode
from envs.event import BARGE_IN_TYPES, PAUSE_TYPES, Event, Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_USER, _AGENT, _GRID = "#3b6ea5", "#c8553d", "#d9d9d9"
_SHADES = {"pause": "#f2c14e", "barge": "#d1495b", "story": "#66a182", "turn": "#9fb8d1", "rest": "#b0a8b9"}
_GOOD, _MIXED, _BAD = "#2a7f3f", "#a06a00", "#b3261e"


class Judged(Protocol):
    """What is drawn of a verdict."""

    @property
    def value(self) -> float | None:
        """In [-1, 1], or None where it does not apply."""

    @property
    def window(self) -> tuple[int, int]:
        """Samples that it is about."""

    @property
    def term(self) -> str:
        """Name of the reward term."""


def draw(episode: Episode, verdicts: Sequence[Judged] = (), title: str = "") -> Figure:
    """Draw an episode: user lane, agent lane, event spans, verdicts, on one axis of seconds.

    Args:
        episode: the record.
        verdicts: what rewards said; those whose value is None are left out.
        title: the scenario id if empty.

    Returns:
        A figure that is not registered with pyplot, so that it needs no closing.
    """
    from matplotlib.figure import Figure  # here, so that importing envs does not load matplotlib

    judged = sorted((v for v in verdicts if v.value is not None), key=lambda v: v.window)
    rows = _stack([(episode.clock.seconds(v.window[0]), _label(v)) for v in judged], episode.seconds)
    lanes = max(rows, default=-1) + 1
    figure = Figure(figsize=(max(8.0, 0.9 * episode.seconds + 2.0), 3.6 + 0.22 * lanes), layout="constrained")
    axes = figure.add_subplot()
    for event in episode.events:
        _span(axes, episode, event)
    _lane(axes, episode, episode.user, _words_of(episode.events), 1.0, _USER)
    _lane(axes, episode, episode.agent, episode.transcript, -1.0, _AGENT)
    for verdict, row in zip(judged, rows, strict=True):
        start, end = (episode.clock.seconds(sample) for sample in verdict.window)
        value = float(verdict.value or 0.0)
        colour = _GOOD if value > 0.3 else _BAD if value < -0.3 else _MIXED
        level = -2.25 - 0.34 * row
        axes.plot([start, max(end, start + 0.02)], [level, level], color=colour, linewidth=3, solid_capstyle="butt")
        axes.text(start, level + 0.05, _label(verdict), color=colour, fontsize=7, va="bottom", ha="left")
    axes.set_xlim(0, max(episode.seconds, episode.clock.frame_seconds))
    axes.set_ylim(-2.1 - 0.34 * lanes, 2.45)
    axes.set_yticks([1.0, -1.0], ["user", "agent"])
    axes.set_xlabel("seconds")
    axes.grid(axis="x", color=_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)
    axes.set_title(title or str(episode.meta.get("scenario", "")), loc="left", fontsize=10)
    return figure


def image(episode: Episode, verdicts: Sequence[Judged] = (), title: str = "", dpi: int = 100) -> np.ndarray:
    """The picture that `draw` gives, as (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(draw(episode, verdicts, title))
    canvas.figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _lane(axes: Axes, episode: Episode, audio: np.ndarray, words: Sequence[Word], centre: float, colour: str) -> None:
    """The peaks of a track round `centre`, speech underlined, words below."""
    bins = max(1, min(1600, audio.size // 120))
    edges = np.linspace(0, audio.size, bins + 1).astype(int)
    peaks = np.maximum.reduceat(np.abs(audio), edges[:-1]) if audio.size else np.zeros(bins)
    height = 0.55 * np.sqrt(peaks / max(float(peaks.max(initial=0.0)), 0.05))  # square root: quiet speech stays visible
    times = (edges[:-1] + edges[1:]) / 2 / episode.clock.sample_rate
    axes.fill_between(times, centre - height, centre + height, color=colour, linewidth=0, alpha=0.85)
    for onset, offset in activity(audio):
        span = [episode.clock.seconds(onset), episode.clock.seconds(offset)]
        axes.plot(span, [centre - 0.62] * 2, color=colour, linewidth=2, solid_capstyle="butt")
    free = [0.0, 0.0, 0.0]  # where each of three levels is free again, so that neighbours do not run into each other
    for word in words:
        start = episode.clock.seconds(word.onset)
        row = next((i for i, end in enumerate(free) if end <= start), free.index(min(free)))
        free[row] = start + 0.068 * (len(word.text) + 1)  # seconds a character takes at 0.9 inches a second
        axes.text(start, centre - 0.68 - 0.15 * row, word.text, fontsize=6.5, va="top", ha="left", color="#222222")


def _span(axes: Axes, episode: Episode, event: Event) -> None:
    if event.type in PAUSE_TYPES:
        kind = "pause"
    elif event.type in BARGE_IN_TYPES:
        kind = "barge"
    else:
        kind = {"B7": "story", "A1": "turn", "A3": "turn"}.get(event.type, "rest")
    start, end = episode.clock.seconds(event.onset), episode.clock.seconds(event.offset)
    top = 1.78 if kind == "pause" else 2.1
    axes.axvspan(start, end, color=_SHADES[kind], alpha=0.35 if kind == "pause" else 0.16, linewidth=0)
    if not event.id.endswith(".turn"):
        axes.text(start, top, f"{event.type} {event.id}", fontsize=7, va="bottom", ha="left", color="#444444")
    for name, sample in event.anchors.items():
        if name != "agent_speaking_since":
            axes.axvline(episode.clock.seconds(sample), color="#777777", linewidth=0.8, linestyle=":")


def _words_of(events: Sequence[Event]) -> list[Word]:
    """The user's words, each once (a monologue and its turn event share theirs)."""
    return sorted({word for event in events if event.source == "user" for word in event.words}, key=lambda w: w.onset)


def _label(verdict: Judged) -> str:
    return f"{verdict.term} {verdict.value:+.2f}"


def _stack(labels: Sequence[tuple[float, str]], seconds: float) -> list[int]:
    """The lowest free row for each label, in order, so that none is written over another."""
    free: list[float] = []
    rows = []
    for start, text in labels:
        width = max(0.11 * len(text), 0.3) * max(1.0, seconds / 12.0)
        row = next((i for i, end in enumerate(free) if end <= start), len(free))
        if row == len(free):
            free.append(0.0)
        free[row] = start + width
        rows.append(row)
    return rows

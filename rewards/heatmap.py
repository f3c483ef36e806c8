"""An audit as one picture: how far below the oracle each attack stays, on each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(gaps: Mapping[str, Mapping[str, float | None]], margin: float, title: str) -> Figure:
    """Draw a table of gaps, green where the attack loses and red where it comes within the margin.

    Args:
        gaps: row (a reward, or a term of one) -> attack -> the oracle's value minus the attack's; None: not judged.
        margin: what a gap must be at least.
        title: written above.

    Returns:
        A figure that is not registered with pyplot, so that it needs no closing.
    """
    from matplotlib.colors import TwoSlopeNorm  # here, so that importing rewards does not load matplotlib
    from matplotlib.figure import Figure

    rows = list(gaps)
    columns = list(dict.fromkeys(attack for row in gaps.values() for attack in row))
    values = np.array([[np.nan if (gap := gaps[r].get(c)) is None else gap for c in columns] for r in rows])
    figure = Figure(figsize=(2.6 + 0.95 * len(columns), 1.5 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#eeeeee")
    norm = TwoSlopeNorm(margin, margin - 1.0, margin + 1.0)
    axes.imshow(values, cmap="RdYlGn", norm=norm, aspect="auto")
    for (y, x), gap in np.ndenumerate(values):
        text, weight = ("–", "normal") if np.isnan(gap) else (f"{gap:+.2f}", "bold" if gap < margin else "normal")
        axes.text(x, y, text, ha="center", va="center", fontsize=8, fontweight=weight, color="#222222")
    labels = [name.replace("_", " ") for name in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=25, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(f"{title}; the oracle's value minus the attack's, bold below the margin of {margin:g}", fontsize=8)
    return figure

"""What the terminal shows: tables of figures, and progress with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from align.report import MARKS, change, interval, number

_COLOURS = {"better": "green", "worse": "bold red", "unchanged": "dim", "moved": "yellow", "": "dim"}


def comparison_table(result: Mapping[str, Any]) -> Table:
    """Before, after, Δ with its interval and the verdict; the scripted agents on the right."""
    run = result["run"]
    table = Table(
        title=f"{run['episodes']} conversations of the {run['split']} split, same users and seeds on both sides",
        title_justify="left",
    )
    table.add_column("measure")
    for name in ("before", "after", "Δ", "95 % interval"):
        table.add_column(name, justify="right")
    table.add_column("")
    for system in result["systems"]:
        table.add_column(system["label"], justify="right", style="dim")
    for row in result["rows"]:
        unit = row["unit"]
        arrow = {"higher": " ↑", "lower": " ↓"}.get(row["better"], "")
        table.add_row(
            f"[bold]{row['label']}[/]{arrow}" if row["headline"] else f"{row['label']}{arrow}",
            number(row["before"], unit),
            number(row["after"], unit),
            change(row["delta"], unit),
            interval(row).replace("[", r"\["),
            f"[{_COLOURS[row['verdict']]}]{MARKS[row['verdict']]}[/]",
            *(number(system["values"].get(row["measure"]), unit) for system in result["systems"]),
        )
    return table


def single_table(label: str, rows: list[Mapping[str, Any]]) -> Table:
    """One system's figures."""
    table = Table()
    table.add_column("measure")
    table.add_column(label, justify="right")
    table.add_column("95 % interval", justify="right")
    for row in rows:
        unit = row["unit"]
        around = "" if row["low"] is None else f"\\[{number(row['low'], unit)}, {number(row['high'], unit)}]"
        table.add_row(row["label"], number(row["value"], unit), around)
    return table


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for `total` steps; yields a function that says how many steps more are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)

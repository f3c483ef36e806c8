"""What the terminal shows: tables of figures, and progress with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from align.comparison import CONSTANT
from align.report import MARKS, acoustics_of, change, interval, number

WIDE = 170
"""Columns that a comparison with the scripted agents beside it needs."""
_COLOURS = {"better": "green", "worse": "bold red", "unchanged": "dim", "moved": "yellow", "": "dim"}


def make_console() -> Console:
    """A console as wide as its terminal, or wide enough for the tables when the output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def comparison_tables(result: Mapping[str, Any], width: int) -> list[Table]:
    """Before, after, Δ with its interval and the verdict; the scripted agents beside it, or below if it is narrow."""
    run, rows, systems = result["run"], result["rows"], result["systems"]
    labels = [_label(row) for row in rows]
    columns = {
        "before": [number(row["before"], row["unit"]) for row in rows],
        "after": [number(row["after"], row["unit"]) for row in rows],
        "Δ": [change(row["delta"], row["unit"]) for row in rows],
        "95 % interval": [interval(row).replace("[", r"\[") for row in rows],
        "verdict": [f"[{_COLOURS[row['verdict']]}]{MARKS[row['verdict']]}[/]" for row in rows],
    }
    scripted = {
        system["label"]: [number(system["values"].get(row["measure"]), row["unit"]) for row in rows]
        for system in systems
    }
    title = f"{run['episodes']} conversations of the {run['split']} split, same users and seeds on both sides"
    title += escape(acoustics_of(run))
    if width >= WIDE or not scripted:
        return [_table(title, labels, columns | scripted)]
    return [_table(title, labels, columns), _table("scripted agents in the same conversations", labels, scripted)]


def ranking_line(result: Mapping[str, Any]) -> str:
    """Whether the constant agents score below both checkpoints, and the oracle above; empty if none was measured."""
    ranking = result["ranking"]
    parts = []
    for key, names, wanted in (
        ("constant_below", CONSTANT, "below"),
        ("oracle_above", ("oracle",), "above"),
    ):
        if ranking[key] is not None:
            scores = {name: score for name, score in ranking["scores"].items() if name in names}
            listed = ", ".join(f"{name.replace('_', ' ')} {number(score)}" for name, score in scores.items())
            parts.append(f"{listed}: {'' if ranking[key] else 'NOT '}{wanted} both checkpoints")
    return f"paired score of {'; '.join(parts)}" if parts else ""


def single_table(label: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One system's figures."""
    columns = {
        label: [number(row["value"], row["unit"]) for row in rows],
        "95 % interval": [
            "" if row["low"] is None else rf"\[{number(row['low'], row['unit'])}, {number(row['high'], row['unit'])}]"
            for row in rows
        ],
    }
    return _table("", [row["label"] for row in rows], columns)


def type_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """p50, p95 and p99 of every timing by the type of the event."""
    labels = [f"{row['type']} {row['event']}: {row['text']}" for row in rows]
    columns = {"n": [f"{row['n']:.0f}" for row in rows]}
    columns |= {name: [number(row[name], "s") for row in rows] for name in ("p50", "p95", "p99")}
    return _table("timing by the type of the event", labels, columns)


def compat_table(name: str, found: Mapping[str, Any]) -> Table:
    """A published evaluator's figures: as coded, and with its bugs off, with the cases of each."""
    rows = found["rows"]
    columns = {}
    for column in found["bugs"]:
        cells = [row["columns"][column] for row in rows]
        columns[column] = [number(cell["value"], row["unit"]) for cell, row in zip(cells, rows, strict=True)]
        columns[f"n, {column}"] = [f"{cell['cases']:.0f}" for cell in cells]
    labels = [f"{'– ' if row['text'].startswith('control') else ''}{row['figure']}{_arrow(row)}" for row in rows]
    return _table(f"{name} ({found['source']})", labels, columns)


def _table(title: str, labels: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title or None, title_justify="left")
    table.add_column("measure", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for cells in zip(labels, *columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _label(row: Mapping[str, Any]) -> str:
    return f"[bold]{row['label']}[/]{_arrow(row)}" if row["headline"] else f"{row['label']}{_arrow(row)}"


def _arrow(row: Mapping[str, Any]) -> str:
    return {"higher": " ↑", "lower": " ↓"}.get(row["better"], "")


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar; yields a function that takes how many steps more are done and, if it has changed, the total."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)

        def advance(steps: int, out_of: int | None = None) -> None:
            progress.update(task, advance=steps, total=out_of)

        yield advance

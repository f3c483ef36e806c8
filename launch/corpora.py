"""`uptake segments` and `uptake fit`: what recordings of people hold, and how people time themselves in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from envs.corpora import journal, laws
from envs.corpora.axes import REASONS
from envs.corpora.extraction import extract
from envs.corpora.recording import READ_REASONS
from envs.corpora.simulated import simulated
from envs.users.laws import load_laws, to_json
from launch.terminal import counting, make_console


def run_segments(
    root: Path,
    out: Path,
    *,
    layout: str | None,
    activity: str,
    per_axis: int,
    seed: int,
    jobs: int,
    console: Console | None = None,
) -> None:
    """Extract the four axes' segments of a corpus and print what was found, and why the rest was not.

    Raises:
        UptakeError: as `envs.corpora.extraction.extract`.
    """
    console = console or make_console()
    seen = 0

    def report(done: int, total: int) -> None:
        nonlocal seen
        advance(done - seen, total)
        seen = done

    with counting(console, "recordings", 0) as advance:
        summary = extract(
            root, out, layout=layout, activity=activity, per_axis=per_axis, seed=seed, jobs=jobs, report=report
        )
    for line in summary_lines(summary):
        console.print(line, highlight=False)
    console.print(segments_table(summary))
    console.print(f"{out / 'segments.jsonl'}: {sum(a['drawn'] for a in summary['axes'].values())} segments")


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was read, and what was not and why."""
    read = summary["recordings"]
    sources = ", ".join(f"{count} by {name}" for name, count in read["activity"].items())
    lines = [
        f"layout {summary['layout']}: {read['read']} of {read['found']} recordings read, {read['hours']:.2f} h; "
        f"speech {sources or 'of none'}; thresholds {summary['thresholds']['version']}"
    ]
    if read["clipped"]:
        lines.append(f"{read['clipped']} clipped (more than 0.1 % of the samples), used all the same")
    for reason, count in read["rejected"].items():
        lines.append(f"[yellow]{count} left out[/]: {reason}, {READ_REASONS[reason]}")
    return lines


def segments_table(summary: Mapping[str, Any]) -> Table:
    """Counts of each axis, and under it a line for each reason."""
    table = Table(title="segments", title_justify="left")
    for name in ("axis", "candidates", "rejected", "accepted", "drawn", "minutes"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    for axis, counts in summary["axes"].items():
        rejected = sum(counts["rejected"].values())
        cells = (counts["candidates"], rejected, counts["accepted"], counts["drawn"])
        table.add_row(f"[bold]{axis}[/]", *map(str, cells), f"{counts['minutes']:.1f}")
        for reason, count in counts["rejected"].items():
            if count:
                table.add_row(f"  [dim]{reason}: {REASONS[axis][reason]}[/]", "", str(count), "", "", "")
    return table


def run_fit(out: Path, given: Path | None, console: Console | None = None) -> None:
    """Fit the timing laws of what `uptake segments` read into `out`, say how far simulated users are from the corpus,
    and write `laws.json`, which a reactive user takes, and the report `fit.json` there.

    What a corpus says too little about is left as the laws say that it is compared with.

    Args:
        out: the folder that `uptake segments` wrote.
        given: laws to compare with, and with what users do who live by them; None: the literature's.
        console: where to print.

    Raises:
        UptakeError: nothing was read there, or the laws are malformed.
    """
    console = console or make_console()
    name = "human" if given is None else str(given)
    known = load_laws(name)
    learned = laws.fit(laws.timings(out))
    users = laws.fit(simulated(name)).observed
    compared = {
        "simulated users": laws.distances(learned, {key: laws.seen_in(seen) for key, seen in users.items() if seen}),
        f"the laws {name}": laws.distances(learned, {key: laws.drawn_from(law) for key, law in known.items()}),
        "its own laws": laws.distances(learned, {key: laws.drawn_from(law) for key, law in learned.laws.items()}),
    }
    for file, content in (
        ("laws.json", to_json({**known, **learned.laws}, out.name)),
        ("fit.json", laws.to_json(learned, compared)),
    ):
        journal.replace(out / file, [json.dumps(content, indent=1) + "\n"])
    console.print(f"{learned.conversations} conversations, {learned.lapses} lapses of more than 5 s left out")
    console.print(laws_table(learned, compared))
    console.print(figures_table(learned))
    console.print(out / "laws.json")


def laws_table(learned: laws.Fit, compared: Mapping[str, Mapping[str, laws.Distance]]) -> Table:
    """Each quantity's law (of the spread, `pair` is the share between conversations), and how far what is from it."""
    table = Table(title="timing laws", title_justify="left")
    columns = ("quantity", "values", "law", "location", "spread", "pair", *(f"from {name}" for name in compared))
    for column in columns:
        table.add_column(column, justify="left" if column in ("quantity", "law") else "right")
    for quantity, unit in laws.UNITS.items():
        law, values = learned.laws.get(quantity), sum(group.size for group in learned.observed[quantity])
        shape = ("-",) * 4 if law is None else (law.dist, *(f"{number:.3f}" for number in (*law.params, law.dyad)))
        far = [_distance(found.get(quantity)) for found in compared.values()]
        table.add_row(f"{quantity.replace('_', ' ')}, {unit}", str(values), *shape, *far)
    return table


def _distance(found: laws.Distance | None) -> str:
    if found is None:
        return "-"
    low, high = found.w1_interval
    return rf"W1 {found.w1:.3f} \[{low:.3f}, {high:.3f}], KS {found.ks:.2f}"


def figures_table(learned: laws.Fit) -> Table:
    """Figures beside those of the literature."""
    table = Table(title="figures", title_justify="left")
    for column in ("figure", "here", "literature", "source"):
        table.add_column(column, justify="right" if column in ("here", "literature") else "left")
    for name, known in laws.PUBLISHED_FIGURES.items():
        here = f"{learned.figures[name]:.3f}" if name in learned.figures else "-"
        there = f"{known.low:g}" if known.low == known.high else f"{known.low:g} to {known.high:g}"
        table.add_row(name.replace("_", " "), here, there, known.source)
    return table

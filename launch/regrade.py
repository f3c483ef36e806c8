"""`uptake regrade` and `uptake export-episodes`: stored conversations, measured again or in another layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from align.evaluation import Evaluation, Measurements, write_json
from align.stored import Stored, find_stored
from envs.errors import UptakeError
from launch.grading import Grader, parse_compat, print_result
from launch.places import check_out_file
from launch.terminal import counting, make_console
from rewards.compat.fdb_folders import export_episodes
from rewards.detector import ENERGY, parse_detector
from rewards.measures import measure


def run_regrade(
    path: Path,
    *,
    compat: Sequence[str],
    out: Path | None,
    activity: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Measure stored conversations again, print every figure, and say whether what was stored is reproduced.

    Who speaks when is heard as it was when they were measured first, or as `activity` says.
    """
    console = console or make_console()
    if out is not None:
        check_out_file(out, "--out")
    columns, detector = parse_compat(compat), parse_detector(activity)
    results = {}
    for stored in find_stored(path):
        own = ENERGY if stored.evaluation is None else stored.evaluation.activity
        result = regrade(stored, Grader(columns, detector or own), console)
        print_result(console, result)
        if result["stored"] is not None:
            console.print(_verdict(result["stored"]), highlight=False)
        results[stored.name] = result
    if out is not None:
        write_json(next(iter(results.values())) if len(results) == 1 else results, out)
        console.print(f"written: {out}", soft_wrap=True)


def regrade(stored: Stored, grader: Grader, console: Console) -> dict[str, Any]:
    """Every figure of stored conversations.

    Returns:
        What `Grader.result` gives, and `stored`: how many conversations the evaluation had, how many of them are on
        disk, and the measures in which any of these differs from what was stored (None without an evaluation).
    """
    scenarios: dict[str, list[Measurements]] = {}
    shares: dict[str, list[str]] = {}
    changed: set[str] = set()
    count = len(stored.places) + len(stored.imported)
    with counting(console, f"grading {stored.name}", count) as advance:
        for key, episode, words in stored.conversations():
            again = measure(episode, words, grader.activity)
            scenarios.setdefault(key[0], []).append(again)
            shares[key[0]] = episode.meta.get("shares", [])
            grader.add(key, episode, words)
            if stored.evaluation is not None:
                changed |= _differences(_stored(stored.evaluation, key), again)
            advance(1)
    if stored.evaluation is None:
        evaluation = Evaluation(
            name=stored.name, split="", variants=0, frames=0, seed=0, pack="", pack_hash="",
            scenarios=scenarios, shares=shares,
        )  # fmt: skip
        return grader.result(evaluation) | {"stored": None}
    evaluation = replace(stored.evaluation, scenarios=scenarios, activity=grader.activity)
    told = {"conversations": stored.evaluation.episodes, "on_disk": count, "changed": sorted(changed)}
    return grader.result(evaluation) | {"stored": told}


def run_export(path: Path, out: Path, *, rate: int, console: Console | None = None) -> None:
    """Write stored conversations as folders of Full-Duplex-Bench."""
    console = console or make_console()
    found = find_stored(path)
    for stored in found:
        folder = out if len(found) == 1 else out / stored.name
        counts = export_episodes(((e, words) for _, e, words in stored.conversations()), folder, rate)
        if not counts:
            raise UptakeError(f"{path}: none of its conversations holds an event that the benchmark has a task for")
        for task, count in sorted(counts.items()):
            console.print(f"{folder / task}: {count} items", soft_wrap=True, highlight=False)


def _stored(evaluation: Evaluation, key: tuple[str, int]) -> Mapping[str, Sequence[float]]:
    try:
        return evaluation.scenarios[key[0]][key[1]]
    except (KeyError, IndexError):
        raise UptakeError(
            f"conversation {key[0]!r}, variant {key[1]}, is not one of the evaluation's; restore its folder"
        ) from None


def _differences(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> set[str]:
    """Measures whose contribution differs; one that the other version did not have yet does not count."""
    both = before.keys() & after.keys()
    return {name for name in both if list(before[name]) != list(after[name])}


def _verdict(told: Mapping[str, Any]) -> str:
    disk, total = told["on_disk"], told["conversations"]
    which = f"all {total} conversations" if disk == total else f"the {disk} of {total} conversations that are stored"
    if told["changed"]:
        return f"[bold red]differs[/] from what was stored in {which}: {', '.join(told['changed'])}"
    return f"identical to what was stored: every measurement of {which}"

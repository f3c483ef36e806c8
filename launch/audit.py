"""`uptake audit`: attack a reward, a composition or everything that ships, before a GPU hour is spent on it.

A term alone is audited beside the terms that it says it must be trained with (`Reward.beside`). The audit fails when an
attack gets away with it that is not declared in `rewards.holes`, or a declared one does not any more. It leaves
`NAME.json` and `NAME.png` in the output folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from align.config import load_config
from align.config import names as config_names
from align.evaluation import write_json
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.pack import Pack
from launch.judge import open_judge
from launch.meaning import open_meaning
from launch.places import check_out_folder
from launch.terminal import counting, make_console
from rewards import registry
from rewards.attacks import ATTACKS, ORACLE, PLAYS, paired_scenarios, play
from rewards.audit import Audit, companions, examine
from rewards.detector import ENERGY, parse_detector
from rewards.heatmap import draw
from rewards.holes import SHIPPED, declared
from rewards.judge.judge import Judge

Subjects = dict[str, Mapping[str, float]]
"""Name -> terms and weights."""


def run_audit(
    what: str | None,
    overrides: Sequence[str] = (),
    *,
    everything: bool,
    pack_path: str,
    split: str,
    scenarios: int,
    margin: float,
    seed: int,
    out: Path,
    activity: Sequence[str] = (),
    embedding: str = "",
    console: Console | None = None,
) -> bool:
    """Audit a reward, a configuration, or with `everything` all that ships. Returns whether it passed.

    Args:
        what: a term, `path/to/file.py:name`, the name of a configuration, or the path of a YAML file.
        overrides: of a configuration, as `uptake train` takes them.
        pack_path: `core`, `taxonomy` or a folder.
        split: of the pack.
        scenarios: about how many are played; with a scenario comes its twin.
        margin: how far below the oracle everybody else must stay.
        seed: of the users.
        out: the folder to write.
        activity: who is taken to speak when (`rewards.detector.parse_detector`); a configuration says it itself.
        embedding: folder of the sentence encoder for terms on meaning; a configuration says it itself.

    Raises:
        UptakeError: nothing to audit, no such reward, configuration or pack, or a reward that judges nothing in these
            conversations.
    """
    console = console or make_console()
    check_out_folder(out, "--out")
    subjects = find(what, overrides, everything)
    config = load_config(what, overrides) if what and is_config(what) else None
    detector = parse_detector(activity) or (config.activity if config else ENERGY)
    if detector.detector == "codec":
        raise UptakeError("audit: attacks are scripted and sample no codes; give --activity energy, silero or text")
    terms = dict.fromkeys(term for subject in subjects.values() for term, weight in subject.items() if weight)
    meaning = open_meaning(embedding or (config.embedding if config else ""), terms)
    pack = Pack.load(pack_path)
    chosen = paired_scenarios(pack, split, scenarios)
    judge = open_judge(config.judge, terms) if config else None
    with judging(judge, terms), counting(console, "attacking", PLAYS) as advance:
        frames = max(CLOCK.frames_covering(CLOCK.nearest_sample(one.max_seconds)) for one in chosen)
        played = play(pack, chosen, frames, seed=seed, on_done=lambda agent: advance(1))
        audits, refused = examine(
            subjects,
            played,
            margin=margin,
            known=declared(pack.name),
            strict=everything and pack.name in SHIPPED and split == "dev",
            activity=detector,
            meaning=meaning,
            judge=judge,
        )
    if not audits:
        raise UptakeError(next(iter(refused.values())))

    first = next(iter(audits))
    name = "all" if everything else re.sub(r"[^A-Za-z0-9_.-]+", "-", first).strip("-.")
    title = f"{len(chosen)} conversations of {pack.name}/{split}"
    where = {
        "pack": pack.name,
        "pack_hash": pack.hash,
        "split": split,
        "seed": seed,
        "margin": margin,
        "activity": asdict(detector),
        "embedding": embedding or (config.embedding if config else ""),
    }
    record = {"audits": {key: found.to_json() for key, found in audits.items()}, "refused": refused}
    write_json({**where, "scenarios": [scenario.id for scenario in chosen], **record}, out / f"{name}.json")
    rows = _gaps(audits) if everything else _gaps_by_term(audits[first])
    draw(rows, margin, title).savefig(out / f"{name}.png", dpi=130)
    console.print(_matrix(audits, title) if everything else _table(first, audits[first], title))
    for key, why in refused.items():
        console.print(f"[yellow]not audited[/] {key}: {why}", highlight=False, soft_wrap=True)
    for line in _findings(audits):
        console.print(line, highlight=False, soft_wrap=True)
    passed = all(found.passed for found in audits.values())
    verdict = "[green]passed[/]" if passed else "[bold red]failed[/]"
    console.print(f"{verdict}: {out / name}.json, {out / name}.png", highlight=False, soft_wrap=True)
    return passed


@contextmanager
def judging(judge: Judge | None, terms: Iterable[str]) -> Iterator[None]:
    """Ask a judge one test question before anything is played, and close it afterwards; nothing where there is none."""
    if judge is None:
        yield
        return
    try:
        judge.probe(next(rubric for term in terms if (rubric := registry.get(term).rubric) is not None))
        yield
    finally:
        judge.close()


def is_config(what: str | None) -> bool:
    """Whether a configuration is named, and no reward."""
    return what is not None and (what in config_names() or what.endswith((".yaml", ".yml")))


def find(what: str | None, overrides: Sequence[str], everything: bool) -> Subjects:
    """What is to be audited; raises `UptakeError` for none, for both, and for overrides of what is no configuration."""
    if everything == (what is not None):
        raise UptakeError("audit: name a reward or a configuration, or give --all")
    if overrides and not is_config(what):
        raise UptakeError(f"audit: {overrides[0]!r}: only a configuration takes overrides")
    if what is None:
        shipped: Subjects = {term: companions(term) for term in registry.names()}
        return shipped | {config: load_config(config).rewards for config in config_names()}
    return {what: load_config(what, overrides).rewards if is_config(what) else companions(what)}


def _gaps(audits: Mapping[str, Audit]) -> dict[str, dict[str, float | None]]:
    return {name: {attack: found.gap(attack) for attack in ATTACKS} for name, found in audits.items()}


def _gaps_by_term(found: Audit) -> dict[str, dict[str, float | None]]:
    rows = {"total": {attack: found.gap(attack) for attack in ATTACKS}}
    for term, best in found.terms[ORACLE].items():
        mine = {attack: found.terms[attack][term] for attack in ATTACKS}
        rows[term] = {a: None if v is None or best is None else best - v for a, v in mine.items()}
    return rows


def _matrix(audits: Mapping[str, Audit], title: str) -> Table:
    """Everything that ships: how far below the oracle each attack stays."""
    table = Table(title=f"how far below the oracle: {title} (* known hole)", title_justify="left")
    table.add_column("", no_wrap=True)
    for attack in ATTACKS:
        table.add_column(attack.replace("_", " "), justify="right")
    for name, found in audits.items():
        table.add_row(name, *(_gap(found, attack) for attack in ATTACKS))
    return table


def _gap(found: Audit, attack: str) -> str:
    gap = found.gap(attack)
    if gap is None:
        return "[dim]-[/]"
    if gap >= found.margin:
        return f"[green]{gap:+.2f}[/]"
    return f"[yellow]{gap:+.2f}*[/]" if attack in found.known else f"[bold red]{gap:+.2f}[/]"


def _table(name: str, found: Audit, title: str) -> Table:
    """One subject: what everybody earns on each of its terms, who earns most first."""
    table = Table(title=f"{name}: {title}", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("total", "below the oracle", *found.terms[ORACLE]):
        table.add_column(column, justify="right")
    totals = {attack: found.totals[attack] for attack in ATTACKS}
    attacks = sorted(totals, key=lambda attack: math.inf if (total := totals[attack]) is None else -total)
    for agent in (ORACLE, *attacks):
        close = found.won(agent) if agent != ORACLE else []
        cells = [_value(value, term in close) for term, value in found.terms[agent].items()]
        gap = "" if agent == ORACLE else _gap(found, agent)
        table.add_row(agent.replace("_", " "), _value(found.totals[agent], False), gap, *cells)
    return table


def _value(value: float | None, close: bool) -> str:
    if value is None:
        return "[dim]-[/]"
    return f"[yellow]{value:+.2f}[/]" if close else f"{value:+.2f}"


def _findings(audits: Mapping[str, Audit]) -> list[str]:
    """Known holes with their reasons, then what makes the audit fail."""
    lines = [
        f"[yellow]known hole[/] {name}, {attack}: {found.known[attack]}"
        for name, found in audits.items()
        for attack in found.offenders
        if attack in found.known
    ]
    for name, found in audits.items():
        lines += [f"[bold red]FAILED[/] {name}: {sentence}" for sentence in found.complaints()]
        if found.holes and len(found.terms[ORACLE]) == 1:
            lines.append(
                "  one term is rarely enough: name those that take this back in its decorator, for instance "
                r'beside=\["quality"], or audit the configuration that you train with'
            )
    return lines

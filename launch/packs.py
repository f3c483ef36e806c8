"""`uptake pack` and `uptake scenario`: look at what users say before anything is trained on it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from envs.clock import CLOCK
from envs.pack import SPLITS, Pack
from envs.scenario import load_scenarios


def run_check(path: str, console: Console | None = None) -> None:
    """Load a pack, decode every clip, and print what is in it. Raises `UptakeError` naming the first broken file."""
    console = console or Console()
    pack = Pack.load(path)
    for clip in pack.clips.values():
        clip.pcm  # noqa: B018  decoding is the check
    table = Table(title=f"{pack.name} {pack.version}, {pack.hash[:16]}", title_justify="left")
    for name in ("split", "scenarios", "user clips", "voices", "minutes"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split in (*SPLITS, "all"):
        clips = [clip for clip in pack.clips.values() if clip.split == split and clip.kind == "user"]
        seconds = sum(CLOCK.seconds(clip.samples) for clip in clips)
        scenarios = len(pack.scenarios(split)) if split in SPLITS else 0
        voices = {clip.voice for clip in clips if clip.voice}
        table.add_row(split, str(scenarios), str(len(clips)), str(len(voices)), f"{seconds / 60:.1f}")
    console.print(table)
    size = sum(file.stat().st_size for file in pack.folder.rglob("*") if file.is_file())
    agents = len(pack.clips) - len([clip for clip in pack.clips.values() if clip.kind == "user"])
    console.print(f"{len(pack.clips)} clips ({agents} of scripted agents), {size / 2**20:.1f} MiB: no fault")


def run_scenario_check(file: Path, console: Console | None = None) -> None:
    """Read a scenario file. Raises `UptakeError` with file and line for the first mistake."""
    console = console or Console()
    for scenario in load_scenarios(file):
        items = ", ".join(f"{item.id} ({item.type})" for item in scenario.script)
        console.print(f"[green]ok[/] {scenario.id}, {scenario.split}: {items}", highlight=False)

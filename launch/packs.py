"""`uptake pack` and `uptake scenario`: look at what users say before anything is trained on it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.clock import CLOCK
from envs.corpora.audio import CLIPPED
from envs.corpora.extraction import CLIPPED_SHARE
from envs.coverage import markdown
from envs.errors import UptakeError, nearest
from envs.pack import SPLITS, Pack
from envs.scenario import load_scenarios
from envs.synthesis import texts
from envs.synthesis.build import build
from envs.synthesis.engines import Flite, choose
from launch.terminal import counting, make_console


def run_check(path: str, console: Console | None = None) -> None:
    """Load a pack, decode every clip, and print what is in it, and which clips are clipped.

    Raises:
        UptakeError: naming the first file that is broken, or that is silent where words are said.
    """
    console = console or make_console()
    pack = Pack.load(path)
    clipped = []
    for clip in pack.clips():
        if clip.words and not clip.pcm.any():
            raise UptakeError(f"{clip.path}: clip {clip.id!r} is digital silence; render the file again")
        if (np.abs(clip.audio) >= CLIPPED).mean() > CLIPPED_SHARE:
            clipped.append(clip.id)
    table = Table(title=f"{pack.name} {pack.version}, {pack.hash[:16]}", title_justify="left")
    for name in ("split", "scenarios", "user clips", "voices", "minutes"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split in (*SPLITS, "all"):
        clips = [clip for clip in pack.clips() if clip.split == split and clip.kind == "user"]
        seconds = sum(CLOCK.seconds(clip.samples) for clip in clips)
        scenarios = len(pack.scenarios(split)) if split in SPLITS else 0
        voices = {clip.voice for clip in clips if clip.voice}
        table.add_row(split, str(scenarios), str(len(clips)), str(len(voices)), f"{seconds / 60:.1f}")
    console.print(table)
    size = sum(file.stat().st_size for file in pack.folder.rglob("*") if file.is_file())
    agents = len(pack.clips()) - len([clip for clip in pack.clips() if clip.kind == "user"])
    console.print(f"{len(pack.clips())} clips ({agents} of scripted agents), {size / 2**20:.1f} MiB: no fault")
    if clipped:
        names = ", ".join(clipped[:5]) + (", ..." if len(clipped) > 5 else "")
        told = f"{len(clipped)} clipped in more than {CLIPPED_SHARE:.1%} of their samples: {names}"
        console.print(f"[yellow]{escape(told)}[/]; render them at a lower level", soft_wrap=True)


def run_scenario_check(file: Path, pack: str, console: Console | None = None) -> None:
    """Read a scenario file, and look for its clips and twins. Raises `UptakeError` with the line of the first mistake.

    Args:
        file: one or more scenarios; those in a pack's folder are looked at in that pack.
        pack: whose clips any others play.
    """
    console = console or make_console()
    scenarios = load_scenarios(file)
    home = next((folder for folder in file.resolve().parents if (folder / "pack.json").is_file()), None)
    own = home is not None and file.suffix == ".yaml" and file.resolve().is_relative_to(home / "scenarios")
    Pack.load(home or pack, users="" if own else file)
    for scenario in scenarios:
        items = ", ".join(f"{item.id} ({item.type})" for item in scenario.script)
        items = items or f"{scenario.driver} ({', '.join(scenario.about)})"
        console.print(f"[green]ok[/] {scenario.id}, {scenario.split}: {items}", highlight=False)


def run_coverage(packs: Sequence[str]) -> str:
    """A table in Markdown: for every type of event the scenarios about it, an example and its twin."""
    return markdown([Pack.load(pack) for pack in packs])


def run_build(
    out: Path,
    *,
    engine: str | None,
    voices: Path | None,
    source: str,
    repeats: int,
    cache: Path,
    console: Console | None = None,
) -> None:
    """Render a pack from its texts.

    Args:
        out: the folder to write.
        engine: one of `envs.synthesis.engines.ENGINES`; None: the first of them that is installed.
        voices: the folder of Kokoro's voices.
        source: texts and voices: `core`, `taxonomy`, or a YAML file in the form of either.
        repeats: in how many voices each training text is said; with more than one, flite's are added if installed.
        cache: rendered speech, so that an interrupted build goes on where it stopped.

    Raises:
        UptakeError: the engine, its voices or the aligner are not installed.
    """
    console = console or make_console()
    said = 0

    def report(done: int, total: int, what: str) -> None:
        nonlocal said
        advance(done - said, total)
        said = done

    try:
        speaker = choose(engine, voices)
        extra = Flite() if repeats > 1 and speaker.name != "flite" and shutil.which("flite") else None
        console.print(f"speech by {speaker.name} ({speaker.licence})")
        with counting(console, "rendering", 0) as advance:
            build(_source(source), out, speaker, cache, repeats, extra, report=report)
    except ModuleNotFoundError as error:
        raise UptakeError(f"building a pack needs '{error.name}'; run: pip install 'uptake[build]'") from error
    run_check(str(out), console)


def _source(name: str) -> Path:
    path = texts.SOURCES.get(name, Path(name))
    if not path.is_file():
        raise UptakeError(f"no source {name!r}: neither a file nor one that ships{nearest(name, texts.SOURCES)}")
    return path

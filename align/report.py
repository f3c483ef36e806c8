"""`report.html`: what a run changed, on one page that needs nothing else.

Everything shown is read from the run folder (`eval.json`, `metrics.jsonl`, `config.yaml`, `episodes/`), so the page
can be made again at any time and says the same: `uptake view RUN`. Pictures and sound are inside the file.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from envs.episode import Episode
from envs.errors import UptakeError
from envs.files import whole
from envs.look import stereo
from envs.timeline import draw
from rewards.verdict import Verdict

MARKS = {
    "better": "▲ better",
    "worse": "▼ worse",
    "unchanged": "= unchanged",
    "moved": "◆ moved",  # a change that counts, of a measure without a better direction
    "": "– no case",
}
SIDES = ("before", "after")
# Curves in this order first; whatever else a trainer logs under these prefixes follows.
CURVES = ("reward", "axis/", "rewards/", "kl", "entropy", "clip_ratio/", "value/", "grad_norm", "sampling/")


def write_report(run: Path) -> Path:
    """Make `report.html` of a finished run and return its path.

    Raises:
        UptakeError: the folder holds no evaluation.
    """
    result = _read_json(run / "eval.json", "evaluate the run first: uptake train writes it at the end")
    metrics = _read_lines(run / "metrics.jsonl")
    config = (run / "config.yaml").read_text(encoding="utf-8") if (run / "config.yaml").is_file() else ""
    body = "\n".join(
        [
            _header(result),
            "<main>",
            _headline(result),
            _table(result),
            _conversations(run, result),
            _curves(metrics),
            f"<h2>Configuration</h2><details><summary>every field of this run</summary><pre><code>{escape(config)}"
            "</code></pre></details>"
            if config
            else "",
            "</main>",
            "<footer><p>Made by <code>uptake</code> from the files in this run folder; "
            "<code>uptake view</code> makes it again. Nothing on this page is loaded from elsewhere.</p></footer>",
        ]
    )
    style = resources.files("align").joinpath("report.css").read_text("utf-8")
    script = resources.files("align").joinpath("report.js").read_text("utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(result['run']['name'])} – uptake</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
    path = run / "report.html"
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def number(value: float | None, unit: str = "") -> str:
    """A figure as the tables print it: `0.42`, `37 %`, `+240 ms`; an em dash for what does not apply."""
    if value is None or not math.isfinite(value):
        return "—"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return f"{1000 * value:.0f} ms"
    return f"{value:.3f}"


def change(value: float | None, unit: str = "") -> str:
    """A difference with its sign; percentages differ in points."""
    if value is None or not math.isfinite(value):
        return "—"
    if unit == "%":
        return f"{100 * value:+.1f} pt"
    if unit == "s":
        return f"{1000 * value:+.0f} ms"
    return f"{value:+.3f}"


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of a row's difference, in words."""
    if row["low"] is None:
        return ""
    return f"[{change(row['low'], row['unit'])}, {change(row['high'], row['unit'])}]"


def acoustics_of(run: Mapping[str, Any]) -> str:
    """How conversations sounded, in words; nothing where they were clean (or told nothing, as older runs)."""
    name = run.get("acoustics", "clean")
    return "" if name == "clean" else f", acoustics {name}"


def _header(result: Mapping[str, Any]) -> str:
    run = result["run"]
    counts = {mark: sum(row["verdict"] == mark for row in result["rows"]) for mark in ("better", "worse", "unchanged")}
    return (
        f"<header><h1>{escape(run['name'])}: before and after</h1>"
        f"<p>Policy <code>{escape(run['policy'])}</code>, {run['episodes']} conversations from the "
        f"<b>{escape(run['split'])}</b> split of <code>{escape(run['pack'])}</code> "
        f"({run['scenarios']} scenarios × {run['variants']} variants), the same users and seeds on both sides"
        f"{escape(acoustics_of(run))}. "
        f"<b>{counts['better']}</b> measures got better, <b>{counts['worse']}</b> worse, "
        f"<b>{counts['unchanged']}</b> did not change measurably: a change counts when its 95 % interval excludes "
        "zero.</p></header>"
    )


def _headline(result: Mapping[str, Any]) -> str:
    cards = []
    for row in result["rows"]:
        if not row["headline"]:
            continue
        cards.append(
            f'<li><span class="name">{escape(row["label"])}</span><span class="value">'
            f"{number(row['before'], row['unit'])} → {number(row['after'], row['unit'])}</span>"
            f'<span class="mark {row["verdict"]}">{MARKS[row["verdict"]]}</span></li>'
        )
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def _table(result: Mapping[str, Any]) -> str:
    systems = result["systems"]
    head = "".join(f'<th scope="col" class="sub">{escape(system["label"])}</th>' for system in systems)
    rows = []
    for row in result["rows"]:
        wish = {"higher": "higher is better", "lower": "lower is better"}.get(row["better"], "for information")
        over = f", {row['n']} text{'s' * (row['n'] != 1)}" if row["n"] else ""
        others = "".join(
            f'<td class="sub">{number(system["values"].get(row["measure"]), row["unit"])}</td>' for system in systems
        )
        rows.append(
            f'<tr class="{"main" if row["headline"] else "extra"}">'
            f'<th scope="row" title="{escape(row["text"])}">{escape(row["label"])}<small>{wish}{over}</small></th>'
            f'<td class="main">{number(row["before"], row["unit"])}</td>'
            f'<td class="main">{number(row["after"], row["unit"])}</td>'
            f"<td>{change(row['delta'], row['unit'])}<small>{interval(row)}</small></td><td>{_whisker(row)}</td>"
            f'<td><span class="mark {row["verdict"]}">{MARKS[row["verdict"]]}</span></td>{others}</tr>'
        )
    return (
        '<h2>Figures</h2><div class="scroll" tabindex="0" role="region" aria-label="Figures before and after">'
        "<table><caption>Means over the conversations that a measure applies to. Δ and its 95 % interval come from a "
        "paired bootstrap that draws whole texts: scenarios that share one are one case, in whatever voice. Fewer than "
        "six texts that differ give no verdict. The grey columns are scripted agents in the same conversations."
        '</caption><thead><tr><th scope="col" style="text-align:left">Measure</th><th scope="col">Before</th>'
        '<th scope="col">After</th><th scope="col">Δ<small>95 % interval</small></th>'
        '<th scope="col"><span aria-label="the interval, drawn around zero"></span></th><th scope="col">Verdict</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _whisker(row: Mapping[str, Any]) -> str:
    """The interval as a line around a zero mark, scaled to the row itself."""
    if row["low"] is None or row["delta"] is None:
        return ""
    span = max(abs(row["low"]), abs(row["high"]), 1e-9)
    low, high, mid = (55 + 50 * row[key] / span for key in ("low", "high", "delta"))
    colour = {"better": "var(--good)", "worse": "var(--bad)"}.get(row["verdict"], "var(--soft)")
    return (
        '<svg class="interval" viewBox="0 0 110 18" aria-hidden="true">'
        '<line x1="55" x2="55" y1="1" y2="17" stroke="var(--line)" stroke-width="2"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9" stroke="{colour}" stroke-width="3"/>'
        f'<circle cx="{mid:.1f}" cy="9" r="4" fill="{colour}"/></svg>'
    )


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    names: list[str] = []
    for prefix in CURVES:
        for key in sorted({key for line in metrics for key in line}):
            wanted = key == prefix or (prefix.endswith("/") and key.startswith(prefix))
            if wanted and key not in names and not key.endswith("_std"):
                names.append(key)
    figures = []
    for name in names:
        points = [
            (index, float(line[name]))
            for index, line in enumerate(metrics)
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        if len(points) >= 2:
            figures.append(_curve(name, points))
    if not figures:
        return ""
    return (
        "<h2>Training</h2><p>One point an iteration, from <code>metrics.jsonl</code>. Rewards are of the training "
        f'split, with sampling on.</p><div class="curves">{"".join(figures)}</div>'
    )


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    last = points[-1][0] or 1
    line = " ".join(f"{300 * x / last:.1f},{84 - 78 * (y - low) / room:.1f}" for x, y in points)
    smooth = np.convolve(np.pad(values, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    trend = " ".join(
        f"{300 * x / last:.1f},{84 - 78 * (y - low) / room:.1f}" for (x, _), y in zip(points, smooth, strict=True)
    )
    text = f"{name}: from {values[0]:.4g} to {values[-1]:.4g}, lowest {low:.4g}, highest {high:.4g}"
    return (
        f"<figure><figcaption><b>{escape(name)}</b><span>{values[0]:.3g} → {values[-1]:.3g}</span></figcaption>"
        f'<svg viewBox="0 0 300 90" preserveAspectRatio="none" role="img" aria-label="{escape(text)}">'
        f'<polyline points="{line}" fill="none" stroke="var(--soft)" stroke-width="1" opacity="0.6" '
        'vector-effect="non-scaling-stroke"/>'
        f'<polyline points="{trend}" fill="none" stroke="var(--accent)" stroke-width="2.2" '
        'vector-effect="non-scaling-stroke"/></svg></figure>'
    )


def _conversations(run: Path, result: Mapping[str, Any]) -> str:
    parts = []
    for item in result["conversations"]:
        folders = [run / "episodes" / key / item["folder"] for key in SIDES]
        pair = [_read_conversation(folder) if folder.is_dir() else None for folder in folders]
        seconds = max((found[0].seconds for found in pair if found), default=0.0)
        sides = [
            _side(label.capitalize(), *found, title=item["title"], seconds=seconds)
            for label, found in zip(SIDES, pair, strict=True)
            if found
        ]
        if sides:
            parts.append(
                f'<article class="talk"><header><h3>{escape(item["title"])}</h3><span class="soft">'
                f"scenario <code>{escape(item['scenario'])}</code>, variant {item['variant']}</span></header>"
                f"{''.join(sides)}</article>"
            )
    if not parts:
        return ""
    return (
        "<h2>Conversations</h2><p>The first scenario of each kind in the split, chosen before anything was measured. "
        "The user says the same at the same seed; what follows depends on what the agent does. Left ear: what the "
        "agent hears. Right ear: the agent. Under its words: what each reward said about which stretch of time. Click "
        f"into a picture to listen from there.</p>{''.join(parts)}"
    )


def write_picture(run: Path, path: Path, number: int = 0) -> None:
    """Write one of the report's conversations as a PNG: before above, after below, on one time axis.

    Raises:
        UptakeError: the run has no such conversation.
    """
    from PIL import Image

    result = _read_json(run / "eval.json", "evaluate the run first: uptake train writes it at the end")
    shown = result["conversations"]
    if not 0 <= number < len(shown):
        raise UptakeError(f"{run}: no conversation {number}; it has {len(shown)}, counted from 0")
    pair = [_read_conversation(run / "episodes" / side / shown[number]["folder"]) for side in SIDES]
    seconds = max(episode.seconds for episode, _ in pair)
    images = [
        Image.open(io.BytesIO(timeline_png(*found, seconds=seconds, title=side)[0])).convert("RGB")
        for side, found in zip(SIDES, pair, strict=True)
    ]
    both = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    both.paste(images[0], (0, 0))
    both.paste(images[1], (0, images[0].height))
    path.parent.mkdir(parents=True, exist_ok=True)
    both.save(path, format="PNG", optimize=True)


def _side(label: str, episode: Episode, verdicts: Sequence[Verdict], title: str, seconds: float) -> str:
    png, box = timeline_png(episode, verdicts, seconds)
    said = " ".join(word.text for word in episode.transcript) or "(nothing)"
    left, right, start, end = box
    return (
        f'<section class="side"><h4>{label}</h4>'
        f'<div class="picture" data-left="{left:.5f}" data-right="{right:.5f}" data-start="{start:.3f}" '
        f'data-end="{end:.3f}"><img alt="Timeline {label.lower()} training: {escape(title)}. The agent says: '
        f'{escape(said)}" src="data:image/png;base64,{_base64(png)}"><div class="head"></div></div>'
        f'<audio controls preload="metadata" aria-label="{label} training: {escape(title)}" '
        f'src="data:audio/ogg;base64,{_base64(stereo_opus(episode))}"></audio>'
        f'<p class="words"><span class="soft">Agent’s words:</span> {escape(said)}</p></section>'
    )


def timeline_png(
    episode: Episode, verdicts: Sequence[Verdict] = (), seconds: float = 0.0, title: str = "", dpi: int = 110
) -> tuple[bytes, tuple[float, float, float, float]]:
    """A picture of an episode, and where its time axis lies in it.

    Args:
        verdicts: what rewards said about it.
        seconds: where the time axis ends, so that two pictures can be compared; at least the episode's length.
        title: the scenario's id if empty.

    Returns:
        PNG bytes; (left, right) edge of the axis as fractions of the width, and (start, end) of the axis in seconds.
    """
    figure = draw(episode, verdicts, title)
    axis = figure.axes[0]
    if seconds > episode.seconds:
        figure.set_figwidth(figure.get_figwidth() + 0.9 * (seconds - episode.seconds))
        axis.set_xlim(0, seconds)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    where = axis.get_position()
    start, end = axis.get_xlim()
    return buffer.getvalue(), (where.x0, where.x1, float(start), float(end))


def save_conversation(episode: Episode, verdicts: Sequence[Verdict], folder: Path) -> None:
    """Write a conversation where the report finds it: the record and what the rewards said (`verdicts.jsonl`)."""
    episode.save(folder)
    lines = "".join(json.dumps(verdict.to_json()) + "\n" for verdict in verdicts)
    with whole(folder / "verdicts.jsonl") as partial:
        partial.write_text(lines, encoding="utf-8")


def _read_conversation(folder: Path) -> tuple[Episode, list[Verdict]]:
    records = _read_lines(folder / "verdicts.jsonl")
    try:
        verdicts = [Verdict(r["value"], tuple(r["window"]), r["raw"], r["term"], r["event"]) for r in records]
    except (KeyError, TypeError, ValueError) as error:
        raise UptakeError(f"{folder / 'verdicts.jsonl'}: not what uptake wrote ({error}); restore the file") from error
    return Episode.load(folder), verdicts


def stereo_opus(episode: Episode) -> bytes:
    """The conversation as Ogg Opus, about 8 kB a second."""
    buffer = io.BytesIO()
    audio = stereo(episode)
    rate = episode.clock.sample_rate
    with soundfile.SoundFile(buffer, "w", rate, 2, format="OGG", subtype="OPUS", compression_level=0.9) as file:
        for start in range(0, len(audio), rate):  # libsndfile's Opus encoder is fed a second at a time
            file.write(audio[start : start + rate])
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UptakeError(f"{path}: no such file; {fix}") from error
    except ValueError as error:
        raise UptakeError(f"{path}: not JSON ({error}); {fix}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, none if there is no file; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines

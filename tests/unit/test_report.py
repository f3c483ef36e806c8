"""The report: one file that needs no network, says what was measured, and hides nothing that got worse."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from align.report import change, number, stereo_opus, write_report
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event, Word

SECOND = 24000


def row(measure: str, verdict: str, **changes: Any) -> dict[str, Any]:
    return {
        "measure": measure, "label": f"{measure} label", "text": "what <it> means", "unit": "%", "better": "lower",
        "headline": True, "n": 12,
        "before": 0.6, "after": 0.25, "delta": -0.35, "low": -0.5, "high": -0.2, "verdict": verdict, **changes,
    }  # fmt: skip


def conversation(pitch: float) -> Episode:
    time = np.arange(3 * SECOND) / SECOND
    user = np.where(time < 1, 0.2 * np.sin(2 * np.pi * 200 * time), 0).astype(np.float32)
    agent = np.where(time > 1.5, 0.2 * np.sin(2 * np.pi * pitch * time), 0).astype(np.float32)
    event = Event(id="ask", type="A1", source="user", onset=0, offset=SECOND, text="how are you")
    return Episode(user.copy(), user, agent, [event], (Word("<fine>", 36000, 60000),), {"scenario": "turn/1"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "<mine>"
    result = {
        "version": 1,
        "run": {"name": "<mine>", "policy": "pocket", "pack": "core", "split": "test", "scenarios": 3, "variants": 4,
                "episodes": 12},
        "rows": [
            row("takeover", "better"),
            row("cut_ins", "worse", delta=0.3, low=0.1, high=0.5),
            row("talk_ratio", "", better="", low=None, high=None, delta=None, before=None),
        ],
        "systems": [{"name": "silent", "label": "silent", "values": {"takeover": 0.0}}],
        "conversations": [{"scenario": "turn/1", "variant": 0, "folder": "turn-1", "title": "A question & its answer"}],
    }  # fmt: skip
    for side, pitch in (("before", 400.0), ("after", 500.0)):
        conversation(pitch).save(folder / "episodes" / side / "turn-1")
    (folder / "eval.json").write_text(json.dumps(result))
    lines = [json.dumps({"iteration": i, "reward": i / 10, "kl": 0.1, "rewards/pause": -1.0}) for i in range(4)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"iteration": 4, "rew']))
    (folder / "config.yaml").write_text("name: <mine>\n")
    return folder


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and a check that what is opened is closed."""

    VOID = {"meta", "img", "br", "link", "line", "circle", "polyline"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_one_file_that_asks_no_network_and_runs_no_foreign_code(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, value)
    assert not page.all("link")
    assert "url(" not in text and "@import" not in text
    assert "<mine>" not in text, "names are escaped"


def test_every_row_shows_both_figures_its_interval_and_its_verdict_in_words(run: Path) -> None:
    text = write_report(run).read_text()
    assert "60.0 %" in text and "25.0 %" in text and "-35.0 pt" in text and "[-50.0 pt, -20.0 pt]" in text
    assert "▲ better" in text and "▼ worse" in text and "<b>1</b> measures got better, <b>1</b> worse" in text


def test_before_and_after_stand_above_one_another_with_pictures_sound_and_words(run: Path) -> None:
    page = Page(write_report(run).read_text())
    pictures, players = page.all("img"), page.all("audio")
    assert len(pictures) == len(players) == 2
    assert all(picture["alt"] for picture in pictures) and all(player["aria-label"] for player in players)
    for picture in pictures:
        assert base64.b64decode(str(picture["src"]).partition(",")[2]).startswith(b"\x89PNG")
    box = next(attributes for attributes in page.all("div") if "data-left" in attributes)
    left, right = float(box["data-left"] or 0), float(box["data-right"] or 0)
    assert 0 <= left < right <= 1


def test_the_player_has_the_user_on_the_left_and_the_agent_on_the_right() -> None:
    episode = conversation(400.0)
    audio, rate = soundfile.read(io.BytesIO(stereo_opus(episode)))
    second = rate
    assert abs(len(audio) / rate - 3.0) < 0.05
    level = np.sqrt(np.mean(audio**2, axis=0))
    early = np.sqrt(np.mean(audio[: second // 2] ** 2, axis=0))
    late = np.sqrt(np.mean(audio[2 * second : 5 * second // 2] ** 2, axis=0))
    assert level.min() > 0.03
    assert early[0] > 30 * early[1] and late[1] > 30 * late[0]


def test_a_metrics_line_that_a_crash_cut_short_is_left_out(run: Path) -> None:
    text = write_report(run).read_text()
    assert re.search(r"reward: from 0 to 0.3", text)


def test_making_the_page_again_gives_the_same_page(run: Path) -> None:
    def without_sound() -> str:  # an Ogg stream has a random serial number
        return re.sub(r"data:audio/ogg;base64,[^\"]*", "", write_report(run).read_text())

    assert without_sound() == without_sound()


def test_a_run_without_an_evaluation_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match=r"eval\.json: no such file; evaluate the run first"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "value, unit, shown, changed",
    [(0.25, "%", "25.0 %", "+25.0 pt"), (0.24, "s", "240 ms", "+240 ms"), (None, "s", "—", "—"),
     (float("nan"), "", "—", "—"), (-0.5, "", "-0.500", "-0.500")],
)  # fmt: skip
def test_figures_carry_their_unit(value: float | None, unit: str, shown: str, changed: str) -> None:
    assert number(value, unit) == shown
    assert change(value, unit) == changed

"""What the README shows is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from align.config import load_config, names
from envs.episode import Episode
from envs.event import Event
from launch.cli import app
from rewards import registry
from rewards.compose import Composition

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_there_to_the_letter() -> None:
    for command in ("pip install -e . && uptake train quickstart", "pip install -e '.[test]' && pytest"):
        assert f"    {command}\n" in README


def test_every_command_and_every_override_that_it_shows_exists() -> None:
    shown = re.findall(r"`(?:[^`]*&& )?uptake ([a-z-]+(?: [a-z0-9]+)?)([^`]*)`", README)
    assert len(shown) > 8
    for words, rest in shown:
        command = words.split()
        if command[0] not in ("pack", "scenario", "launch"):
            command = command[:1]
        done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, command
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in done.output, (command, option)
        if command == ["train"]:
            config = words.split()[1] if len(words.split()) > 1 else ""
            full = (config + rest).split()
            assert full[0] in names()
            load_config(full[0], [word for word in full[1:] if "=" in word])


def test_what_it_shows_for_several_ranks_can_be_split_between_them() -> None:
    shown = re.findall(r"`uptake train ([^\s`]+)( [^`]*ranks=[^`]*)`", README)
    assert shown
    for name, rest in (("quickstart", ""), *shown):
        config = load_config(name, rest.split())
        assert config.ranks > 1
        config.algorithm.check(config.ranks)


def test_every_file_that_it_links_exists() -> None:
    linked = re.findall(r"\]\(([^)#]+)", README)
    assert {"docs/pocket.md", "docs/before-after.png"} <= set(linked)
    missing = [target for target in linked if "://" not in target and not (ROOT / target).is_file()]
    assert not missing


def test_the_reward_that_it_shows_is_ten_lines_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()  # what ships is registered for good, `calm` for this test alone
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_FILES", {})
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    file = tmp_path / "calm.py"
    file.write_text(code[1])
    second = 24_000
    time = np.arange(6 * second) / second

    def answer_after(delay: float) -> float | None:
        agent = np.where((time > 1 + delay) & (time < 3 + delay), 0.2 * np.sin(2 * np.pi * 300 * time), 0)
        event = Event(id="ask", type="A1", source="user", onset=0, offset=second)
        silence = np.zeros(time.size, np.float32)
        episode = Episode(silence, silence, agent.astype(np.float32), [event])
        return Composition({f"{file}:calm": 1.0}).score(episode)[0].value

    assert answer_after(0.6) == 1.0
    assert answer_after(1.5) == -1.0
    assert answer_after(9.0) == -1.0

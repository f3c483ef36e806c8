"""`uptake audit` on what ships, with the packs that ship: ours hold, and the holes of the published ones are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from align.config import load_config
from align.config import names as config_names
from envs.errors import UptakeError
from launch.cli import app
from rewards import names
from rewards import registry as registry_module
from rewards.attacks import ATTACKS
from rewards.holes import declared
from tests.judge_server import JudgeServer


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "pack, absent",
    # The core pack holds none of the events of these.
    [("core", {"collision", "proactivity", "refusal", "silence_handling"}), ("taxonomy", set())],
)
def test_everything_that_ships_passes_and_the_known_holes_are_shown(
    tmp_path: Path, pack: str, absent: set[str]
) -> None:
    status, output = run("--all", "--pack", pack, "--out", str(tmp_path))
    assert status == 0, output
    record = json.loads((tmp_path / "all.json").read_text())
    # No language model and no encoder is here.
    asking = {name for name in names() if not registry_module.get(name).rule}
    judged = {name for name in config_names() if "published_judge" in load_config(name).rewards}
    assert judged >= {"recipes/moshi", "recipes/published_judge"}
    assert set(record["refused"]) == {*asking, *absent, *judged}
    assert set(record["audits"]) == {*names(), *config_names()} - set(record["refused"])
    for subject, audit in record["audits"].items():
        assert set(audit["attacks"]) == set(ATTACKS)
        offenders = {attack for attack, found in audit["attacks"].items() if found["within_margin"]}
        assert offenders <= set(declared(pack).get(subject, {})), subject
    assert "known hole published_turn, always_talking: published: -d is not clipped" in output
    assert (tmp_path / "all.png").stat().st_size > 20_000


HACKED = """
from rewards import Verdict, reward

@reward("loud", axis="turn", events=["A1", "A3"], horizon_s=3.0)
def loud(view, event):
    return Verdict(1.0 if len(view.agent_activity) else -1.0, (0, view.end))
"""


def test_a_reward_with_a_hole_fails_with_status_1_and_names_attack_term_and_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(registry_module, "_FILES", {})
    file = tmp_path / "loud.py"
    file.write_text(HACKED)
    few = ("--scenarios", "8", "--out", str(tmp_path))
    status, output = run(f"{file}:loud", *few)
    assert status == 1
    assert "always_talking earns +1.00, only 0.00 below the oracle's +1.00 (margin 0.25): loud +1.00 against" in output
    (written,) = tmp_path.glob("*loud.json")
    assert json.loads(written.read_text())["audits"][f"{file}:loud"]["attacks"]["always_talking"]["gap"] == 0.0
    config = tmp_path / "mine.yaml"
    terms = f"{{{file}:loud: 1.0, pause_handling: 1.0, turn_taking: 1.0, quality: 3.0}}"
    config.write_text(f"rewards: {terms}\ngrpo: {{iterations: 2}}\n")
    status, output = run(str(config), *few)
    assert status == 0, output
    assert run(str(config), f"rewards.{file}:loud=90", *few)[0] == 1
    file.write_text(HACKED.replace("1.0 if len", "1 / 0 if len"))
    registry_module._FILES.clear()
    done = CliRunner().invoke(app, ["audit", f"{file}:loud", *few])
    assert isinstance(done.exception, UptakeError) and "loud failed to give" in str(done.exception)


def test_a_composition_that_asks_a_language_model_is_attacked_where_it_names_one(tmp_path: Path) -> None:
    config = tmp_path / "judged.yaml"
    config.write_text("rewards: {published_judge: 3.0, turn_taking: 1.0, pause_handling: 1.0}\ngrpo: {iterations: 2}\n")
    few = ("--scenarios", "8", "--out", str(tmp_path))
    with JudgeServer() as server:  # its score: how many words of the question are in the answer
        named = (str(config), f"judge.base_url={server.url}", "judge.model=one", f"judge.cache={tmp_path / 'said'}")
        status, output = run(*named, *few)
        assert len(server.requests) > 20, output
    (written,) = tmp_path.glob("*judged.yaml.json")
    found = json.loads(written.read_text())
    (attacks,) = (audit["attacks"] for audit in found["audits"].values())
    assert attacks["silent"]["terms"]["published_judge"] == -1.0
    assert attacks["echo_chaser"]["terms"]["published_judge"] == 1.0, "this judge likes to hear its own words"
    assert status == 1 and "echo_chaser earns" in output
    done = CliRunner().invoke(app, ["audit", *named, f"judge.cache={tmp_path / 'nothing'}", *few])
    assert isinstance(done.exception, UptakeError) and "judge" in str(done.exception), "it has gone"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a reward or a configuration, or give --all"),
        (("quality", "--all"), "name a reward or a configuration, or give --all"),
        (("qualty",), "did you mean 'quality'"),
        (("quality", "seed=1"), "only a configuration takes overrides"),
        (("quickstart", "--pack", "no_such_pack"), "no pack 'no_such_pack'"),
        (("quickstart", "--split", "trian"), "no split 'trian'; did you mean 'train'?"),
        (("nothing.yaml",), "nothing.yaml"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["audit", *arguments])
    assert isinstance(done.exception, ValueError) and message in str(done.exception)

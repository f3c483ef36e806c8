"""From verdicts to what `metrics.jsonl` holds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from align.config import TrainConfig
from align.curriculum import Draw
from align.judging import check_axes, judge
from align.policies.base import DuplexSpec, Trajectory
from align.rollout import Rollout
from align.tally import Tally
from envs.errors import UptakeError
from envs.pack import Pack
from launch.train import prepare
from rewards import OURS, Composition
from rewards import registry as registry_module
from tests.unit.test_rewards_episodes import conversation, event

FAULTY = """
from rewards import reward, Verdict

@reward("moody", axis="x", events=["A1"], horizon_s=1.0)
def moody(view, event):
    return Verdict(1 / (event.onset - 24_000 * 10), (0, 1))
"""


def test_how_often_a_reward_failed_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(registry_module, "_FILES", {})
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    composition = Composition({f"{path}:moody": 1.0, "turn_taking": 1.0})
    episode = conversation([(4.3, 6.3)], [event("A1", 1, 4), event("A1", 10, 11)], seconds=15)
    nothing = torch.zeros(1, 1)
    played = Rollout(Trajectory(nothing.long(), nothing.bool(), nothing, 1.0, 0), [episode], [0], 0.0)
    tally = Tally()
    credits = judge(
        composition, played, [Draw(0, "turn", "one", 0, (1,))], DuplexSpec(24_000, 1920, (), 100), 187, tally
    )
    assert [credit.value is None for credit in credits if credit.term == "moody"] == [False, True]
    means = tally.means()
    assert means["faults/moody"] == 0.5 == composition.faults["moody"] / 2
    assert means["faults/turn_taking"] == 0.0


def test_a_composition_in_which_nothing_applies_to_an_axis_of_the_pack_is_refused() -> None:
    scenarios = Pack.load("core").scenarios("train")
    with pytest.raises(
        UptakeError, match=r"nothing applies to the \d+ scenarios of axis '(turn|continue|backchannel)'"
    ):
        check_axes(Composition({"pause_handling": 1.0}), scenarios)
    check_axes(Composition(OURS), scenarios)
    pauses = [scenario for scenario in scenarios if "B1" in scenario.types]
    check_axes(Composition({"pause_handling": 1.0}), pauses)


def test_an_axis_that_is_judged_only_by_what_else_is_in_its_scenarios_is_named(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        check_axes(Composition({"turn_taking": 1.0}), Pack.load("core").scenarios("train"))
    named = {line.split("'")[1] for line in caplog.messages}
    assert named == {"backchannel", "continue", "interruption", "pause"}


def test_training_is_refused_before_a_checkpoint_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("launch.train.load_policy", load)
    with pytest.raises(UptakeError, match="nothing applies to"):
        prepare(TrainConfig(rewards={"pause_handling": 1.0}))

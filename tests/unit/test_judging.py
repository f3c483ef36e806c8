"""From verdicts to what `metrics.jsonl` holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.curriculum import Draw
from align.judging import judge
from align.policies.base import DuplexSpec, Trajectory
from align.rollout import Rollout
from align.tally import Tally
from rewards import Composition
from rewards import registry as registry_module
from tests.unit.test_rewards_episodes import conversation, event

FAULTY = """
from rewards import reward, Verdict

@reward("moody", axis="x", events=["A1"], horizon_s=1.0)
def moody(view, event):
    return Verdict(1 / (event.onset - 24_000 * 10), (0, 1))
"""


def test_a_judgement_is_final_with_the_last_action_that_its_judge_could_hear() -> None:
    """The pause ends at 6 s, its judge listens until 7.5 s, in frame 93. An action is heard two frames later."""
    spec = DuplexSpec(24_000, 1920, (), 187)
    nothing = torch.zeros(1, 1)

    def credit(agent: list[tuple[float, float]]) -> tuple[float | None, int]:
        episode = conversation(agent, [event("B1", 4, 6)], seconds=15)
        played = Rollout(Trajectory(nothing.long(), nothing.bool(), nothing, 1.0, 0), [episode], [0], 0.0)
        drawn = [Draw(0, "pause", "one", 0, (1,))]
        (found,) = judge(Composition({"pause_handling": 1.0}), played, drawn, spec, 187, Tally())
        return found.value, found.final

    value, final = credit([(5.9, 7.5)])
    assert final == 91
    assert value is not None
    assert credit([(5.9, 7.5), (0.08 * (final + 3), 14.0)]) == (value, final)  # the next action is too late to matter
    assert credit([(5.9, 0.08 * (final + 2))])[0] != value  # without its own sound it would be another judgement


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

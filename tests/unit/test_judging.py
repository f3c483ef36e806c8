"""From verdicts to what `metrics.jsonl` holds."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from align.config import TrainConfig, load_config
from align.curriculum import Draw, by_axis
from align.judging import check_axes, judge
from align.policies.base import DuplexSpec, Trajectory
from align.rollout import Rollout
from align.tally import Tally
from align.trainers.grpo_config import GrpoConfig
from envs.errors import UptakeError
from envs.event import Expect
from envs.pack import Pack
from launch.judge import open_judge
from launch.train import claim, prepare, run_training
from rewards import OURS, Composition, names
from rewards import registry as registry_module
from rewards.judge.config import JudgeConfig
from tests.judge_server import JudgeServer
from tests.unit.test_rewards_episodes import conversation, event, words

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


def test_a_scheduled_weight_is_that_of_every_credit_and_a_metric() -> None:
    composition = Composition({"turn_taking": 4.0, "quality": 1.0}, schedules={"turn_taking": {0: 0.0, 4: 1.0}})
    asked = event("A1", 1, 4, [Expect("responds", content=("noon",))])
    episode = conversation([(4.3, 6.3)], [asked], transcript=words("at noon", 4.4), seconds=15)
    nothing = torch.zeros(1, 1)
    played = Rollout(Trajectory(nothing.long(), nothing.bool(), nothing, 1.0, 0), [episode], [0], 0.0)
    drawn, spec = [Draw(0, "turn", "one", 0, (1,))], DuplexSpec(24_000, 1920, (), 100)
    for iteration, weight in ((0, 0.0), (1, 1.0), (9, 4.0)):
        tally = Tally()
        credits = judge(composition.at(iteration), played, drawn, spec, 187, tally)
        assert {credit.term: credit.weight for credit in credits} == {"turn_taking": weight, "quality": 1.0}
        assert tally.means()["weights/turn_taking"] == weight
        assert tally.means()["rewards/turn_taking/mean"] == 1.0, "it is judged, whatever it weighs"


def test_how_often_a_reward_failed_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names()  # what is built in must not be loaded into the copy that this test throws away
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


def test_a_dry_run_shows_the_prompt_and_the_model_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-never-shown")
    shown = io.StringIO()
    with JudgeServer() as server:
        overrides = [f"judge.base_url={server.url}", "judge.model=tester", "judge.api_key_env=TEST_JUDGE_KEY"]
        run_training("recipes/published_judge", overrides, dry_run=True, console=Console(file=shown, width=80))
        assert not server.requests
    text = shown.getvalue()
    assert f"# judge: tester at {server.url}, its key from $TEST_JUDGE_KEY; nothing was sent" in text
    assert "#     0: irrelevant, unnatural, or no meaningful response (irrelevant, silence, or gibberish)" in text
    assert "sk-never-shown" not in text
    assert yaml.safe_load(text)["judge"]["model"] == "tester"  # what is printed is a configuration still


def test_nothing_of_the_judges_section_is_looked_at_unless_a_term_asks_one() -> None:
    config = JudgeConfig(base_url="nonsense", api_key_env="NOT_SET_ANYWHERE")
    assert open_judge(config, ["turn_taking", "quality"]) is None
    with pytest.raises(UptakeError, match=r"judge\.model is empty"):
        open_judge(config, ["turn_taking", "published_judge"])


def test_a_run_is_not_resumed_with_another_judge(tmp_path: Path) -> None:
    config = load_config("recipes/published_judge", [f"runs={tmp_path}"])
    claim(config.folder, config, resume=False, judged=True)
    moved = load_config("recipes/published_judge", [f"runs={tmp_path}", "judge.base_url=http://127.0.0.1:9/v1"])
    claim(moved.folder, moved, resume=True, judged=True)
    other = load_config("recipes/published_judge", [f"runs={tmp_path}", "judge.model=another"])
    with pytest.raises(UptakeError, match=r"started with judge\.model = Qwen/Qwen3-235B-A22B, now it is another"):
        claim(other.folder, other, resume=True, judged=True)


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


def test_what_must_be_declined_is_an_axis_of_its_own_and_named_where_no_term_judges_it(caplog) -> None:
    scenarios = Pack.load("taxonomy").scenarios("train")
    tagged = sorted(scenario.id for scenario in scenarios if "safety" in scenario.tags)
    axes = by_axis(scenarios)
    assert axes["safety"] == tagged and len(tagged) == 8
    assert sum(len(ids) for ids in axes.values()) == len(scenarios)
    everything = dict.fromkeys((*OURS, "resume", "proactivity", "silence_handling", "collision"), 1.0)
    with caplog.at_level(logging.WARNING):
        check_axes(Composition(everything), scenarios)
    assert [line.split("'")[1] for line in caplog.messages] == ["safety"]
    caplog.clear()
    check_axes(Composition({**everything, "refusal": 1.0}), scenarios)
    assert not caplog.messages


def test_training_is_refused_before_a_checkpoint_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("launch.train.load_policy", load)
    with pytest.raises(UptakeError, match="nothing applies to"):
        prepare(TrainConfig(rewards={"pause_handling": 1.0}, grpo=GrpoConfig()))

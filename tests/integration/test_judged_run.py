"""GRPO on a toy conversation with a language model among its rewards: what the judge changes, and what it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.trainers import grpo
from align.trainers.grpo import GrpoConfig
from envs.chat import chat as chat_module
from envs.event import Event
from rewards import Composition, Verdict, names, reward
from rewards import registry as registry_module
from rewards.judge.config import JudgeConfig
from rewards.judge.judge import Judge
from rewards.judge.rubric import Question, Rubric
from tests.judge_server import JudgeServer
from tests.toy_duplex import FRAME, FRAMES, SCENARIOS, ToyEnv, ToyPolicy

CONFIG = GrpoConfig(
    iterations=3, frames=FRAMES, num_groups=2, num_generations=4, steps_per_generation=2,
    per_device_train_batch_size=4, learning_rate=5e-3, save_steps=1,
)  # fmt: skip
WORDS = Rubric("words", "ours", "Rate the MODEL response on a scale of 0 to 2. Output ONLY a single integer.")


class Env(ToyEnv):
    """Conversations in which something happened."""

    def episode(self, row: int, transcript: tuple = ()):
        played = super().episode(row, transcript)
        meta = {**played.meta, "scenario": "toy", "variant": row}
        return replace(played, events=[Event("turn", "A1", "user", 0, 4 * FRAME)], meta=meta)


@pytest.fixture
def terms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(chat_module, "FIRST_WAIT_S", 0.01)

    @reward("wording", axis="quality", events=["A1"], horizon_s=30.0, rubric=WORDS)
    def wording(view, event):
        text = " ".join(word.text for word in view.transcript)
        return Verdict(None, (0, view.end), question=Question(WORDS, (("USER", "say www and wwww"),), text or "-"))

    @reward("loudness", axis="turn", events=["A1"], horizon_s=30.0)
    def loudness(view, event):
        return Verdict(float(abs(view.agent).mean()), (0, view.end))

    return {"wording": 1.0, "loudness": 1.0}


@pytest.fixture
def train(terms, tmp_path: Path) -> Iterator:
    opened = []

    def run(folder: str, url: str, config: GrpoConfig = CONFIG, resume: bool = False, **settings):
        given = {"model": "tester", "cache": str(tmp_path / "cache"), "retries": 0, **settings}
        judge = Judge(JudgeConfig(base_url=url, **given))
        opened.append(judge)
        (tmp_path / folder).mkdir(exist_ok=True)
        judge.record_in(tmp_path / folder, (WORDS,))
        policy = ToyPolicy(3)
        metrics = grpo.train(
            config, policy, Env, SCENARIOS, Composition(terms, judge=judge), tmp_path / folder, seed=3, resume=resume
        )
        return metrics, policy.model.state_dict()

    yield run
    for judge in opened:
        judge.close()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_with_a_judge_trains_on_it_writes_what_it_said_and_resumes_to_the_same_weights(
    train, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tests.judge_server.score", lambda asked: min(2, len(asked.rpartition("\n")[2].split()) // 3))
    with JudgeServer(latency=0.01) as server:
        metrics, whole = train("whole", server.url)
        assert metrics["judge/faults"] == 0.0
        assert {"rewards/wording/mean", "rewards/loudness/mean", "judge/cached", "faults/wording"} <= metrics.keys()
        train("cut", server.url, replace(CONFIG, iterations=1))
        sent = len(server.requests)
        _, resumed = train("cut", server.url, resume=True)
        assert same(whole, resumed)
        assert len(server.requests) == sent  # the whole run had asked it all
    lines = [json.loads(line) for line in (tmp_path / "whole" / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == CONFIG.iterations * CONFIG.num_groups * CONFIG.num_generations
    assert {(line["term"], line["rubric"], line["model"], line["digest"]) for line in lines} == {
        ("wording", "words", "tester", WORDS.digest)
    }
    assert len({line["episode"] for line in lines}) > CONFIG.num_groups  # each conversation has its own name
    assert json.loads((tmp_path / "whole" / "judge.json").read_text())["rubrics"]["words"]["instructions"] == (
        WORDS.instructions
    )


def test_a_run_goes_on_without_a_judge_that_died_and_the_other_terms_still_teach(train, tmp_path: Path) -> None:
    with JudgeServer(fault=lambda number: "" if number < 5 else "error") as server:
        metrics, weights = train("dying", server.url, breaker_faults=2)
    assert metrics["judge/breaker_open"] > 0
    assert metrics["judge/faults"] >= metrics["judge/breaker_open"]
    lines = [json.loads(line) for line in (tmp_path / "dying" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not same(weights, ToyPolicy(3).model.state_dict())
    said = [json.loads(line) for line in (tmp_path / "dying" / "judgements.jsonl").read_text().splitlines()]
    assert {line["fault"] for line in said} >= {"", "server_error", "breaker_open"}
    assert all(line["episode"].startswith("scenario toy, variant ") for line in said)


def test_masked_verdicts_of_a_judge_change_nothing_for_the_other_terms(train, terms, tmp_path: Path) -> None:
    with JudgeServer(fault=lambda number: "prose") as server:
        _, masked = train("masked", server.url)
    policy = ToyPolicy(3)
    alone = Composition({"loudness": 1.0})
    grpo.train(CONFIG, policy, Env, SCENARIOS, alone, tmp_path / "alone", seed=3)
    assert same(masked, policy.model.state_dict())

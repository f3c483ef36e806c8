"""TRL's own trainer, in our environment, on our rewards."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch

from align.integrations.trl_bridge import check_version, duplex_trainer
from envs.errors import UptakeError
from rewards.compose import term_values
from tests.toy_duplex import FRAMES, SCENARIOS, ToyEnv, ToyJudge, ToyPolicy

trl = pytest.importorskip("trl", minversion="1.16")


def config(folder, **changes):
    settings = {
        "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 1e-2, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "beta": 0.0, "bf16": False,
        "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    return trl.GRPOConfig(str(folder), **(settings | changes))


class Watched(ToyJudge):
    """Remembers what it said."""

    def __init__(self):
        self.said = []

    def score(self, episode):
        verdicts = super().score(episode)
        self.said.append(term_values(verdicts))
        return verdicts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    policy, judge = ToyPolicy(0), Watched()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    ids = [name for axis in SCENARIOS.values() for name in axis]
    trainer = duplex_trainer(policy, ToyEnv, judge, ids, config(tmp_path_factory.mktemp("trl")), frames=FRAMES)
    trainer.train()
    return policy, judge, before, trainer


def test_the_rewards_that_trl_sees_are_those_of_the_composition(trained):
    _, judge, _, trainer = trained
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 2
    assert len(judge.said) == 2 * 8
    for step, found in zip(steps, (judge.said[:8], judge.said[8:]), strict=True):
        for term in ToyJudge.weights:
            mean = sum(values[term] for values in found) / 8
            assert step[f"rewards/{term}/mean"] == pytest.approx(mean, abs=1e-6)
        assert step["reward"] == pytest.approx(sum(sum(values.values()) for values in found) / 8, abs=1e-6)
    assert any(step["reward_std"] > 0 for step in steps)


def test_two_steps_of_trl_move_the_weights_of_the_policy(trained):
    policy, _, before, _ = trained
    after = policy.model.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.isfinite(value).all() for value in after.values())


def test_the_example_in_the_docs_learns_from_the_pack_and_its_rewards(tmp_path, monkeypatch):
    docs = Path(__file__).parents[2] / "docs" / "training.md"
    section = docs.read_text(encoding="utf-8").partition("## In TRL's own trainer")[2]
    example = re.match(r"\n+((?: {4}.*\n|\n)+)", section)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(textwrap.dedent(example[1]), found)
    steps = [entry for entry in found["trainer"].state.log_history if "reward" in entry]
    assert len(steps) == 2
    assert all(step["reward_std"] > 0 and step["grad_norm"] > 0 for step in steps)


def test_the_conversations_of_a_group_meet_the_same_user(tmp_path):
    met = []

    class Seen(ToyEnv):
        def reset(self, *, seed, options):
            met.append(list(zip(options["scenario"], options["variant"], strict=True)))
            return super().reset(seed=seed, options=options)

    duplex_trainer(
        ToyPolicy(0), Seen, ToyJudge(), ["early", "late"], config(tmp_path, max_steps=1), frames=FRAMES
    ).train()
    assert len(met) == 1
    assert sorted(met[0]) == [("early", 0)] * 4 + [("late", 0)] * 4


def test_another_version_of_trl_is_refused_in_one_line():
    for version in ("1.15.0", "1.17.0", "2.0"):
        with pytest.raises(UptakeError, match=rf"trl {version} is installed, tested is .*1\.16"):
            check_version(version)
    check_version("1.16.3")


def test_a_reference_that_trl_would_look_for_by_name_is_refused(tmp_path):
    with pytest.raises(UptakeError, match=r"beta = 0\.1 makes TRL load its reference by name"):
        duplex_trainer(ToyPolicy(0), ToyEnv, ToyJudge(), ["early"], config(tmp_path, beta=0.1))

"""Configurations: complete, typed, and clear about mistakes."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from align.alarms import AlarmConfig
from align.config import TrainConfig, dump_config, load_config, names, save_config
from align.trainers.grpo_config import GrpoConfig
from align.trainers.ppo_config import PpoConfig
from align.trainers.sft_config import SftConfig
from envs.errors import UptakeError
from rewards.detector import DetectorConfig
from rewards.judge.config import JudgeConfig


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def message(source: str, *overrides: str) -> str:
    with pytest.raises(UptakeError) as caught:
        load_config(source, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", names())
def test_every_shipped_configuration_loads_and_can_be_trained_with(name: str) -> None:
    config = load_config(name)
    config.algorithm.check()
    assert config.rewards


def test_the_written_configuration_holds_every_field_and_reads_back_equal(tmp_path: Path) -> None:
    config = load_config("quickstart", ["grpo.iterations=3", "rewards.mine.py:calm=0.5"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config
    written = yaml.safe_load(dump_config(config))
    assert set(written) == set(TrainConfig.__dataclass_fields__)
    assert set(written["grpo"]) == set(type(config.grpo).__dataclass_fields__)


def test_a_ppo_run_is_written_and_read_back_as_one(tmp_path: Path) -> None:
    config = load_config("recipes/ppo", ["ppo.cliprange_value=null"])
    assert config.grpo is None
    assert config.algorithm is config.ppo
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_a_run_is_trained_with_exactly_one_algorithm(tmp_path: Path) -> None:
    both = write(tmp_path, "name: x\ngrpo:\n  frames: 10\nppo:\n  frames: 10\n")
    assert message(both) == f"{both}:4: 'ppo' next to 'grpo' of {both}:2: a run is trained with one; keep one"
    answer = message("recipes/ppo", "grpo.beta=1")
    assert answer.startswith("override 'grpo.beta=1': 'grpo' next to 'ppo' of configs/recipes/ppo.yaml:")
    neither = write(tmp_path, "name: x\n")
    assert message(neither).startswith(f"{neither}: neither 'grpo' nor 'ppo': give one")
    assert load_config(neither, ["ppo.frames=10"]).algorithm.frames == 10


def test_a_key_of_the_other_algorithm_is_not_offered() -> None:
    assert "grpo" not in message("recipes/ppo", "ppo.num_generations=3")
    assert message("recipes/ppo", "iterations=3").endswith("did you mean 'ppo.iterations'?")
    assert message("recipes/ppo", "ppo.cliprnge=0.1").endswith("did you mean 'ppo.cliprange'?")
    assert message("recipes/ppo", "ppo.kl_coeff=0.1").endswith("did you mean 'ppo.kl_coef'?")


def test_an_unknown_key_is_answered_with_file_line_and_nearest_key(tmp_path: Path) -> None:
    source = write(tmp_path, "name: x\ngrpo:\n  frames: 10\n  lerning_rate: 1\n")
    assert message(source) == f"{source}:4: unknown key 'grpo.lerning_rate'; did you mean 'grpo.learning_rate'?"


@pytest.mark.parametrize(
    "override, meant",
    [("sede=1", "seed"), ("iterations=3", "grpo.iterations"), ("grpo.lr=1", "grpo.learning_rate"),
     ("evaluation.varients=2", "evaluation.variants")],
)  # fmt: skip
def test_an_unknown_override_is_answered_with_the_key_that_was_meant(override: str, meant: str) -> None:
    assert message("quickstart", override).endswith(f"did you mean '{meant}'?")


@pytest.mark.parametrize(
    "text, line, says",
    [
        ("grpo:\n  iterations: many\n", 2, "grpo.iterations = 'many': expected a whole number"),
        ("seed: 1\ngrpo: 3\n", 2, "is a section"),
        ("seed: 1\nseed: 2\n", 2, "stands twice"),
        ("seed: 1\nname: [\n", 3, "not YAML"),
        ("rewards:\n  pause_handling: .nan\ngrpo: {}\n", 2, "must be finite"),
        ("name: x\n\nevaluation: {variants: 0}\nppo: {}\n", 3, "must be at least 1"),
        ("- 1\n", 1, "a configuration is a mapping"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    source = write(tmp_path, text)
    answer = message(source)
    assert answer.startswith(f"{source}:{line}: ")
    assert says in answer


@pytest.mark.parametrize("override", ["noequals", "=3", "seed.x=1", "grpo=1", "rewards=[a]", "grpo.iterations=[1"])
def test_an_override_that_says_nothing_is_refused(override: str) -> None:
    assert message("quickstart", override).startswith(f"override '{override}'")


def test_a_number_without_a_point_in_its_exponent_is_a_number() -> None:
    assert load_config("quickstart", ["grpo.learning_rate=1e-4"]).grpo.learning_rate == 1e-4


def test_a_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    assert message("quikstart").endswith("did you mean 'quickstart'?")


@given(st.text(max_size=60))
def test_whatever_the_override_it_loads_or_is_refused_in_one_line(text: str) -> None:
    try:
        load_config("quickstart", [text])
    except UptakeError as error:
        assert "\n" not in str(error) or "\n" in text


def test_a_whole_number_is_a_number_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config("quickstart", ["rewards.quality=2", "grpo.beta=0"]).rewards["quality"] == 2.0


def numbers(config: object) -> list[str]:
    """The fields of a section that hold a number."""
    hints = get_type_hints(type(config))
    return [f.name for f in fields(config) if hints[f.name] in (int, float, int | None, float | None)]


SECTIONS = {
    "grpo": GrpoConfig(), "ppo": PpoConfig(), "sft": SftConfig(), "grpo.alarms": AlarmConfig(),
    "activity": DetectorConfig(), "judge": JudgeConfig(base_url="http://127.0.0.1/v1", model="m"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section, config in SECTIONS.items() for name in numbers(config)],
)
def test_no_number_of_any_section_may_be_what_cannot_be_counted_with(section: str, name: str) -> None:
    config = SECTIONS[section]
    bad = [math.nan, math.inf, -math.inf, -1, -0.5]
    if name.endswith("_db"):  # dBFS are below 0, and nothing ends an activity that ends at -inf
        bad = [math.nan, math.inf]
    elif get_type_hints(type(config))[name] in (int, int | None):  # a file cannot give it anything but whole numbers
        bad = [-1]
    if name.startswith("adam_beta"):
        bad += [1.0, 1.5]
    for value in bad:
        changed = replace(config, **{name: value})
        with pytest.raises(UptakeError) as caught:
            changed.check(*(["grpo"] if section == "grpo.alarms" else []))
        assert f"{section}.{name} = {value}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["seed", "evaluation.seed"])
def test_a_seed_is_a_whole_number_that_torch_takes(name: str) -> None:
    assert load_config("quickstart", [f"{name}={2**63 - 1}"])
    for value in (-1, 2**63):
        assert message("quickstart", f"{name}={value}").endswith("must be 0 or more, and below 2**63")


def test_a_number_that_is_not_finite_is_named_with_where_it_stands_optional_or_not() -> None:
    for name in ("grpo.learning_rate", "grpo.epsilon_high"):
        assert message("quickstart", f"{name}=.inf") == f"override '{name}=.inf': {name} = inf: must be finite"


SMALL = """\
policy: /models/seven-billion
grpo: {iterations: 100, frames: 400, learning_rate: 2e-7}
small:
  policy: pocket
  grpo: {iterations: 2}
"""


def test_the_small_section_is_laid_over_the_rest_only_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(SMALL)
    big, small = (load_config(str(tmp_path / "big.yaml"), overrides) for overrides in ([], ["small=true"]))
    assert (big.policy, big.grpo.iterations, big.grpo.frames) == ("/models/seven-billion", 100, 400)
    assert (small.policy, small.grpo.iterations, small.grpo.frames) == ("pocket", 2, 400)
    assert load_config(str(tmp_path / "big.yaml"), ["small=true", "grpo.iterations=3"]).grpo.iterations == 3


def test_a_mistake_in_the_small_section_is_found_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(SMALL.replace("iterations: 2", "iteration: 2"))
    with pytest.raises(UptakeError, match=r"big.yaml:5: unknown key 'grpo.iteration'; did you mean"):
        load_config(str(tmp_path / "big.yaml"))


def test_small_is_refused_where_there_is_no_such_section() -> None:
    with pytest.raises(UptakeError, match="has no section 'small'"):
        load_config("quickstart", ["small=true"])

"""Weights that change in the course of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config import dump_config, load_config
from envs.errors import UptakeError
from rewards import Composition
from rewards.schedule import factor
from tests.unit.test_rewards_episodes import conversation, event

TERMS = {"turn_taking": 2.0, "waveform": 1.0}


def test_a_factor_is_linear_between_the_iterations_that_are_named_and_constant_outside():
    schedule = {20: 1.0, 10: 0.0}  # in any order
    assert [factor(schedule, at) for at in (0, 10, 15, 20, 500)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert factor({7: 0.25}, 0) == factor({7: 0.25}, 99) == 0.25


@given(st.dictionaries(st.integers(0, 100), st.floats(0, 10), min_size=1), st.integers(0, 200))
def test_a_factor_lies_between_those_that_are_named(schedule, iteration):
    low, high = min(schedule.values()), max(schedule.values())
    assert low - 1e-9 <= factor(schedule, iteration) <= high + 1e-9


def test_a_composition_has_the_weights_of_the_iteration_and_counts_faults_together():
    composition = Composition(TERMS, schedules={"waveform": {0: 0.0, 4: 2.0}})
    assert [composition.at(i).weights["waveform"] for i in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]
    assert all(composition.at(i).weights["turn_taking"] == 2.0 for i in range(9))
    assert composition.weights == TERMS
    composition.at(3).faults["waveform"] += 1
    assert composition.faults["waveform"] == composition.at(7).faults["waveform"] == 1
    plain = Composition(TERMS)
    assert plain.at(3) is plain


def test_a_term_that_weighs_nothing_yet_is_judged_and_moves_no_total():
    answered = conversation([(4.3, 8.0)], [event("A1", 1.0, 4.0)])
    composition = Composition(TERMS, schedules={"waveform": {0: 0.0, 1: 1.0}})
    first, second = composition.at(0), composition.at(1)
    verdicts = first.score(answered)
    assert {verdict.term for verdict in verdicts} == set(TERMS)
    assert first.total(verdicts) == 1.0
    assert second.total(verdicts) == Composition(TERMS).total(verdicts)
    alone = Composition({"turn_taking": 1.0}, schedules={"turn_taking": {0: 0.0}}).at(0)
    assert alone.total(alone.score(answered)) == 0.0


@pytest.mark.parametrize(
    "schedules, message",
    [
        ({"wavefrom": {0: 1.0}}, "'wavefrom' is no term of `rewards`; did you mean 'waveform'"),
        ({"quality": {0: 1.0}}, "'quality' is no term of `rewards`"),
        ({"waveform": {}}, "schedules.waveform: names no iteration"),
        ({"waveform": {-1: 1.0}}, r"schedules.waveform: \{-1: 1.0\}; give iterations from 0"),
        ({"waveform": {0: -0.5}}, r"schedules.waveform: \{0: -0.5\}"),
        ({"waveform": {0: float("nan")}}, "factors of 0 or more"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(schedules, message):
    with pytest.raises(UptakeError, match=message):
        Composition(TERMS, schedules=schedules)


def test_a_configuration_names_schedules_in_yaml_or_in_an_override_and_writes_them_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rewards: {turn_taking: 2.0, waveform: 1.0}\nschedules: {waveform: {0: 0, 4: 1}}\ngrpo: {iterations: 2}\n"
    )
    config = load_config(str(path))
    assert config.schedules == {"waveform": {0: 0.0, 4: 1.0}}
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(str(again)).schedules == config.schedules
    changed = load_config("quickstart", ["schedules.quality={0: 0.5, 10: 1}"])
    assert changed.schedules == {"quality": {0: 0.5, 10: 1.0}}
    assert load_config("quickstart").schedules == {}
    for wrong in ("3", "{early: 1}", "{0: [1]}", "{0: much}"):
        with pytest.raises(UptakeError, match="expected a mapping of whole numbers to a number"):
            load_config("quickstart", [f"schedules.quality={wrong}"])

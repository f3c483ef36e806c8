"""Evaluations: the same conversations on both sides, whatever is played beside them; honest comparisons."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.comparison import LABELS, compare, single
from align.config import load_config
from align.curriculum import by_axis
from align.evaluation import Evaluation, evaluate, examples, play, policy_seed
from align.loading import BASELINES, find_folder, load_policy
from align.policies.moshi.checkpoint import saved_dtype
from align.policies.moshi.policy import MoshiPolicy
from align.unheard import most_plays
from envs.errors import UptakeError
from envs.pack import Pack
from launch.evaluate import find_system
from launch.terminal import ranking_line
from launch.train import prepare
from rewards.bootstrap import units
from rewards.measures import MEASURES
from tests.packs import tiny_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("pack"))


def played(pack: Pack, name: str, **changes: int) -> Evaluation:
    settings = {"variants": 2, "frames": 60, "batch": 32, "seed": 3} | changes
    return evaluate(BASELINES[name], pack, "train", name=name, **settings)  # type: ignore[arg-type]


def test_figures_do_not_depend_on_what_is_played_side_by_side(pack: Pack) -> None:
    one, many = played(pack, "vad_200", batch=3), played(pack, "vad_200", batch=50)
    # Which clip an agent says is picked by its row; when it speaks is not.
    for name in ("turn_response", "pause_takeover", "cut_in"):
        assert one.figures()[name] == pytest.approx(many.figures()[name], nan_ok=True)
    silent = [played(pack, "silent", batch=batch).scenarios for batch in (3, 50)]
    assert silent[0] == silent[1]


def test_the_same_policy_compared_with_itself_has_not_changed(pack: Pack) -> None:
    evaluation = played(pack, "vad_700")
    result = compare(evaluation, evaluation, run={"name": "same"}, resamples=50)
    assert result["rows"]
    for row in result["rows"]:
        assert row["verdict"] in ("unchanged", "")
        assert row["delta"] in (0.0, None)


def test_a_better_agent_is_called_better_and_the_other_way_round_worse(pack: Pack) -> None:
    """In a pack that is six times as large and never says the same."""
    silent, oracle = (
        dataclasses.replace(
            one, scenarios={f"{name} {i}": rows for name, rows in one.scenarios.items() for i in range(6)}, shares={}
        )
        for one in (played(pack, "silent"), played(pack, "oracle"))
    )
    forth = {row["measure"]: row for row in compare(silent, oracle, run={}, resamples=200)["rows"]}
    back = {row["measure"]: row for row in compare(oracle, silent, run={}, resamples=200)["rows"]}
    assert forth["turn_response"]["verdict"] == "better"
    assert back["turn_response"]["verdict"] == "worse"
    for name, row in forth.items():
        if row["low"] is not None:
            assert row["low"] == pytest.approx(-back[name]["high"])


def test_the_same_difference_at_a_handful_of_texts_is_no_verdict(pack: Pack) -> None:
    silent, oracle = played(pack, "silent"), played(pack, "oracle")
    found = {row["measure"]: row for row in compare(silent, oracle, run={}, resamples=50)["rows"]}["turn_response"]
    assert found["delta"] == 1.0 and found["n"] < 6
    assert found["verdict"] == "unchanged"


def test_voices_and_twins_of_a_text_are_one_unit_in_the_core_pack() -> None:
    pack = Pack.load("core")
    scenarios = pack.scenarios("test")
    shares = {scenario.id: pack.shares(scenario) for scenario in scenarios}
    found = units({scenario.id: [scenario] for scenario in scenarios}, shares).values()
    stories = {share for one in scenarios if "story" in one.tags for share in shares[one.id][1:]}
    assert sum(any("story" in one.tags for one in unit) for unit in found) == len(stories)
    for unit in found:
        inside = {one.id for one in unit}
        assert all(one.twin is None or one.twin in inside for one in unit)
    said = [{share for one in unit for share in shares[one.id]} for unit in found]
    assert len(set().union(*said)) == sum(map(len, said)), "nothing is said in two units"


def test_a_result_is_strict_json_and_its_agents_stand_beside_it(pack: Pack) -> None:
    before = played(pack, "silent")
    result = compare(before, played(pack, "vad_200"), [before, played(pack, "oracle")], run={"name": "x"}, resamples=20)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [system["name"] for system in result["systems"]] == ["silent", "oracle"]
    assert result["run"]["episodes"] == before.episodes == 2 * len(pack.scenarios("train"))
    assert {row["measure"] for row in single(before, 20)["rows"]} <= set(LABELS)


def test_a_result_says_whether_constant_agents_rank_below_and_the_oracle_above(pack: Pack) -> None:
    low, high, silent = played(pack, "vad_700"), played(pack, "vad_200"), played(pack, "silent")
    oracle, talking = played(pack, "oracle"), played(pack, "always_talking")
    result = compare(low, high, [silent, talking, oracle], run={}, resamples=10)
    scores = result["ranking"]["scores"]
    assert scores["oracle"] > max(scores["vad_200"], scores["vad_700"])
    assert (result["ranking"]["constant_below"], result["ranking"]["oracle_above"]) == (True, True)
    assert "silent 0.000, always talking 0.000: below both checkpoints; oracle" in ranking_line(result)
    worse = compare(silent, high, [talking, oracle], run={}, resamples=10)
    assert worse["ranking"]["constant_below"] is False, "a tie is not below"
    assert "always talking 0.000: NOT below both checkpoints" in ranking_line(worse)
    assert ranking_line(compare(low, high, run={}, resamples=10)) == ""


@pytest.mark.parametrize("field, value", [("seed", 4), ("frames", 50), ("pack_hash", "other"), ("split", "dev")])
def test_evaluations_of_different_conversations_are_not_compared(pack: Pack, field: str, value: object) -> None:
    before = played(pack, "silent")
    with pytest.raises(UptakeError, match=f"cannot be compared: {field} is"):
        compare(before, dataclasses.replace(before, **{field: value}), run={})


def test_a_saved_evaluation_reads_back_with_the_same_figures(pack: Pack, tmp_path: Path) -> None:
    evaluation = played(pack, "vad_200")
    evaluation.examples = examples(pack.scenarios("train"), 2)
    evaluation.save(tmp_path / "evaluation.json")
    again = Evaluation.load(tmp_path / "evaluation.json")
    assert again.examples == evaluation.examples
    assert compare(evaluation, again, run={}, resamples=10)["rows"][0]["delta"] == 0
    (tmp_path / "evaluation.json").write_text('{"version": 1, "name"')
    with pytest.raises(UptakeError, match="delete it to measure again"):
        Evaluation.load(tmp_path / "evaluation.json")


def test_the_twin_without_the_event_sounds_the_same_up_to_it_and_then_has_room_tone_alone(pack: Pack) -> None:
    key = [("ack", 0)]
    heard, unheard = (
        play(BASELINES["always_talking"], world, key, split="train", seed=3, frames=60)[0]
        for world in (pack, pack.unheard(["D1"]))
    )
    assert heard.events == unheard.events
    assert most_plays([pack.scenario("ack"), pack.scenario("turn")]) == 3
    (told,) = (event for event in heard.events if event.type == "D1")
    assert np.array_equal(heard.mic[: told.onset], unheard.mic[: told.onset])
    assert np.abs(heard.user[told.onset : told.offset]).max() > 0.0 == np.abs(unheard.user[told.onset :]).max()


def test_who_stops_at_every_sound_and_who_stops_anyway_are_told_apart(pack: Pack) -> None:
    listens, counts = played(pack, "vad_700").figures(), played(pack, "metronome").figures()
    assert listens["false_stop_rate"] == listens["false_stop"] - listens["false_stop_twin"] > 0.0
    assert counts["false_stop"] > 0.0 == counts["false_stop_rate"]  # a clock hears nothing


def test_an_evaluation_from_before_a_measure_was_there_is_compared_in_the_others(pack: Pack, tmp_path: Path) -> None:
    evaluation = played(pack, "vad_700")
    evaluation.save(tmp_path / "evaluation.json")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    for rows in record["scenarios"].values():
        for row in rows:
            for name in ("over_talk_ms", "false_stop_twin", "false_stop_rate"):
                del row[name]
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    old = Evaluation.load(tmp_path / "evaluation.json")
    found = {row["measure"]: row for row in compare(old, evaluation, run={}, resamples=20)["rows"]}
    assert (found["false_stop"]["delta"], found["false_stop"]["verdict"]) == (0.0, "unchanged")
    added = found["false_stop_rate"]
    assert added["before"] is added["delta"] is None
    assert added["after"] == evaluation.figures()["false_stop_rate"]


def test_a_report_shows_one_conversation_of_every_kind_before_a_second_of_any(pack: Pack) -> None:
    axes = by_axis(pack.scenarios("train"))
    axis_of = {name: axis for axis, names in axes.items() for name in names}
    shown = [axis_of[example.key[0]] for example in examples(pack.scenarios("train"), len(axes))]
    assert sorted(shown) == sorted(axes)
    assert len({example.folder for example in examples(pack.scenarios("train"), 99)}) == len(pack.scenarios("train"))


def test_a_policys_seed_depends_on_the_conversation_alone() -> None:
    seeds = {policy_seed(seed, name, v) for seed in range(3) for name in ("a", "b") for v in range(4)}
    assert len(seeds) == 24
    assert policy_seed(1, "a", 2) == policy_seed(1, "a", 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_measure_that_a_table_names_exists() -> None:
    assert set(LABELS) <= set(MEASURES)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match="no checkpoint 'nowhere'"):
        load_policy("nowhere")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pocket, as a checkpoint of bfloat16."""
    folder = tmp_path_factory.mktemp("published") / "bf16"
    MoshiPolicy.load(find_folder("pocket")).export(folder, dtype=torch.bfloat16)
    return folder


def precisions(policy: Any) -> set[torch.dtype]:
    return {p.dtype for p in policy.model.parameters()}


def test_a_policy_is_loaded_in_one_precision_and_on_a_cpu_in_float32(published: Path) -> None:
    assert precisions(load_policy(str(published))) == {torch.float32}
    assert precisions(load_policy("pocket", dtype=torch.bfloat16)) == {torch.bfloat16}


def test_what_was_published_in_bfloat16_is_known_and_an_adapter_is_not_rounded(published: Path, tmp_path: Path) -> None:
    assert saved_dtype(published) == torch.bfloat16
    assert saved_dtype(find_folder("pocket")) == torch.float32, "float16 is how it is stored, not how it runs"
    policy = MoshiPolicy.load(published)
    policy.export(tmp_path / "adapter", "kyutai-lora", dtype=torch.bfloat16, base=published)
    assert saved_dtype(tmp_path / "adapter") == torch.float32


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_measures_before_it_in_the_precision_that_it_trains_in(published: Path, bf16: bool) -> None:
    settings = [f"policy={published}", f"grpo.bf16={str(bf16).lower()}", "grpo.zero_stage=1"]
    job = prepare(load_config("quickstart", settings))
    assert precisions(job.policy) == {torch.bfloat16 if bf16 else torch.float32}


def test_the_precision_of_an_evaluation_can_be_said() -> None:
    assert precisions(find_system("pocket", 100, dtype="bfloat16")) == {torch.bfloat16}
    with pytest.raises(UptakeError, match="--dtype bfloat17: unknown; did you mean 'bfloat16'"):
        find_system("pocket", 100, dtype="bfloat17")

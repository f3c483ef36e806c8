"""DeepSpeed on CPU: the same updates whatever the ranks, the ZeRO stage, the micro-batches, offload or recomputation,
with all weights or adapters; and a checkpoint that any of these set-ups writes and any other reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import engine_case
from tests.engine_case import CASES, Case, Trained
from tests.ranks import run_ranks

PLAIN = [case for case in CASES if case == Case(case.kind, case.stage)]
MATRIX = """
import json, sys
from pathlib import Path
from tests.engine_case import two_ranks

print(json.dumps(two_ranks(Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def plain() -> dict[str, list[dict[str, Any]]]:
    return {kind: engine_case.plain(kind, 5) for kind in ("full", "lora")}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder, seen = tmp_path_factory.mktemp("matrix"), {}
    for case in PLAIN:
        seen[str(case)] = engine_case.first_half(case, folder / f"one-{case}", micro=3)[1]
    return folder, seen


@pytest.fixture(scope="module")
def two_ranks(one_rank: tuple[Path, Any]) -> dict[str, Any]:
    """Started once; every set-up is tried inside."""
    first, second = run_ranks(MATRIX, str(one_rank[0]), world=2, timeout=540.0)
    assert first == second
    return first


def close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
        assert a["norm"] == pytest.approx(b["norm"], abs=10 * tolerance)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_one_rank_in_uneven_micro_batches_makes_the_updates_of_plain_torch(one_rank, plain, case):
    seen, known = one_rank[1][str(case)], plain[case.kind][:3]
    for name, grad in known[0]["grads"].items():
        assert (seen[0]["grads"][name] - grad).abs().max() <= 1e-6, name
    close(seen, known, 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if not case.bf16], ids=str)
def test_two_ranks_make_the_updates_of_plain_torch(two_ranks, plain, case):
    seen = two_ranks[str(case)]["seen"]
    assert seen[0]["grads"] <= 1e-6  # the largest difference in any element of the gradient
    close(seen, plain[case.kind], 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.bf16], ids=str)
def test_bfloat16_with_full_masters_follows_full_precision_closely(two_ranks, plain, case):
    close(two_ranks[str(case)]["seen"], plain["full"], 3e-2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_resumes_on_as_many_ranks_goes_on_bit_for_bit(two_ranks, case):
    assert two_ranks[str(case)]["resumed"] == two_ranks[str(case)]["seen"][3:]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_adapters_the_model_is_the_reference_and_released_weights_are_whole(two_ranks, case):
    assert two_ranks[str(case)]["reference"]
    assert two_ranks[str(case)]["released"]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_two_ranks_go_on_from_what_one_rank_wrote_under_another_stage(two_ranks, plain, case):
    close(two_ranks[str(case)]["from one rank"], plain[case.kind][3:], 1e-5)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_one_rank_goes_on_from_what_two_ranks_wrote_under_another_stage(one_rank, two_ranks, plain, case):
    alone = Trained(Case(case.kind, (case.stage + 1) % 4))
    alone.load(one_rank[0] / f"two-{case}")
    close(engine_case.second_half(alone, micro=8), plain[case.kind][3:], 1e-5)


PLANNED = """
import json, sys
from align import plan
from align.policies.moshi.model import MoshiModel
from align.trainers.grpo_config import GrpoConfig
from align.trainers.learner import Learner, choose_trained
from tests import tiny_moshi

config = GrpoConfig(zero_stage=int(sys.argv[1]), beta=0.0)
policy = tiny_moshi.policy()
engine = Learner(policy, config).engine
engine.backward(sum(p.sum() for p in policy.model.parameters() if p.requires_grad), last=True)
engine.step(1e-3)
held = [t for state in engine._base_optimizer.state.values() for t in state.values()]
held += engine._masters() if config.zero_stage else []  # otherwise the weights themselves
model = MoshiModel(tiny_moshi.config())
choose_trained(model, config)
held = sum(t.numel() * t.element_size() for t in held)
print(json.dumps([held, plan.memory(model, policy.spec, config, engine.world, 0)["optimiser"]]))
"""


@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_the_optimiser_holds_what_the_plan_says(stage):
    for held, planned in run_ranks(PLANNED, stage, world=2):
        assert held == pytest.approx(planned, rel=0.02)

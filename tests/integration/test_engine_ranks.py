"""DeepSpeed on CPU: the same updates whatever the number of ranks, the ZeRO stage and the micro-batches."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks

UPDATES = """
import json, math, sys
import torch
from align.engine import Engine, EngineConfig
from tests.toy_duplex import ToyModel

stage, bf16, micro = int(sys.argv[1]), sys.argv[2] == "bf16", int(sys.argv[3])
model = ToyModel(0)
engine = Engine(model, EngineConfig(zero_stage=stage, bf16=bf16, learning_rate=1e-2, max_grad_norm=0.5, timeout=60))
g = torch.Generator().manual_seed(1)
heard = torch.randint(0, 8, (6, 8, 10), generator=g)
said = torch.randint(0, 5, (6, 8, 10), generator=g)
active = torch.rand(6, 8, 10, generator=g) < 0.4          # uneven: local means would be another loss
share = 8 // engine.world
mine = torch.arange(8)[engine.rank * share : (engine.rank + 1) * share]
seen = []

def update(i, give_up=False, broken=False):
    parts, total = mine.split(micro), 0.0
    for k, rows in enumerate(parts):
        logits, *_ = engine(heard[i][rows], said[i][rows])
        logp = logits.log_softmax(-1).gather(-1, said[i][rows].unsqueeze(-1)).squeeze(-1)
        loss = -(logp * active[i][rows]).sum() / active[i].sum() * engine.world
        if broken and engine.rank == 0:                       # the loss stays finite, its gradient is NaN
            loss = loss + (0.0 * logits.sum()).sqrt()
        if give_up and k == len(parts) - 1:
            engine.discard()
            return
        engine.backward(loss, last=k == len(parts) - 1)
        total += float(loss.detach())
    norm = engine.step(1e-2)
    if broken:
        assert math.isfinite(total) and math.isnan(norm), (total, norm)
        return
    seen.append([engine.total([total])[0] / engine.world, norm])

def restart():
    engine.load_model_tensors(weights)
    engine.load_optimizer_tensors(state)

update(0)
update(1)
update(2, give_up=True)                                   # must leave no trace
update(2, broken=True)                                    # on one rank: neither
update(2)
weights = engine.collect(engine.model_tensors())[0]
state = {name: tensor.clone() for name, tensor in engine.optimizer_tensors().items()}
update(3); update(4)
first = seen[-2:]
restart()
update(3); update(4)
assert seen[-2:] == first, (seen[-2:], first)             # bit for bit
with engine.gathered() as whole, torch.inference_mode():
    alone, *_ = whole(heard[0], said[0])
update(5)                                                 # and the hooks are back
with engine.gathered() as whole, torch.inference_mode():
    last, *_ = whole(heard[0], said[0])
engine.release()
assert torch.equal(model(heard[0], said[0])[0], last)
print(json.dumps({"seen": seen, "alone": float(alone.double().sum())}))
"""


@pytest.fixture(scope="module")
def plain():
    return run_ranks(UPDATES, "0", "fp32", "8")[0]


@pytest.mark.parametrize("stage", ["0", "2", "3"])
def test_two_ranks_make_the_same_updates_as_one(plain, stage):
    two = run_ranks(UPDATES, stage, "fp32", "2", world=2)
    assert two[0] == two[1]
    for (loss, norm), (loss_one, norm_one) in zip(two[0]["seen"], plain["seen"], strict=True):
        assert loss == pytest.approx(loss_one, abs=1e-5)
        assert norm == pytest.approx(norm_one, abs=1e-4)
    assert two[0]["alone"] == pytest.approx(plain["alone"], abs=1e-3)


def test_stage_1_in_bfloat16_follows_full_precision_closely(plain):
    half = run_ranks(UPDATES, "1", "bf16", "4")[0]
    for (loss, _), (loss_one, _) in zip(half["seen"], plain["seen"], strict=True):
        assert loss == pytest.approx(loss_one, abs=5e-3)


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
held = {name: t.numel() * t.element_size() for name, t in engine.optimizer_tensors().items()}
if not config.zero_stage:  # the weights themselves
    held = {name: size for name, size in held.items() if not name.endswith(".master")}
model = MoshiModel(tiny_moshi.config())
choose_trained(model, config)
print(json.dumps([sum(held.values()), plan.memory(model, config, engine.world, 0)["optimiser"]]))
"""


@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_the_optimiser_holds_what_the_plan_says(stage):
    for held, planned in run_ranks(PLANNED, stage, world=2):
        assert held == pytest.approx(planned, rel=0.02)

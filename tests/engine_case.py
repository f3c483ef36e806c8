"""Updates of a small Moshi-class model under the engine in every set-up, next to the same updates in plain torch.

The plain ones know no ranks, micro-batches or ZeRO: the whole batch, its gradient, `torch.optim.AdamW`. An update's
loss is uneven on purpose: few active frames, at other places in every row, so that means of means are another loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align import checkpoints
from align.engine import Engine, EngineConfig
from align.lora import adapters_off, add_lora
from tests import tiny_moshi

ROWS, FRAMES, RATE, CLIP = 8, 10, 1e-2, 0.5
LORA = r"transformer\.layers\.1\..*"  # a subset of the layers


@dataclass(frozen=True)
class Case:
    """One way to store and compute the same thing."""

    kind: str = "full"
    """full: all weights that text depends on; lora: adapters in one layer."""
    stage: int = 0
    bf16: bool = False
    offload: str = "none"
    recompute: bool = False

    def __str__(self) -> str:
        extras = [self.offload] * (self.offload != "none") + ["bf16"] * self.bf16 + ["recompute"] * self.recompute
        return "-".join([self.kind, f"zero{self.stage}", *extras])


CASES = [
    *(Case(kind, stage) for kind in ("full", "lora") for stage in range(4)),
    *(Case(stage=stage, bf16=True) for stage in (1, 2, 3)),
    *(Case(stage=stage, offload="optimizer") for stage in (1, 2, 3)),
    Case("lora", 3, offload="all"),
    *(Case(stage=stage, recompute=True) for stage in (0, 3)),
]


class Text(nn.Module):
    """The model's text half as a module of its own, as the trainers have it."""

    def __init__(self, kind: str, recompute: bool = False) -> None:
        super().__init__()
        self.model = tiny_moshi.policy().model
        with torch.random.fork_rng():
            torch.manual_seed(3)
            if kind == "lora":
                add_lora(self.model, LORA, r=4, alpha=8)
                for name, parameter in self.model.named_parameters():
                    if "lora_B" in name:  # zeros at first, and A would have no gradient
                        parameter.data.normal_(0, 0.1)
            else:
                for name, parameter in self.model.named_parameters():
                    parameter.requires_grad_(not name.startswith(("depformer", "linears")))
        self.model.recompute = recompute

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.text_forward(codes)[1].float()


def batch(update: int) -> tuple[Tensor, Tensor]:
    """Codes (8, 17, T) and active frames (8, T) of an update."""
    generator = torch.Generator().manual_seed(update)
    codes = torch.randint(0, tiny_moshi.CARD, (ROWS, 17, FRAMES), generator=generator)
    return codes, torch.rand(ROWS, FRAMES, generator=generator) < 0.4


def loss_sum(logits: Tensor, codes: Tensor, active: Tensor) -> Tensor:
    """Negative log-likelihood of the text, summed over active frames."""
    logp = logits.log_softmax(-1).gather(-1, codes[:, 0].unsqueeze(-1)).squeeze(-1)
    return -(logp * active).sum()


def plain(kind: str, updates: int) -> list[dict[str, Any]]:
    """Loss, norm and gradients of each update, in plain torch."""
    module = Text(kind)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    out = []
    for update in range(updates):
        codes, active = batch(update)
        loss = loss_sum(module(codes), codes, active) / active.sum()
        optimizer.zero_grad()
        loss.backward()
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
        norm = float(nn.utils.clip_grad_norm_(list(parameters.values()), CLIP))
        optimizer.step()
        out.append({"loss": loss.item(), "norm": norm, "grads": grads})
    return out


class Trained:
    """A case under the engine."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.module = Text(case.kind, case.recompute)
        config = EngineConfig(
            zero_stage=case.stage, bf16=case.bf16, offload=case.offload, learning_rate=RATE, max_grad_norm=CLIP,
            timeout=60.0,
        )  # fmt: skip
        self.engine = Engine(self.module, config)

    def update(
        self, number: int, micro: int, *, give_up: bool = False, broken: bool = False, grads: bool = False
    ) -> Any:
        """One update of this rank's rows; what `plain` returns of it.

        Args:
            give_up: discard it after all but the last micro-batch.
            broken: the first rank's gradient is NaN while its loss is finite.
        """
        engine = self.engine
        codes, active = batch(number)
        share = ROWS // engine.world
        parts = torch.arange(ROWS)[engine.rank * share : (engine.rank + 1) * share].split(micro)
        total = 0.0
        for turn, rows in enumerate(parts):
            logits = engine(codes[rows])
            loss = loss_sum(logits, codes[rows], active[rows]) / active.sum() * engine.world
            if broken and engine.rank == 0:
                loss = loss + (0.0 * logits.sum()).sqrt()
            last = turn == len(parts) - 1
            if give_up and last:
                engine.discard()
                return None
            engine.backward(loss, last=last)
            total += float(loss.detach())
        found = self._grads() if grads else None
        norm = engine.step(RATE)
        if broken:
            assert math.isfinite(total) and math.isnan(norm), (total, norm)
            return None
        return {"loss": engine.total([total])[0] / engine.world, "norm": norm, "grads": found}

    def _grads(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if self.case.stage == 0:
            return {name: torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in named.items()}
        whole = {name: safe_get_full_grad(p) for name, p in named.items()}
        return {name: torch.zeros(()) if grad is None else grad for name, grad in whole.items()}

    def save(self, folder: Path) -> None:
        checkpoints.save_checkpoint(
            folder, 3, model=self.engine.model_tensors(), optimizer=self.engine.optimizer_tensors(),
            rng=checkpoints.rng_tensors(), state={}, keep=1, rank=self.engine.rank, world=self.engine.world,
            barrier=self.engine.agree,
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        done = checkpoints.load_latest(folder, rank=self.engine.rank)
        self.engine.load_model_tensors(done.model)
        with done.optimizer as saved:
            self.engine.load_optimizer_tensors(saved)


def first_half(case: Case, folder: Path, micro: int) -> tuple[Trained, list[dict[str, Any]]]:
    """Three updates with two in between that must leave no trace, and a checkpoint."""
    trained = Trained(case)
    seen = [trained.update(0, micro, grads=not case.bf16), trained.update(1, micro)]
    trained.update(2, micro, give_up=True)
    trained.update(2, micro, broken=True)
    seen.append(trained.update(2, micro))
    trained.save(folder)
    return trained, seen


def second_half(trained: Trained, micro: int) -> list[dict[str, Any]]:
    """Two more updates."""
    return [trained.update(number, micro) for number in (3, 4)]


def reference_is_the_base(trained: Trained) -> bool:
    """Whether the model without its adapters is, bit for bit, the one that they were put into."""
    codes, _ = batch(0)
    with trained.engine.gathered() as whole, torch.no_grad():
        with adapters_off(trained.module.model):
            off = whole(codes)
        on = whole(codes)
    return torch.equal(off, Text("full")(codes).detach()) and not torch.equal(off, on)


def two_ranks(folder: Path) -> dict[str, Any]:
    """Every case on the ranks of this program: what the updates were, and what became of resuming."""
    out = {}
    for case in CASES:
        trained, seen = first_half(case, folder / f"two-{case}", micro=2)
        rest = second_half(trained, micro=2)
        again = Trained(case)
        again.load(folder / f"two-{case}")
        if grads := seen[0]["grads"]:
            known = plain(case.kind, 1)[0]["grads"]
            seen[0]["grads"] = max(float((grads[name] - grad).abs().max()) for name, grad in known.items())
        out[str(case)] = {
            "seen": seen + rest,
            "resumed": second_half(again, micro=2),
            "reference": case.kind == "full" or reference_is_the_base(trained),
        }
        one = folder / f"one-{case}"
        if one.is_dir():  # written by a single rank, under another stage
            other = Trained(Case(case.kind, (case.stage + 1) % 4))
            other.load(one)
            out[str(case)]["from one rank"] = second_half(other, micro=4)
        with trained.engine.gathered() as whole, torch.no_grad():
            last = whole(batch(0)[0])
        trained.engine.release()
        out[str(case)]["released"] = torch.equal(trained.module(batch(0)[0]).detach(), last)
    return out

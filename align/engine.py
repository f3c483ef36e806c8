"""A thin wrapper round `deepspeed.initialize`: one rank or many, CPU (gloo) or GPU (nccl), ZeRO 0 to 3, fp32 or bf16.

The trainer keeps its loop and its loss. The engine owns what depends on how weights are stored: forward, backward,
step, gathering the weights for a rollout, and the tensors of a checkpoint. Start more ranks with

    torchrun --nproc_per_node 2 -m launch.cli train quickstart

which is the same command; the ranks come from the environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.fragments import Fragment, fragments
from align.ranks import start_ranks, watch
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.saved_optimizer import SavedOptimizer


@dataclass
class EngineConfig:
    """How weights, gradients and optimiser state are stored and updated."""

    zero_stage: int = 0
    bf16: bool = False
    offload: str = "none"
    """none; optimizer: its state and master weights live in the CPU's memory; all: at stage 3 the weights as well."""
    max_grad_norm: float = 1.0
    learning_rate: float = 1e-6
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.0
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Start of a parameter's name -> factor of its learning rate."""
    timeout: float = 1800.0
    """Seconds that a rank waits for the others in a collective operation."""


class Engine:
    """A module under DeepSpeed.

    `forward` calls the module; `backward` adds a micro-batch; `step` updates. Every rank must make the same calls.
    """

    def __init__(self, module: nn.Module, config: EngineConfig) -> None:
        deepspeed = start_ranks(config.timeout)
        self.config = config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.watch = watch()
        self.module = module
        self._trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._trainable:
            raise UptakeError("nothing to train: every parameter of the policy is frozen; check `frozen`")
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in self._trainable.items():
            factor = next((f for start, f in config.rate_factors.items() if name.startswith(start)), 1.0)
            groups.setdefault(factor, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": parameters, "factor": factor} for factor, parameters in groups.items()],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        with self.watch.together():
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
            )
        self._fragments: list[Fragment] = fragments(self._engine.optimizer, config.zero_stage, self._trainable)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, with gradient unless the caller turned it off."""
        with self.watch.together():  # stage 3 gathers weights on the way
            return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient. Micro-batches are summed, ranks are averaged.

        Args:
            loss: scalar.
            last: True for the last micro-batch before `step`: this is when ranks exchange gradients.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        with self.watch.together():
            self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update, and forget the gradient. One that is not finite is forgotten without an update, on all ranks.

        Returns:
            Norm of the gradient before clipping; NaN if there was no update.
        """
        for group in self._base_optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        norm = _norm(self._gradients())
        # DeepSpeed checks this only for some stages and precisions, and stage 3 then tells the norm of the step before.
        if not self.all_true(bool(norm.isfinite())):
            self.discard()
            return math.nan
        with self.watch.together():
            self._engine.step()
        # Without ZeRO DeepSpeed clips without telling the norm; with it, `norm` was that of this rank's part.
        return float(self._engine.get_global_grad_norm() if self.config.zero_stage else norm)

    def _gradients(self) -> list[Tensor]:
        """Gradients that the next `step` will use: whole ones, or under ZeRO this rank's part."""
        if self.config.offload != "none":
            return [master.grad for master in self._masters() if master.grad is not None]
        if self.config.zero_stage:
            return [part for parts in self._engine.optimizer.averaged_gradients.values() for part in parts]
        return [p.grad for p in self._trainable.values() if p.grad is not None]

    def discard(self) -> None:
        """Forget micro-batches that were added since the last step."""
        self._engine.zero_grad()
        optimizer = self._engine.optimizer
        optimizer.zero_grad()
        if self.config.zero_stage in (1, 2):
            for table in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                for key in table:
                    table[key] = None
        if self.config.zero_stage == 3:
            optimizer.averaged_gradients = {}
        if self.config.offload != "none":
            for master in self._masters():
                if master.grad is not None:
                    master.grad.zero_()
            if self.config.zero_stage < 3:
                # Otherwise the next micro-batch is added to the forgotten ones.
                optimizer.micro_step_id = -1
                optimizer.reset_cpu_buffers()

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """The module with whole weights on every rank and no hooks: for rollouts, export and saving.

        Under ZeRO-3 this gathers once; a rollout that gathered layer by layer and frame by frame is 19 times slower.
        """
        if self.config.zero_stage < 3:
            yield self.module
            return
        import deepspeed

        offload = self._engine.optimizer.parameter_offload
        with ExitStack() as stack:
            with self.watch.together():
                stack.enter_context(deepspeed.zero.GatheredParameters(list(self.module.parameters())))
            self._unhook()
            try:
                yield self.module
            finally:
                coordinator = offload.get_param_coordinator()
                if not coordinator.is_invalid_trace():
                    coordinator._invalidate_trace()
                offload._register_deepspeed_module(offload.module)

    def release(self) -> None:
        """Leave the module with whole weights and no hooks on every rank, for use without the other ranks."""
        if self.config.zero_stage == 3:
            with self.gathered():
                whole = {name: p.detach().clone() for name, p in self.module.named_parameters()}
            self._unhook()
            for name, parameter in self.module.named_parameters():
                parameter.data = whole[name]
        # A rank may end now. A gloo thread that still holds a tensor of the last collective when the interpreter ends
        # aborts the process; a barrier holds none, and lets go of the interpreter while it waits.
        with self.watch.together():
            dist.barrier()

    def _unhook(self) -> None:
        """Take ZeRO-3's gathering out of the module."""
        offload = self._engine.optimizer.parameter_offload
        for parameter in self.module.parameters():
            parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []

    # Checkpoints ------------------------------------------------------------------------------------------------

    def model_tensors(self) -> dict[str, Tensor] | None:
        """Trainable weights by name, on rank 0; None elsewhere. Call it on every rank."""
        with self.gathered():
            if self.rank:
                return None
            return {name: p.detach().to("cpu", copy=True) for name, p in self._trainable.items()}

    def load_model_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Write weights that `model_tensors` returned.

        Raises:
            UptakeError: the names or shapes are those of another model.
        """
        theirs, ours = set(tensors), set(self._trainable)
        if theirs != ours:
            odd = sorted(theirs ^ ours)[0]
            raise UptakeError(f"checkpoint of another model: parameter '{odd}' is only in {_side(odd in theirs)}")
        import deepspeed

        for name, parameter in self._trainable.items():
            context = (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
                if self.config.zero_stage == 3
                else torch.no_grad()
            )
            with self.watch.together(), context, torch.no_grad():
                if parameter.shape != tensors[name].shape:
                    ours_, theirs_ = list(parameter.shape), list(tensors[name].shape)
                    raise UptakeError(f"checkpoint of another model: '{name}' is {theirs_} there and {ours_} here")
                parameter.copy_(tensors[name])

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """This rank's part of the optimiser, for `align.checkpoints`.

        `PARAMETER.start` is the first element of the flattened parameter that it holds, `PARAMETER.master`,
        `.exp_avg` and `.exp_avg_sq` are (n,) values from there on, `PARAMETER.step` counts updates. What every rank
        holds alike (stage 0) is written by the first.
        """
        out: dict[str, Tensor] = {}
        if self.config.zero_stage == 0 and self.rank:
            return out
        state = self._base_optimizer.state
        for fragment in self._fragments:
            out[f"{fragment.name}.start"] = torch.tensor(fragment.start)
            out[f"{fragment.name}.master"] = fragment.of(fragment.master)
            for key, value in state.get(fragment.master, {}).items():
                out[f"{fragment.name}.{key}"] = torch.as_tensor(value) if key == "step" else fragment.of(value)
        return out

    def load_optimizer_tensors(self, saved: SavedOptimizer) -> None:
        """Take this rank's part of what the ranks of any run of this model have saved, under any ZeRO stage.

        Raises:
            UptakeError: it is of another model.
        """
        state = self._base_optimizer.state
        for fragment in self._fragments:
            state.pop(fragment.master, None)
        for fragment in self._fragments:
            name, master = fragment.name, fragment.master
            for key in saved.keys_of(name):
                if key == "step":  # stays on the CPU, where torch's AdamW keeps it
                    old = state.get(master, {}).get("step", torch.tensor(0.0))
                    state.setdefault(master, {})["step"] = torch.maximum(old, saved.step(name))
                    continue
                values = saved.read(name, key, fragment.start, fragment.length)
                if key == "master":
                    into = master
                else:
                    # Zeros, since a flat part is padded, and a parameter without a gradient has no moments at stage 0.
                    into = state.setdefault(master, {}).setdefault(key, torch.zeros_like(master))
                with torch.no_grad():
                    fragment.of(into).copy_(values)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """The AdamW inside DeepSpeed's wrapper."""
        outer = self._engine.optimizer
        return getattr(outer, "optimizer", outer)

    def _masters(self) -> list[Tensor]:
        """The tensors that AdamW updates: flat fp32 partitions under ZeRO, the parameters themselves otherwise."""
        return list({id(fragment.master): fragment.master for fragment in self._fragments}.values())

    # Collectives ------------------------------------------------------------------------------------------------

    def all_true(self, value: bool) -> bool:
        """Whether it is true on every rank."""
        flag = torch.tensor(float(value), device=self.device)
        with self.watch.together():
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum of each number over ranks."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        with self.watch.together():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def collect(self, value: Any) -> list[Any]:
        """Everyone's value, by rank."""
        return self.watch.collect(value)

    def agree(self, error: str) -> None:
        """Wait for all ranks; raise on all of them if one has an error message.

        Raises:
            UptakeError: with the first rank's message.
        """
        messages = [message for message in self.collect(error) if message]
        if messages:
            raise UptakeError(messages[0])


def _deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Batch sizes are the trainer's business: it normalises its loss by global counts and says itself which
        # micro-batch is the last one.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 2**62,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # that one is compiled on first use; torch's steps the same on the CPU
        "bf16": {"enabled": config.bf16},
    }


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())


def _side(in_checkpoint: bool) -> str:
    return "the checkpoint" if in_checkpoint else "this run"

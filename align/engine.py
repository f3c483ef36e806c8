"""A thin wrapper round `deepspeed.initialize`: one rank or many, CPU (gloo) or GPU (nccl), ZeRO 0 to 3, fp32 or bf16.

The trainer keeps its loop and its loss. The engine owns what depends on how weights are stored: forward, backward,
step, gathering the weights for a rollout, and the tensors of a checkpoint. Start more ranks with

    torchrun --nproc_per_node 2 -m launch.cli train quickstart

which is the same command; the ranks come from the environment.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from envs.errors import UptakeError


@dataclass
class EngineConfig:
    """How weights, gradients and optimiser state are stored and updated."""

    zero_stage: int = 0
    bf16: bool = False
    max_grad_norm: float = 1.0
    learning_rate: float = 1e-6
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.0
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Start of a parameter's name -> factor of its learning rate."""
    timeout: float = 1800.0


class Engine:
    """A module under DeepSpeed.

    `forward` calls the module; `backward` adds a micro-batch; `step` updates. Every rank must make the same calls.
    """

    def __init__(self, module: nn.Module, config: EngineConfig) -> None:
        deepspeed = start_ranks(config.timeout)
        self.config = config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
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
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
        )

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, with gradient unless the caller turned it off."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient. Micro-batches are summed, ranks are averaged.

        Args:
            loss: scalar.
            last: True for the last micro-batch before `step`: this is when ranks exchange gradients.
        """
        self._engine.set_gradient_accumulation_boundary(last)
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
        self._engine.step()
        # Without ZeRO DeepSpeed clips without telling the norm; with it, `norm` was that of this rank's part.
        return float(self._engine.get_global_grad_norm() if self.config.zero_stage else norm)

    def _gradients(self) -> list[Tensor]:
        """Gradients that the next `step` will use: whole ones, or under ZeRO this rank's part."""
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
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
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
            with context, torch.no_grad():
                if parameter.shape != tensors[name].shape:
                    ours_, theirs_ = list(parameter.shape), list(tensors[name].shape)
                    raise UptakeError(f"checkpoint of another model: '{name}' is {theirs_} there and {ours_} here")
                parameter.copy_(tensors[name])

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """This rank's part of the optimiser: master weights, moments, step counts."""
        state = self._base_optimizer.state
        out: dict[str, Tensor] = {}
        for index, master in enumerate(self._masters()):
            out[f"{index}.master"] = master.detach()
            for key, value in state.get(master, {}).items():
                out[f"{index}.{key}"] = torch.as_tensor(value)
        return out

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Write back what `optimizer_tensors` returned.

        Raises:
            UptakeError: it was written under another ZeRO stage, precision or model.
        """
        masters = self._masters()
        state = self._base_optimizer.state
        if {int(name.partition(".")[0]) for name in tensors} != set(range(len(masters))):
            raise UptakeError(f"optimiser state of another set-up: it does not have {len(masters)} partitions")
        for index, master in enumerate(masters):
            saved = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{index}.")}
            if saved["master"].shape != master.shape:
                raise UptakeError(
                    f"optimiser state of another set-up: partition {index} has {saved['master'].numel()} elements, "
                    f"this run {master.numel()}; resume with the zero_stage, bf16 and number of ranks of the first run"
                )
            with torch.no_grad():
                master.copy_(saved.pop("master"))
            # `step` stays on the CPU, where torch's AdamW keeps it.
            state[master] = {k: v.clone() if k == "step" else v.to(master.device, copy=True) for k, v in saved.items()}

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """The AdamW inside DeepSpeed's wrapper."""
        outer = self._engine.optimizer
        return getattr(outer, "optimizer", outer)

    def _masters(self) -> list[Tensor]:
        """The tensors that AdamW updates: flat fp32 partitions under ZeRO, the parameters themselves otherwise."""
        if self.config.zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._base_optimizer.param_groups for p in group["params"]]

    # Collectives ------------------------------------------------------------------------------------------------

    def all_true(self, value: bool) -> bool:
        """Whether it is true on every rank."""
        flag = torch.tensor(float(value), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum of each number over ranks."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def collect(self, value: Any) -> list[Any]:
        """Everyone's value, by rank. Between the ranks of one run only."""
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def agree(self, error: str) -> None:
        """Wait for all ranks; raise on all of them if one has an error message.

        Raises:
            UptakeError: with the first rank's message.
        """
        messages = [message for message in self.collect(error) if message]
        if messages:
            raise UptakeError(messages[0])


def start_ranks(timeout: float = 1800.0) -> Any:
    """Join the process group that the environment describes, or make one of a single rank. Can be called again.

    Args:
        timeout: seconds that a rank waits for another before both give up.

    Returns:
        The `deepspeed` module.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # Without RANK and WORLD_SIZE DeepSpeed looks for MPI.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    own_port = "MASTER_PORT" not in os.environ and os.environ["WORLD_SIZE"] == "1"
    if own_port:
        os.environ["MASTER_PORT"] = str(_free_port())
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls collectives by the names that torch 2.13 deprecates, several times a step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    __compatible_ops__["deepspeed_shm_comm"] = False  # otherwise compiled on first use: a minute, and needs g++
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=timeout),
        )
        if own_port:  # a child process must not inherit a port that is taken
            del os.environ["MASTER_PORT"]
        atexit.register(stop_ranks)  # gloo's threads abort an interpreter that exits under them
    return deepspeed


def stop_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def add_lora(model: nn.Module, targets: str, r: int, alpha: int) -> None:
    """Freeze a model and put LoRA adapters into it, in place; its class and its methods stay as they are.

    Args:
        targets: regular expression for the full names of the linear layers that get one.

    Raises:
        UptakeError: it matches no linear layer, or is no regular expression.
    """
    from peft import LoraConfig, inject_adapter_in_model

    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UptakeError(f"lora_target_modules = '{targets}' is no regular expression: {error}") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if pattern.fullmatch(name)]
    if not chosen:
        raise UptakeError(f"lora_target_modules = '{targets}' matches no linear layer; one is '{linear[0]}'")
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0), model)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its LoRA adapters, bit for bit what it was before training: the frozen reference."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer, [p.requires_grad for p in layer.parameters()]) for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, flags in before:
            layer.enable_adapters(True)
            for parameter, flag in zip(layer.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights and remove them, in place: parameter names are the published ones again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())


def _deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    return {
        # Batch sizes are the trainer's business: it normalises its loss by global counts and says itself which
        # micro-batch is the last one.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 2**62,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.bf16},
    }


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _side(in_checkpoint: bool) -> str:
    return "the checkpoint" if in_checkpoint else "this run"

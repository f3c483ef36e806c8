"""Capture of a function as CUDA graphs: launched once as a whole instead of kernel by kernel.

A model that speaks frame by frame launches over a thousand small kernels a frame; launching takes longer than running.
A graph repeats them on the addresses that they had: what the function reads and writes must stay where it is, and a
value that Python looked at is as it was. Weights that have moved since, and adapters that were switched, are therefore
noticed and captured anew; an optimiser that updates in place changes neither.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn

from envs.errors import UptakeError

SWITCH = "NO_CUDA_GRAPH"
"""Environment variable that turns capture off where it is 1; `moshi` has the same."""

_BAKED = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")  # what PEFT's layers decide in Python


class Recorder(Protocol):
    """What captures. The function mutates its buffers only and returns nothing."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it as it will be captured, so that libraries are set up by then."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """What runs it again; this alone runs nothing."""


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream for captures: one for all, since cuBLAS keeps a workspace for each."""
    return torch.cuda.Stream(device)


class CudaRecorder:
    """Captures beside the stream that replays; the graphs of one recorder share their working memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _aside(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run the function on the stream that it will be captured on."""
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            function()
        outer.wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture it.

        Raises:
            UptakeError: it waits for the device somewhere, as a module that was put into the model may.
        """
        graph = torch.cuda.CUDAGraph()
        pool = None if self._graph is None else self._graph.pool()
        try:
            # Other threads of the process (NCCL's watchdog, page-locking) may call CUDA meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise UptakeError(f"the step cannot be captured as a CUDA graph ({first}); set {SWITCH}=1") from error
        self._graph = graph
        return graph.replay


class Graphs:
    """Recordings of functions of one model by a key; the second call of a key records, later ones replay."""

    def __init__(self, model: nn.Module, recorder: Callable[[], Recorder]) -> None:
        self._model, self._make = model, recorder
        self.clear()

    @classmethod
    def on(cls, model: nn.Module, device: torch.device) -> Graphs | None:
        """For a model on a GPU, unless `NO_CUDA_GRAPH` is 1."""
        if device.type != "cuda" or os.environ.get(SWITCH) == "1":
            return None
        return cls(model, lambda: CudaRecorder(device))

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        """An empty one for the model of the copy: a recording runs on the memory that it was made on."""
        return Graphs(copy.deepcopy(self._model, memo), self._make)

    def clear(self) -> None:
        """Forget all recordings: a buffer has moved."""
        self._recorder = self._make()  # memory of released graphs cannot be shared with later ones
        self._replays: dict[Hashable, Callable[[], None] | None] = {}
        self._weights = [*self._model.parameters(), *self._model.buffers()]
        self._addresses = [weight.data_ptr() for weight in self._weights]
        self._structure = _structure(self._model)
        self._adapted = [module for module in self._model.modules() if hasattr(module, _BAKED[0])]
        self._set = _switches(self._adapted)

    def check(self) -> None:
        """Notice modules that were replaced, and what else is no switch of an adapter; takes milliseconds."""
        if self._structure != _structure(self._model):
            self.clear()

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run a function that is the same for the same key, in whichever way."""
        # Between frames weights may move and adapters be switched, but nothing replaced: this must take microseconds.
        if [weight.data_ptr() for weight in self._weights] != self._addresses or _switches(self._adapted) != self._set:
            self.clear()
        if key not in self._replays:
            self._recorder.warm_up(function)
            self._replays[key] = None
            return
        replay = self._replays[key]
        if replay is None:
            replay = self._replays[key] = self._recorder.record(function)
        replay()


def _switches(adapted: list[Any]) -> list[tuple[bool, bool]]:
    """Of layers with adapters: whether these are off, and whether they are in the weights."""
    return [(layer.disable_adapters, layer.merged) for layer in adapted]


def _structure(model: nn.Module) -> list[tuple[Any, ...]]:
    """The model's modules and weights as objects, and the decisions that a recording has baked in."""
    found: list[tuple[Any, ...]] = [tuple(id(weight) for weight in (*model.parameters(), *model.buffers()))]
    for module in model.modules():
        baked = [repr(getattr(module, name, None)) for name in _BAKED] if hasattr(module, _BAKED[0]) else []
        found.append((id(module), module.training, *baked))
    return found

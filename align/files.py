"""The files of a checkpoint, read and written: every fault is one line that names the file; nothing is unpickled."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Size, Tensor

from envs.errors import UptakeError
from envs.files import whole

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights may be saved as."""


def one_line(error: object) -> str:
    """What a library said, short enough for the end of a line."""
    return " ".join(str(error).split())[:200]


def read_json(path: Path) -> dict[str, Any]:
    """An object; an empty file is an empty object, as some checkpoints are published."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if text.strip() else {}
    except OSError as error:
        raise UptakeError(
            f"{path}: cannot be read ({error.strerror}); expected a JSON file of the checkpoint: copy it there"
        ) from error
    except UnicodeDecodeError as error:
        raise UptakeError(f"{path}: not JSON (not text: {error.reason}); copy the file again") from error
    except json.JSONDecodeError as error:
        raise UptakeError(f"{path}:{error.lineno}: not JSON ({error.msg}); copy the file again") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UptakeError(f"{path}: not JSON of settings ({one_line(error)}); copy the file again") from error
    if not isinstance(values, dict):
        raise UptakeError(f"{path}: expected an object of settings, found {type(values).__name__}")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    with _opening(path):
        return load_file(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, which are all weights; see `check_weights`."""
    tensors = read_tensors(path)
    check_weights(tensors, path)
    return tensors


def check_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UptakeError if a tensor of the file `path` is no weight: not of floating point, NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            known = ", ".join(map(_plain, FLOATS))
            raise UptakeError(
                f"{path}: {name} is {_plain(tensor.dtype)}, expected {known}: quantised weights are not implemented; "
                "take the release that is not quantised"
            )
        if not tensor.isfinite().all():
            raise UptakeError(f"{path}: {name} has NaN or infinite values; give a checkpoint from before that")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_shapes(path: Path) -> dict[str, Size]:
    """Names and shapes only: milliseconds, whatever the size of the file."""
    return {name: shape for name, (shape, _) in _header(path).items()}


def read_dtype(path: Path) -> str:
    """What most numbers of a safetensors file are, as the format spells it: BF16, F32, ..."""
    counts: Counter[str] = Counter()
    for shape, dtype in _header(path).values():
        counts[dtype] += shape.numel()
    return max(counts, key=lambda kind: counts[kind], default="")


def _header(path: Path) -> dict[str, tuple[Size, str]]:
    """Shape and type of every tensor in a safetensors file."""
    with _opening(path), safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (Size(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Around the reading of a safetensors file: what is wrong with it is said in one line."""
    _present(path)
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UptakeError(f"{path}: truncated or not safetensors ({one_line(error)}); copy the file again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    alone = {name: _alone(tensor.detach().to("cpu").contiguous()) for name, tensor in tensors.items()}
    write_whole(path, lambda partial: save_file(alone, partial, {"format": "pt"}))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path` that then takes its place in one step.

    Raises:
        OSError: the disk is full.
        UptakeError: it cannot be written for another reason.
    """
    try:
        with whole(path) as partial:
            write(partial)
    except (OSError, SafetensorError) as error:
        full = os.strerror(errno.ENOSPC)  # safetensors keeps the text and loses the number
        if full in str(error):
            raise OSError(errno.ENOSPC, full, str(path)) from error
        raise UptakeError(f"{path}: cannot be written ({one_line(error)})") from error


def _present(path: Path) -> None:
    if not path.is_file():
        raise UptakeError(f"{path}: missing; expected a safetensors file of the checkpoint: copy it there")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a part of another: safetensors refuses shared memory."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

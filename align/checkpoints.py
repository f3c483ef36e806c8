"""Checkpoints that are whole or not there: written atomically, checked on reading, no pickle.

    checkpoints/iteration-000040/
        manifest.json             version, iteration, ranks, size and SHA-256 of every other file, and of all this
        model.safetensors         trainable weights, gathered, by parameter name
        optimizer-0.safetensors   master weights and moments that rank 0 holds (one file a rank), by parameter
        rng-0.safetensors         random number generators of rank 0
        state.json                iteration, data position, reward statistics, learning rate, counters

A checkpoint is written next to its final place and renamed when it is complete and on the disk, so that a kill at any
time leaves the previous one. Reading verifies every byte: a damaged newest checkpoint is reported and the one before
it is used. Ranks write their own files; rank 0 writes the rest and renames.

Nothing in it depends on how many ranks wrote it or how they shared the weights (`align.fragments`): any number of ranks
under any ZeRO stage reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.saved_optimizer import SavedOptimizer
from envs.errors import UptakeError
from envs.files import whole

VERSION = 3
KNOWN = (2, VERSION)
"""Versions that are read; the manifest of 2 has no SHA-256 of its own."""
_NAME = re.compile(r"iteration-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, as seen by one rank."""

    iteration: int
    """Iterations that are done: the run continues with this one, counted from 0."""
    model: Mapping[str, Tensor]
    optimizer: SavedOptimizer
    """To be opened by `with`."""
    rng: Mapping[str, Tensor] | None
    """None for a rank that the run did not have when this was written."""
    state: Mapping[str, Any]
    """JSON values."""
    path: Path


def save_checkpoint(
    folder: Path,
    iteration: int,
    *,
    model: Mapping[str, Tensor] | None,
    optimizer: Mapping[str, Tensor],
    rng: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[str], None] = lambda error: None,
) -> Path:
    """Write one checkpoint and delete the oldest beyond `keep`.

    Args:
        folder: the run's `checkpoints/`.
        iteration: iterations that are done.
        model: trainable weights by name; rank 0 only, None elsewhere.
        optimizer, rng: this rank's tensors.
        state: JSON values; rank 0's are written.
        keep: how many checkpoints stay, at least 1.
        barrier: called on every rank between the phases with this rank's error message, empty when all went well; it
            waits for the others and raises on all of them if one failed.

    Returns:
        The folder of the checkpoint.

    Raises:
        UptakeError: the disk is full or cannot be written; the checkpoints that were there are intact.
    """
    final = folder / f"iteration-{iteration:06d}"
    temporary = folder / f".{final.name}.tmp"

    def phase(work: Callable[[], None]) -> None:
        message = ""
        try:
            work()
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            message = (
                f"{temporary}: cannot write the checkpoint of iteration {iteration}: {why}; "
                f"{_last(folder)}. Free some space or point `runs` at another disk, then --resume"
            )
        try:
            barrier(message)
            if message:
                raise UptakeError(message)
        except UptakeError:
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def prepare() -> None:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

    def write_tensors() -> None:
        _write_tensors(temporary / f"optimizer-{rank}.safetensors", optimizer)
        _write_tensors(temporary / f"rng-{rank}.safetensors", rng)
        if rank == 0:
            assert model is not None
            _write_tensors(temporary / "model.safetensors", model)
            _write(temporary / "state.json", _json(state))

    def publish() -> None:
        if rank:
            return
        files = {p.name: {"sha256": _sha256(p), "bytes": p.stat().st_size} for p in sorted(temporary.iterdir())}
        manifest = {"version": VERSION, "iteration": iteration, "world": world, "files": files}
        _write(temporary / "manifest.json", _json(manifest | {"sha256": _seal(manifest)}))
        _sync_folder(temporary)
        if final.exists() and verify(final) is None:
            # Ctrl-C at the boundary where this run began: what is there is this state already. To replace it would be
            # the only moment in which a kill leaves nothing.
            shutil.rmtree(temporary)
        else:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        _sync_folder(folder)
        # Later ones are damaged (the run resumed before them), and must not count as kept.
        done = [path for path in list_checkpoints(folder) if _iteration(path) <= iteration]
        for old in set(list_checkpoints(folder)) - set(done[-keep:]):
            shutil.rmtree(old, ignore_errors=True)

    for work in (prepare, write_tensors, publish):
        phase(work)
    return final


def load_latest(folder: Path, *, rank: int = 0) -> Checkpoint:
    """Read the newest checkpoint that is whole; arguments and errors are those of `newest_whole` and `load`."""
    return load(newest_whole(folder), rank)


def newest_whole(folder: Path) -> Path:
    """The newest checkpoint of which every byte is as it was written.

    A damaged one is reported on stderr and passed over.

    Raises:
        UptakeError: there is none, or none is whole.
    """
    found = list_checkpoints(folder)
    if not found:
        raise UptakeError(f"{folder}: no checkpoint to resume from; start without --resume")
    for path in reversed(found):
        problem = verify(path)
        if problem is None:
            return path
        print(f"damaged checkpoint passed over: {problem}", file=sys.stderr)
    raise UptakeError(f"{folder}: all {len(found)} checkpoints are damaged (newest: {verify(found[-1])}); start anew")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_iteration)


def _iteration(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in one line; None if every byte is as it was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] not in KNOWN:
            return f"{path}: checkpoint version {manifest['version']}, this program reads {', '.join(map(str, KNOWN))}"
        if manifest["version"] > 2 and manifest["sha256"] != _seal(manifest):
            return f"{path / 'manifest.json'}: content differs from what was written (SHA-256)"
        if manifest["iteration"] != _iteration(path):
            return f"{path}: is of iteration {manifest['iteration']}, not of the one in its name"
        if odd := sorted(_names(manifest["world"]) ^ manifest["files"].keys()):
            return f"{path / 'manifest.json'}: {odd[0]} is missing, or is none of {manifest['world']} ranks"
        for name, expected in manifest["files"].items():
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{file}: content differs from what was written (SHA-256)"
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path / 'manifest.json'}: not a checkpoint manifest: {error}"
    return None


def _seal(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest, which is not in it itself."""
    return hashlib.sha256(_json({name: value for name, value in manifest.items() if name != "sha256"})).hexdigest()


def _names(world: int) -> set[str]:
    """Files of a checkpoint that so many ranks wrote, its manifest excepted."""
    own = {f"{kind}-{rank}.safetensors" for kind in ("optimizer", "rng") for rank in range(world)}
    return {"model.safetensors", "state.json"} | own


def load(path: Path, rank: int = 0) -> Checkpoint:
    """Read a checkpoint, whatever number of ranks wrote it.

    Args:
        path: one that is whole (`newest_whole`).
        rank: who reads.
    """
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    mine = path / f"rng-{rank}.safetensors"
    try:
        return Checkpoint(
            iteration=manifest["iteration"],
            model=load_file(path / "model.safetensors"),
            optimizer=SavedOptimizer([path / f"optimizer-{other}.safetensors" for other in range(manifest["world"])]),
            rng=load_file(mine) if mine.is_file() else None,
            state=json.loads((path / "state.json").read_text(encoding="utf-8")),
            path=path,
        )
    except SafetensorError as error:
        raise UptakeError(f"{path}: cannot be read: {error}") from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Clones, because safetensors refuses tensors that share memory (views of a flat ZeRO partition do).
    with whole(path) as partial:
        save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}, partial)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last(folder: Path) -> str:
    found = list_checkpoints(folder)
    return f"the last one, {found[-1].name}, is intact" if found else "there is no earlier one"


def rng_tensors() -> dict[str, Tensor]:
    """State of the global generators of torch, numpy and Python.

    Policies and environments draw from seeds of their own; dropout and what users bring along may draw from these.
    """
    generator = np.random.get_state(legacy=False)
    keys, position = generator["state"]["key"], generator["state"]["pos"]
    version, words, spare = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, generator["has_gauss"]], dtype=torch.int64),
        "numpy.gauss": torch.tensor(generator["gauss"], dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor(math.nan if spare is None else spare, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_tensors(states: Mapping[str, Tensor]) -> None:
    """Restore what `rng_tensors` returned."""
    torch.set_rng_state(states["torch"])
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy.gauss"])))
    version, *words = states["python"].tolist()
    spare = float(states["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(spare) else spare))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])

"""What a policy was loaded from, by content: its name says where a checkpoint lies, not that it is still the same one.

A run's own checkpoints hold what is trained, and nothing else. The weights under adapters, the frozen ones, and the
start that the KL is taken to are read from the base checkpoint each time the run goes on. So every byte of it counts: a
sample of blocks would be quicker, and would miss the one tensor that somebody has edited.
"""

from __future__ import annotations

from pathlib import Path

from align.codecs import MIMI
from align.loading import CASCADE, find_folder, is_cascade_file
from align.policies.base import DuplexPolicy
from align.policies.cascade.policy import CascadePolicy
from align.policies.moshi.layouts.kyutai import named_file, read_config
from envs.pack import sha256_of

READ = (".safetensors", ".json", ".model")
"""Endings of the files that checkpoints are read from."""


def contents(name: str, policy: DuplexPolicy) -> dict[str, str]:
    """The SHA-256 of each file that a policy was loaded from, and of the pack that a cascade answers with.

    Args:
        name: as of `align.loading.load_policy`.
        policy: what that gave.
    """
    found = {f"{label} of policy {name}": sha256_of(path) for label, path in _files(name).items()}
    if isinstance(policy, CascadePolicy):
        found[f"the pack of policy {name}"] = policy.pack.hash
    return found


def _files(name: str) -> dict[str, Path]:
    """The files behind a policy's name, by what they are called in its folder."""
    if is_cascade_file(name):
        return {Path(name).name: Path(name)}
    if name == CASCADE and not Path(name).is_dir():
        return {}
    folder = find_folder(name)
    own = sorted(path for path in (*folder.glob("*"), *folder.glob(f"{MIMI}/*")) if path.suffix in READ)
    found = {str(path.relative_to(folder)): path for path in own}
    for key, value in read_config(folder).items():  # weights and the like may lie elsewhere
        if key.endswith("_name") and isinstance(value, str):
            path = named_file(folder, value)
            found.setdefault(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path), path)
    return {label: path for label, path in found.items() if path.is_file()}

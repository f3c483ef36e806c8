"""`uptake export`: a policy in the layout that another program reads."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from rich.console import Console

from align.codecs import POCKET
from align.files import read_json
from align.loading import LOADERS, find_folder
from align.policies.moshi.checkpoint import save_checkpoint
from align.policies.moshi.layouts import kyutai, lora
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError, nearest
from launch.terminal import make_console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """The precision that `--dtype` names; raises UptakeError for none."""
    if name not in DTYPES:
        raise UptakeError(f"--dtype {name}: unknown{nearest(name, DTYPES)}")
    return DTYPES[name]


def run_export(
    policy: str, layout: str, out: Path, base: str | None, dtype: str, console: Console | None = None
) -> None:
    """Load a policy from any layout, write it in another, and say how it is used from there."""
    console = console or make_console()
    kept = parse_dtype(dtype)
    source = find_folder(policy)
    if out.resolve() == source.resolve():
        raise UptakeError(f"--out {out}: is the policy itself; write to another folder")
    kind = kyutai.read_config(source).get("model_type")
    if kind in LOADERS:
        raise UptakeError(f"{source}: is of model_type {kind!r}, which only Uptake reads; copy the folder as it is")
    loaded = MoshiPolicy.load(source)
    base_folder = None if base is None else find_folder(base)
    learned = kyutai.read_adapter(source)
    save_checkpoint(out, loaded.model, loaded.codec, loaded.tokenizer, kept, layout, base_folder, learned)
    console.print(f"written: {out} ({layout}, {dtype})", soft_wrap=True, highlight=False)
    console.print(_usage(layout, out), soft_wrap=True, highlight=False, markup=False)


def _usage(layout: str, out: Path) -> str:
    if layout == "hf":
        return f"read it: transformers.MoshiForConditionalGeneration.from_pretrained({str(out)!r})"
    values = read_json(out / kyutai.CONFIG)
    if values["mimi_name"] == POCKET:
        return f"its codec is pocket's own, which no other program has: use it with Uptake (uptake eval {out})"
    names = (values["mimi_name"], values["tokenizer_name"])
    if layout == "personaplex":
        return (
            f"serve it: python -m moshi.server (of PersonaPlex) --moshi-weight {out / kyutai.WEIGHTS} "
            f"--mimi-weight {out / names[0]} --tokenizer {out / names[1]} --voice-prompt-dir VOICES"
        )
    weights = values["moshi_name"].removeprefix("file://")
    # Fused, the server rounds the sum to bfloat16, and most of what was learned with it.
    adapter = ["--lora-weight", lora.LORA, "--no_fuse_lora"] if layout == "kyutai-lora" else []
    command = [
        "python", "-m", "moshi.server", "--hf-repo", "local/policy", "--config-path", kyutai.CONFIG, "--moshi-weight",
        weights, *adapter, "--mimi-weight", names[0], "--tokenizer", names[1],
    ]  # fmt: skip
    return f"serve it: cd {shlex.quote(str(out))} && {shlex.join(command)}"

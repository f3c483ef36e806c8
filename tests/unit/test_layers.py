"""Nothing imports upwards, the world runs without torch, and the losses need torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_layer_imports_what_is_above_it() -> None:
    # Not in this process: it would switch off every logger that is there.
    call = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("module", "ours"), [("ratios", set()), ("losses", {"align.ratios"}), ("advantages", set())])
def test_losses_and_advantages_import_torch_and_no_more_than_each_other(module: str, ours: set[str]) -> None:
    tree = ast.parse((ROOT / "align" / f"{module}.py").read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("a relative import" if node.level else str(node.module))
    known = set(sys.stdlib_module_names) | {"torch"}
    assert {name for name in imported if name.partition(".")[0] not in known} == ours


def test_the_world_and_its_judges_load_without_torch() -> None:
    code = (
        "import sys, envs.pack, envs.duplex_vector_env, envs.agents, rewards.compose, rewards.registry\n"
        "rewards.registry.names()\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'wandb', 'omegaconf', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

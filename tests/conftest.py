"""What every test shares: thread counts, no network, tiers by folder."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports numpy or torch: the tests' figures must not depend on how many cores a machine has.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402

TIERS = ("unit", "integration", "learning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the tier that its folder names."""
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0]
        if tier in TIERS:
            item.add_marker(getattr(pytest.mark, tier))

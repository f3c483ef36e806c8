"""A policy of pocket's size that speaks through a Mimi, of random weights: what servers of released checkpoints load.

python -m tests.random_policy FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from align.loading import find_folder
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.layouts.kyutai import open_tokenizer
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from tests.random_mimi import random_mimi


def random_policy(seed: int = 0) -> MoshiPolicy:
    """Pocket's network and tokenizer, a small Mimi with as many codes."""
    config = MoshiConfig.load(find_folder("pocket") / "config.json")
    tokenizer = open_tokenizer(find_folder("pocket") / "tokenizer_spm.model", config.text_card)
    return MoshiPolicy(MoshiModel(config, seed=seed), random_mimi(config.card), tokenizer)


if __name__ == "__main__":
    random_policy().export(Path(sys.argv[1]))

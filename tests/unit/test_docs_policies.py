"""The policy that docs/policies.md writes passes the checks that it runs there, and is caught when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.policies import checks

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_policy_of_the_docs_is_a_policy():
    space: dict = {}
    for block in blocks():
        exec(compile(block, str(DOCS), "exec"), space)
    assert "Loudness" in space and "check_policy" in space


def test_one_that_scores_at_another_temperature_is_caught():
    space: dict = {}
    exec(compile(blocks()[0], str(DOCS), "exec"), space)
    wrong = blocks()[0].replace("trajectory.temperature, trajectory.top_k", "2.0, trajectory.top_k")
    assert wrong != blocks()[0]
    exec(compile(wrong, str(DOCS), "exec"), space)
    with pytest.raises(AssertionError, match="sampler and scorer differ"):
        checks.check_policy(space["Loudness"]())

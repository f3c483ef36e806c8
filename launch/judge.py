"""The language model of a run: opened where a term asks one, and shown before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Iterable

from align.hearing import Listener
from rewards.compose import Composition
from rewards.judge.config import JudgeConfig
from rewards.judge.judge import Judge
from rewards.registry import get


def open_judge(config: JudgeConfig, terms: Iterable[str]) -> Judge | None:
    """The judge that the terms need; None, and nothing of the section is looked at, where none of them asks one.

    Raises:
        UptakeError: an unknown term, a section that cannot work, a key that is not there.
    """
    if all(get(term).rubric is None for term in terms):
        return None
    config.check()
    listen = Listener(config.recogniser) if config.transcript == "asr" else None
    return Judge(config, listen, share=1.0 / int(os.environ.get("WORLD_SIZE", "1")))


def judge_comment(judge: Judge, composition: Composition) -> str:
    """Who judges, with which prompts, as YAML comments below a configuration."""
    config = judge.config
    key = f"its key from ${config.api_key_env}" if config.api_key_env else "without a key"
    lines = [f"judge: {config.model} at {config.base_url}, {key}; nothing was sent"]
    for rubric in composition.rubrics:
        lines += ["", f"{rubric.name} ({rubric.source}; {rubric.digest}), {rubric.low} to {rubric.high}, is told:", ""]
        lines += [f"    {line}" for line in rubric.instructions.splitlines()]
    return "".join(f"# {line}".rstrip() + "\n" for line in ["", *lines])

"""`uptake check-env`: whether an environment keeps the contract of a duplex one, clause by clause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.checks import examine
from envs.errors import UptakeError, nearest
from envs.registration import IDS
from launch.terminal import make_console
from rewards.compose import OURS, Composition

_MARKS = {"holds": "[green]ok[/]", "broken": "[red]fix[/]", "skipped": "[yellow]--[/]"}


def run_check_env(
    name: str, options: Sequence[str], *, hours: float, pairs: int, console: Console | None = None
) -> bool:
    """Print one line a clause and return whether none is broken.

    Args:
        name: an id that Gymnasium knows, or `module:id`, whose module is imported first.
        options: ``key=value`` for the environment's constructor, values as in YAML.
        hours: how much conversation is played for the check of drift.
        pairs: how many twins the leak probe and the ranking play.

    Raises:
        UptakeError: there is no such environment, or it cannot be made.
    """
    console = console or make_console()
    try:
        env = gymnasium.make(name, **_parsed(options))
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UptakeError(f"{name}: {error}{nearest(name, IDS)}") from error
    except TypeError as error:
        raise UptakeError(f"{name}: {str(error).splitlines()[0]}") from error
    table = Table(show_header=False, box=None, pad_edge=False)
    good = True
    with console.status(f"checking {name}"):
        for finding in examine(env.unwrapped, hours, pairs, score=Composition(OURS)):
            good = good and finding.result != "broken"
            table.add_row(_MARKS[finding.result], f"[bold]{finding.check}[/]", escape(finding.detail))
    console.print(table)
    return good


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise UptakeError(f"{option!r} is not key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UptakeError(f"{option!r}: the value is no YAML ({str(error).splitlines()[0]})") from error
    return found

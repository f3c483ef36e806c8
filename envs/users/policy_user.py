"""The `user:` of a `policy` scenario: another policy plays the user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyUser:
    """Who that is."""

    policy: str
    """`pocket`, a checkpoint folder or a run folder: what `envs.users.partner.open_partner` takes."""
    opens: str | None = None
    """Kind of the pack's clips of which it says one first: two policies that both wait for a question never begin."""

"""Would a degenerate policy get away with it? Scores a composition on what scripted agents did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.episode import Episode
from envs.errors import UptakeError
from rewards.compose import Composition, term_values

MARGIN = 0.25
"""Of the reward's range of 2: a degenerate agent must stay this far below the oracle."""


@dataclass(frozen=True)
class Audit:
    """What each agent earned, and who earned too much."""

    totals: Mapping[str, float]
    """agent -> weighted mean of its terms."""
    terms: Mapping[str, Mapping[str, float | None]]
    """agent -> term -> mean over episodes; None when the term never applied."""
    offenders: tuple[str, ...]
    """Degenerate agents whose total is within the margin of the oracle's, or above it."""
    oracle: str
    margin: float
    faults: int
    """Verdicts that a term failed to give."""

    @property
    def passed(self) -> bool:
        """No offender, and no fault that could hide one."""
        return not self.offenders and not self.faults

    def lines(self) -> list[str]:
        """One line an agent, best first."""
        rows = []
        for agent in sorted(self.totals, key=lambda name: -self.totals[name]):
            parts = [f"{t} {'-' if v is None else format(v, '+.2f')}" for t, v in self.terms[agent].items()]
            mark = " <- too close to the oracle" if agent in self.offenders else ""
            rows.append(f"{agent:20s} {self.totals[agent]:+.3f}  {'  '.join(parts)}{mark}")
        return rows


def audit(
    composition: Composition,
    episodes: Mapping[str, Sequence[Episode]],
    oracle: str = "oracle",
    margin: float = MARGIN,
) -> Audit:
    """Score every agent's episodes and see whether any of them comes near the oracle.

    An axis alone nearly always fails (silence is perfect in a pause): it is the composition that has to hold. A term
    that never applied to an agent is left out of its total.

    Args:
        composition: what to audit.
        episodes: agent name -> its episodes, on the same scenarios for all; one of them the oracle.
        oracle: the agent that does it right; every other one is taken for degenerate.
        margin: how far below the oracle's total the others must stay.

    Raises:
        UptakeError: no oracle, an agent without episodes, or an oracle to whom no term applies.
    """
    if oracle not in episodes or len(episodes) < 2:
        raise UptakeError(f"audit: agents {sorted(episodes)}; needs {oracle!r} and one to compare with it")
    empty = [agent for agent, played in episodes.items() if not played]
    if empty:
        raise UptakeError(f"audit: agent {empty[0]!r} has no episodes; play the same scenarios with every agent")
    before = sum(composition.faults.values())
    terms: dict[str, dict[str, float | None]] = {}
    totals = {}
    for agent, played in episodes.items():
        verdicts = [verdict for episode in played for verdict in composition.score(episode)]
        values = term_values(verdicts)
        terms[agent] = {term: values.get(term) for term in composition.weights}
        totals[agent] = composition.total(verdicts)
    if all(value is None for value in terms[oracle].values()):
        raise UptakeError(f"audit: no term applies to {oracle!r}; its episodes hold no event that this reward judges")
    faults = sum(composition.faults.values()) - before
    bar = totals[oracle] - margin
    judged = [a for a in episodes if a != oracle and any(value is not None for value in terms[a].values())]
    offenders = tuple(a for a in judged if totals[a] >= bar or math.isnan(totals[a]))
    return Audit(totals, terms, offenders, oracle, margin, faults)

"""Would a degenerate policy get away with it? Compares what attacks earn with what the oracle earns.

    audits, refused = examine({"ours": OURS}, play(pack, paired_scenarios(pack)))
    audits["ours"].offenders                 # attacks that come within the margin of the oracle, or above it

Many compositions are audited over the same conversations, and every term is scored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from envs.episode import Episode
from envs.errors import UptakeError
from rewards.attacks import ORACLE
from rewards.compose import Composition, term_values, weighted_mean
from rewards.detector import ENERGY, DetectorConfig
from rewards.meaning import Meaning
from rewards.registry import get

if TYPE_CHECKING:
    from rewards.judge.judge import Judge

MARGIN = 0.25
"""Of the reward's range of 2: a degenerate agent must stay this far below the oracle."""

SLACK = 0.15
"""A declared hole counts as closed only this far beyond the margin, so that other voices do not open and close it."""

Values = Mapping[str, float | None]
"""Term -> mean over all its verdicts; None when it never applied."""


@dataclass(frozen=True)
class Audit:
    """What each agent earned, and who earned too much."""

    terms: Mapping[str, Values]
    """agent -> term -> mean over conversations."""
    totals: Mapping[str, float | None]
    """agent -> weighted mean of the terms that apply to it; None when none does."""
    oracle: str
    margin: float
    faults: Mapping[str, int]
    """term -> verdicts that it failed to give."""
    known: Mapping[str, str] = field(default_factory=dict)
    """attack -> why it is expected to get away with it (`rewards.holes`)."""
    strict: bool = True
    """Whether a declared hole that is closed fails the audit."""

    def gap(self, agent: str) -> float | None:
        """How far an agent's total lies below the oracle's; None when nothing of it was judged."""
        total, best = self.totals[agent], self.totals[self.oracle]
        return None if total is None or best is None else best - total

    @property
    def offenders(self) -> tuple[str, ...]:
        """Attacks whose total is within the margin of the oracle's, or above it."""
        gaps = {agent: self.gap(agent) for agent in self.totals if agent != self.oracle}
        return tuple(agent for agent, gap in gaps.items() if gap is not None and gap < self.margin)

    @property
    def holes(self) -> tuple[str, ...]:
        """Offenders that nobody has declared."""
        return tuple(agent for agent in self.offenders if agent not in self.known)

    @property
    def closed(self) -> tuple[str, ...]:
        """Declared holes that are none, if this audit is `strict`: the declaration is out of date."""
        gaps = {agent: self.gap(agent) for agent in self.known if self.strict}
        return tuple(agent for agent, gap in gaps.items() if gap is None or gap >= self.margin + SLACK)

    @property
    def passed(self) -> bool:
        """No undeclared hole, no declared one that is closed, and no fault that could hide one."""
        return not (self.holes or self.closed or any(self.faults.values()))

    def won(self, agent: str) -> list[str]:
        """The terms on which an agent alone comes within the margin of the oracle."""
        best, mine = self.terms[self.oracle], self.terms[agent]
        return [
            term
            for term, value in mine.items()
            if value is not None and (top := best[term]) is not None and top - value < self.margin
        ]

    def complaints(self) -> list[str]:
        """One sentence for each thing that keeps the audit from passing."""
        said = []
        for agent in self.holes:
            gap = self.gap(agent)
            assert gap is not None
            where = f"{-gap:.2f} above" if gap < 0 else f"only {gap:.2f} below"
            parts = ", ".join(f"{t} {self.terms[agent][t]:+.2f} against {self._best(t)}" for t in self.won(agent))
            said.append(
                f"{agent} earns {self.totals[agent]:+.2f}, {where} the oracle's {self.totals[self.oracle]:+.2f} "
                f"(margin {self.margin:g}): {parts or 'by the sum of its terms'}"
            )
        said += [f"{agent} is declared in rewards/holes.py and does not get near the oracle" for agent in self.closed]
        said += [f"{term} failed to give {count} verdicts" for term, count in self.faults.items() if count]
        return said

    def _best(self, term: str) -> str:
        value = self.terms[self.oracle][term]
        return "-" if value is None else f"{value:+.2f}"

    def to_json(self) -> dict[str, Any]:
        """Everything, with the verdict on each attack."""
        return {
            "passed": self.passed,
            "margin": self.margin,
            "oracle": {"total": self.totals[self.oracle], "terms": dict(self.terms[self.oracle])},
            "attacks": {
                agent: {
                    "total": self.totals[agent],
                    "gap": self.gap(agent),
                    "terms": dict(self.terms[agent]),
                    "within_margin": agent in self.offenders,
                    "known": self.known.get(agent),
                }
                for agent in self.totals
                if agent != self.oracle
            },
            "closed_holes": list(self.closed),
            "faults": {term: count for term, count in self.faults.items() if count},
        }


def score(composition: Composition, episodes: Iterable[Episode]) -> dict[str, float | None]:
    """Mean of each term over all its verdicts on these conversations; None when it never applied.

    A judge answers the questions about all of them side by side.
    """
    pending = [composition.start(episode) for episode in episodes]
    values = term_values(verdict for give in pending for verdict in give())
    return {term: values.get(term) for term in composition.weights}


def _mean(draws: Sequence[Values]) -> dict[str, float | None]:
    """Mean of each term over the draws in which it applied."""
    kept = {term: [value for one in draws if (value := one[term]) is not None] for term in draws[0]}
    return {term: sum(values) / len(values) if values else None for term, values in kept.items()}


def compare(
    weights: Mapping[str, float],
    terms: Mapping[str, Values],
    *,
    oracle: str = ORACLE,
    margin: float = MARGIN,
    faults: Mapping[str, int] = MappingProxyType({}),
    known: Mapping[str, str] = MappingProxyType({}),
    strict: bool = True,
) -> Audit:
    """See whether anybody comes near the oracle.

    Args:
        weights: of the terms that are audited together.
        terms: agent -> what `score` says about it; other terms may be in it too.
        oracle: the agent that does it right; every other one is taken for degenerate.
        margin: how far below the oracle's total the others must stay.
        faults: term -> how often it failed.
        known: attacks that are expected to come near, and why.
        strict: whether one of `known` that does not come near fails the audit.

    Raises:
        UptakeError: no oracle, or nobody to compare with, an oracle to whom no term applies, or an unknown attack.
    """
    if oracle not in terms or len(terms) < 2:
        raise UptakeError(f"audit: agents {sorted(terms)}; needs {oracle!r} and one to compare with it")
    for agent in known:
        if agent not in terms:
            raise UptakeError(f"audit: a hole is declared for {agent!r}, which is none of {', '.join(sorted(terms))}")
    kept = {agent: {term: values.get(term) for term in weights} for agent, values in terms.items()}
    totals = {agent: weighted_mean(values, weights) for agent, values in kept.items()}
    failed = {term: faults.get(term, 0) for term in weights}
    if totals[oracle] is None and any(failed.values()):
        broken = ", ".join(f"{term} failed to give {count} verdicts" for term, count in failed.items() if count)
        raise UptakeError(f"audit: {broken}, and nothing else judged the oracle; see the warnings for why")
    if totals[oracle] is None:
        raise UptakeError(f"audit: no term applies to {oracle!r}; its episodes hold no event that this reward judges")
    return Audit(kept, totals, oracle, margin, failed, dict(known), strict)


def _judges(term: str, found: Mapping[str, Values]) -> None:
    """Refuse a term that judged nobody: what it is audited beside would pass in its place."""
    if all(values.get(term) is None for values in found.values()):
        types = ", ".join(get(term).events)
        raise UptakeError(f"audit: {term!r} judged nobody: these conversations hold nothing that it judges ({types})")


def audit(
    composition: Composition,
    episodes: Mapping[str, Sequence[Episode]],
    oracle: str = ORACLE,
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
        UptakeError: an agent without episodes, or whatever `compare` refuses.
    """
    empty = [agent for agent, played in episodes.items() if not played]
    if empty:
        raise UptakeError(f"audit: agent {empty[0]!r} has no episodes; play the same scenarios with every agent")
    before = dict(composition.faults)
    terms = {agent: score(composition, played) for agent, played in episodes.items()}
    faults = {term: count - before.get(term, 0) for term, count in composition.faults.items()}
    return compare(composition.weights, terms, oracle=oracle, margin=margin, faults=faults)


def companions(name: str) -> dict[str, float]:
    """A reward and the terms that it must be trained with (`Reward.beside`), at equal weight."""
    return dict.fromkeys([name, *get(name).beside], 1.0)


def examine(
    subjects: Mapping[str, Mapping[str, float]],
    played: Iterable[tuple[str, Sequence[Episode]]],
    *,
    margin: float = MARGIN,
    known: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    strict: bool = True,
    activity: DetectorConfig = ENERGY,
    meaning: Meaning | None = None,
    judge: Judge | None = None,
) -> tuple[dict[str, Audit], dict[str, str]]:
    """Audit many compositions over the same conversations.

    Args:
        subjects: name -> terms and weights, as `Composition` takes them.
        played: (agent, its conversations), the oracle among them; asked for one after the other (`rewards.attacks`). An
            agent that comes more than once earns the mean.
        margin: how far below the oracle everybody else must stay.
        known: subject -> attack -> why it is expected to get away with it.
        strict: whether one of `known` that does not get away with it fails the audit.
        activity: who is taken to speak when.
        meaning: for the terms that compare meanings; without it these cannot be audited.
        judge: for the terms that ask a language model; without it these cannot be audited.

    Returns:
        The audits; and for each subject that cannot be audited, why.
    """
    compositions, refused = {}, {}
    for name, terms in subjects.items():
        try:
            compositions[name] = Composition(terms, activity=activity, meaning=meaning, judge=judge)
        except UptakeError as error:
            refused[name] = str(error)
    spelled = {get(term).name: term for name in compositions for term, weight in subjects[name].items() if weight}
    if not spelled:
        return {}, refused
    everything = Composition(dict.fromkeys(spelled.values(), 1.0), activity=activity, meaning=meaning, judge=judge)
    draws: dict[str, list[Values]] = {}
    for agent, episodes in played:
        draws.setdefault(agent, []).append(score(everything, episodes))
    found = {agent: _mean(values) for agent, values in draws.items()}
    audits = {}
    for name, composition in compositions.items():
        try:
            if name in composition.terms and len(composition.terms) > 1:
                _judges(get(name).name, found)
            audits[name] = compare(
                composition.weights,
                found,
                margin=margin,
                faults=everything.faults,
                known=known.get(name, {}),
                strict=strict,
            )
        except UptakeError as error:
            refused[name] = str(error)
    return audits, refused

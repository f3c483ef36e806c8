"""Intervals: a bootstrap that resamples whole texts, paired between two runs of the same ones.

What an agent does at one text is one case, however many voices say it and however often it is played: `units` puts
scenarios together that share a text or a seed. A draw takes as many units with replacement, the same ones for both
runs, pools their contributions and takes the figures. The interval is the expanded percentile interval of the draws
(Hesterberg 2015, The American Statistician 69(4)): the plain one is too narrow for few units, as a normal interval is
beside Student's. Units of unlike sizes count for as many of one size as tell as much (`rewards.aggregate.effective`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import ndtr, stdtrit

from envs.errors import UptakeError
from rewards.aggregate import Measurement, Table, effective
from rewards.measures import MEASURES

Run = Mapping[str, Sequence[Measurement]]
"""Unit -> the measurements of its episodes; see `units`."""
DRAWS = 2000
LEVEL = 0.95
FEWEST_MOVED = 6
"""Units in which a figure must differ before there is a verdict: five that differ all go the same way in one of
sixteen cases if nothing is different, six in one of thirty-two (sign test)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; NaN where there was nothing to measure."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Comparison:
    """One figure before and after, and the difference after - before on the same scenarios."""

    before: Interval
    after: Interval
    difference: Interval
    verdict: str
    """"better", "worse" or "unclear"; "moved" for a figure that has no better direction, when zero is excluded.

    It is "unclear" whatever the interval where the figure differs in fewer than `FEWEST_MOVED` units."""
    cases: int
    """Units that have a case in both runs."""


def units(run: Mapping[str, Sequence[T]], shares: Mapping[str, Collection[str]]) -> dict[str, list[T]]:
    """Put together what is of scenarios that share something, directly or through others.

    Args:
        run: scenario id -> what is known of its episodes.
        shares: scenario id -> what it has in common with others (`envs.pack.Pack.shares`); a scenario that is left out
            shares nothing. It may name more scenarios than `run` does.

    Returns:
        The first scenario of each unit -> what is known of all its episodes, in the order of the scenarios' ids.
    """
    first = _first(run.keys() | shares.keys(), shares)
    found: dict[str, list[T]] = {}
    for scenario in sorted(run):
        found.setdefault(first[scenario], []).extend(run[scenario])
    return found


def _first(scenarios: Iterable[str], shares: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Scenario -> the first one that it is connected with."""
    by_share: dict[str, list[str]] = {}
    for scenario in sorted(scenarios):
        for share in shares.get(scenario, ()):
            by_share.setdefault(share, []).append(scenario)
    found: dict[str, str] = {}
    for start in sorted(scenarios):
        reached = [] if start in found else [start]
        while reached:
            scenario = reached.pop()
            if scenario not in found:
                found[scenario] = start
                reached += [other for share in shares.get(scenario, ()) for other in by_share.pop(share, ())]
    return found


def bootstrap(
    run: Run,
    draws: int = DRAWS,
    seed: int = 0,
    derive: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda estimates: {},
) -> dict[str, Interval]:
    """Intervals of every figure of one run.

    Args:
        run: unit -> measurements.
        draws: resamples of the units.
        seed: of the resampling; the same seed gives the same intervals.
        derive: more figures that follow from those of the table, name -> (D,) each.
    """
    table = Table.of(list(run.values()))
    estimates = table.estimates(np.ones((1, table.units)))
    drawn = table.estimates(_weights(table.units, draws, seed))
    estimates, drawn = {**estimates, **derive(estimates)}, {**drawn, **derive(drawn)}
    sizes, alike = table.sizes(), np.ones(table.units)
    return {name: _interval(estimates[name], drawn[name], sizes.get(name, alike)) for name in _ordered(estimates)}


def paired_bootstrap(before: Run, after: Run, draws: int = DRAWS, seed: int = 0) -> dict[str, Comparison]:
    """Compare two runs of the same units.

    Args:
        before, after: unit -> measurements; the same units in both.
        draws: resamples of the units.
        seed: of the resampling; the same seed gives the same intervals.

    Raises:
        UptakeError: the runs do not hold the same units, or hold none.
    """
    if set(before) != set(after):
        odd = sorted(set(before) ^ set(after))
        raise UptakeError(
            f"bootstrap: {len(odd)} scenarios are in one run only ({odd[0]!r}); evaluate both on the same"
        )
    order = sorted(before)
    tables = [Table.of([run[unit] for unit in order]) for run in (before, after)]
    ones, weights = np.ones((1, len(order))), _weights(len(order), draws, seed)
    estimates = [table.estimates(ones) for table in tables]
    drawn = [table.estimates(weights) for table in tables]
    sizes, moved = [table.sizes() for table in tables], tables[0].differs(tables[1])
    found = {}
    for name in _ordered({**estimates[0], **estimates[1]}):
        nothing, nothings = np.full(1, np.nan), np.full(draws, np.nan)
        point = [one.get(name, nothing) for one in estimates]
        cloud = [one.get(name, nothings) for one in drawn]
        none = np.zeros(len(order))
        one, other = (size.get(name, none) for size in sizes)
        both = np.minimum(one, other)
        difference = _interval(point[1] - point[0], cloud[1] - cloud[0], both)
        found[name] = Comparison(
            _interval(point[0], cloud[0], one),
            _interval(point[1], cloud[1], other),
            difference,
            _verdict(name, difference, int(moved[name][both > 0].sum()) if both.any() else 0),
            int((both > 0).sum()),
        )
    return found


def _weights(units: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is in each draw: (draws, units) float."""
    if not units or draws < 1:
        raise UptakeError(f"bootstrap: {units} scenarios, {draws} draws; needs at least one of each")
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1.0 / units), size=draws).astype(float)


def _interval(estimate: np.ndarray, draws: np.ndarray, sizes: np.ndarray) -> Interval:
    """The expanded percentile interval; one unit alone has none."""
    known = draws[~np.isnan(draws)]
    if np.isnan(estimate[0]) or np.count_nonzero(sizes) < 2:
        return Interval(float(estimate[0]), float("nan"), float("nan"))
    count = effective(sizes)
    tail = float(ndtr(np.sqrt(count / (count - 1.0)) * stdtrit(count - 1.0, (1.0 - LEVEL) / 2.0)))
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Interval(float(estimate[0]), float(low), float(high))


def _verdict(name: str, difference: Interval, moved: int) -> str:
    better = MEASURES[name].better if name in MEASURES else 0
    if not difference.excludes_zero or moved < FEWEST_MOVED:
        return "unclear"
    if not better:
        return "moved"
    return "better" if (difference.low > 0.0) == (better > 0) else "worse"


def _ordered(found: Mapping[str, object]) -> list[str]:
    """Names in the order of the table, unknown ones last."""
    return [name for name in MEASURES if name in found] + sorted(set(found) - set(MEASURES))

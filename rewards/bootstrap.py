"""Intervals: a bootstrap that resamples whole scenarios, paired between two runs of the same ones.

Episodes of one scenario share its audio and its expectations, so they are not independent cases; scenarios are. A
draw takes S scenarios with replacement, the same ones for both runs, pools their contributions and takes the figures;
the interval is the percentile interval of the draws (Efron and Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.errors import UptakeError
from rewards.aggregate import Measurement, Table
from rewards.measures import MEASURES

Run = Mapping[str, Sequence[Measurement]]
"""Scenario id -> the measurements of its episodes."""
DRAWS = 2000
LEVEL = 0.95


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
    """"better", "worse" or "unclear"; "moved" for a figure that has no better direction, when zero is excluded."""


def bootstrap(
    run: Run,
    draws: int = DRAWS,
    seed: int = 0,
    derive: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda estimates: {},
) -> dict[str, Interval]:
    """Percentile intervals of every figure of one run.

    Args:
        run: scenario id -> measurements.
        draws: resamples of the scenarios.
        seed: of the resampling; the same seed gives the same intervals.
        derive: more figures that follow from those of the table, name -> (D,) each.
    """
    table = Table.of(list(run.values()))
    estimates = table.estimates(np.ones((1, table.scenarios)))
    drawn = table.estimates(_weights(table.scenarios, draws, seed))
    estimates, drawn = {**estimates, **derive(estimates)}, {**drawn, **derive(drawn)}
    return {name: _interval(estimates[name], drawn[name]) for name in _ordered(estimates)}


def paired_bootstrap(before: Run, after: Run, draws: int = DRAWS, seed: int = 0) -> dict[str, Comparison]:
    """Compare two runs of the same scenarios.

    Args:
        before, after: scenario id -> measurements; the same ids in both.
        draws: resamples of the scenarios.
        seed: of the resampling; the same seed gives the same intervals.

    Raises:
        UptakeError: the runs do not hold the same scenarios, or hold none.
    """
    if set(before) != set(after):
        odd = sorted(set(before) ^ set(after))
        raise UptakeError(
            f"bootstrap: {len(odd)} scenarios are in one run only ({odd[0]!r}); evaluate both on the same"
        )
    order = sorted(before)
    tables = [Table.of([run[scenario] for scenario in order]) for run in (before, after)]
    ones, weights = np.ones((1, len(order))), _weights(len(order), draws, seed)
    estimates = [table.estimates(ones) for table in tables]
    drawn = [table.estimates(weights) for table in tables]
    found = {}
    for name in _ordered({**estimates[0], **estimates[1]}):
        nothing, nothings = np.full(1, np.nan), np.full(draws, np.nan)
        point = [one.get(name, nothing) for one in estimates]
        cloud = [one.get(name, nothings) for one in drawn]
        difference = _interval(point[1] - point[0], cloud[1] - cloud[0])
        found[name] = Comparison(
            _interval(point[0], cloud[0]), _interval(point[1], cloud[1]), difference, _verdict(name, difference)
        )
    return found


def _weights(scenarios: int, draws: int, seed: int) -> np.ndarray:
    """How often each scenario is in each draw: (draws, scenarios) float."""
    if not scenarios or draws < 1:
        raise UptakeError(f"bootstrap: {scenarios} scenarios, {draws} draws; needs at least one of each")
    rng = np.random.default_rng(seed)
    return rng.multinomial(scenarios, np.full(scenarios, 1.0 / scenarios), size=draws).astype(float)


def _interval(estimate: np.ndarray, draws: np.ndarray) -> Interval:
    known = draws[~np.isnan(draws)]
    if np.isnan(estimate[0]) or not known.size:
        return Interval(float(estimate[0]), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return Interval(float(estimate[0]), float(low), float(high))


def _verdict(name: str, difference: Interval) -> str:
    better = MEASURES[name].better if name in MEASURES else 0
    if not difference.excludes_zero:
        return "unclear"
    if not better:
        return "moved"
    return "better" if (difference.low > 0.0) == (better > 0) else "worse"


def _ordered(found: Mapping[str, object]) -> list[str]:
    """Names in the order of the table, unknown ones last."""
    return [name for name in MEASURES if name in found] + sorted(set(found) - set(MEASURES))

"""From per-episode contributions to figures: pooled ratios, quantiles, and the paired score.

A measurement is what `rewards.measures.measure` says about one episode: name -> (numerator, denominator) for a ratio,
name -> list of values for what quantiles are taken of. Contributions add up, so that a bootstrap can resample units
of episodes (`rewards.bootstrap.units`) by weighting them. All functions work on D weightings at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.users.laws import load_laws

Measurement = Mapping[str, Sequence[float]]

QUANTILES: Mapping[str, Mapping[str, float]] = {
    "fto_s": {"fto_p10_s": 0.1, "fto_p50_s": 0.5, "fto_p90_s": 0.9},
    "latency_s": {"latency_p50_s": 0.5},
    "stop_latency_s": {"stop_latency_p50_s": 0.5},
    "stop_onset_s": {"stop_onset_p50_s": 0.5},
    "collision_s": {"collision_p50_s": 0.5},
}
"""Names that hold lists, and the quantiles that are reported of each. `NAME/TYPE` holds a list too (see `by_type`).

Every other name holds a ratio.
"""
ABILITIES = (("pair_hold", "pair_reply"), ("pair_yield", "pair_persist"), ("bc_f1", "bc_control_f1"))
"""What each ability in `paired_score` is computed from."""
SIX = ("pair_reply", "pair_hold", "pair_yield", "pair_persist", "ignored", "spoke_up")
"""The abilities in `duplex_score`: respond, hold, yield, persist, ignore, speak up."""
_OF_SCORES: Mapping[str, Sequence[Sequence[str]]] = {"paired_score": ABILITIES, "duplex_score": [(one,) for one in SIX]}
_GRID = 0.01
TYPE_QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Table:
    """The contributions of U units of episodes, ready to be weighted."""

    ratios: Mapping[str, np.ndarray]
    """name -> (U, 2): numerator and denominator, summed over the unit's episodes."""
    samples: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """name -> values (n,) in ascending order and the unit (n,) that each comes from."""
    units: int

    @classmethod
    def of(cls, groups: Sequence[Sequence[Measurement]]) -> Table:
        """Tabulate the measurements of each unit's episodes."""
        names = sorted({name for group in groups for one in group for name in one if "/" not in name})
        ratios = {name: np.zeros((len(groups), 2)) for name in names if name not in QUANTILES}
        lists: dict[str, list[tuple[float, int]]] = {name: [] for name in names if name in QUANTILES}
        for index, group in enumerate(groups):
            for one in group:
                for name, contribution in one.items():
                    if "/" in name:
                        continue
                    if name in QUANTILES:
                        lists[name] += [(float(value), index) for value in contribution]
                    else:
                        ratios[name][index] += np.asarray(contribution, float)
        samples = {}
        for name, pairs in lists.items():
            pairs.sort()
            samples[name] = (np.array([v for v, _ in pairs], float), np.array([i for _, i in pairs], int))
        return cls(ratios, samples, len(groups))

    def estimates(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every figure under weights (D, U) of the units: name -> (D,); NaN where there is nothing to divide by."""
        found: dict[str, np.ndarray] = {}
        for name, parts in self.ratios.items():
            found[name] = _divide(weights @ parts[:, 0], weights @ parts[:, 1])
        for name, (values, unit) in self.samples.items():
            for label, q in QUANTILES[name].items():
                found[label] = _quantile(values, weights[:, unit], q)
            if name == "fto_s":
                found["fto_human_s"] = human_distance(values, weights[:, unit])
        found["paired_score"] = paired_score(found)
        found["duplex_score"] = duplex_score(found)
        return found

    def sizes(self) -> dict[str, np.ndarray]:
        """Figure -> (U,): how much each unit has a say in it, 0 where it has no case of it.

        A score is as well known as the ability in it that the fewest units tell of.
        """
        found = {name: parts[:, 1] for name, parts in self.ratios.items()}
        found |= {name: np.bincount(unit, minlength=self.units) for name, (_, unit) in self.samples.items()}
        none = np.zeros(self.units)
        scores = {
            score: min((sum((found.get(name, none) for name in names), none) for names in of), key=effective)
            for score, of in _OF_SCORES.items()
        }
        return self._of_figures(found) | scores

    def differs(self, other: Table) -> dict[str, np.ndarray]:
        """Figure -> (U,) bool: the units in which it is not what it is in another table of the same units."""
        found = {}
        for name in self.ratios.keys() & other.ratios.keys():
            mine, theirs = self.ratios[name], other.ratios[name]
            found[name] = mine[:, 0] * theirs[:, 1] != theirs[:, 0] * mine[:, 1]
        for name in self.samples.keys() & other.samples.keys():
            (mine, of), (theirs, at) = self.samples[name], other.samples[name]
            pairs = [(mine[of == i], theirs[at == i]) for i in range(self.units)]
            found[name] = np.array([not np.array_equal(*pair) for pair in pairs])
        none = np.zeros(self.units, bool)
        scores = {
            score: np.any([found.get(name, none) for names in of for name in names], axis=0)
            for score, of in _OF_SCORES.items()
        }
        return self._of_figures(found) | scores

    @staticmethod
    def _of_figures(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is known of what is measured -> of each figure that is taken of it."""
        figures: dict[str, np.ndarray] = {}
        for name, known in found.items():
            more = ("fto_human_s",) if name == "fto_s" else ()
            figures |= dict.fromkeys((*QUANTILES.get(name, (name,)), *more), known)
        return figures


def effective(sizes: np.ndarray) -> float:
    """How many units of one size tell as much as these (U,): Kish's (sum of sizes)^2 / sum of squares; 0 for none."""
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if sizes.any() else 0.0


def aggregate(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Pool the measurements of many episodes: ratios of sums, quantiles of all values, and `paired_score`.

    A figure without a single case is NaN.
    """
    table = Table.of([measurements])
    return {name: float(value[0]) for name, value in table.estimates(np.ones((1, 1))).items()}


def by_type(measurements: Sequence[Measurement]) -> dict[tuple[str, str], dict[str, float]]:
    """p50, p95 and p99 of every timing by the type of the event: (type, name) -> `n` and the quantiles, seconds.

    A quantile is the smallest value with that share of the cases at or below it: of fewer than 100 cases, p99 is the
    largest.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for one in measurements:
        for key, contribution in one.items():
            name, _, kind = key.partition("/")
            if kind and contribution:
                values.setdefault((kind, name), []).extend(float(value) for value in contribution)
    found = {}
    for case in sorted(values):
        ordered = np.sort(values[case])
        ones = np.ones((1, ordered.size))
        quantiles = {label: float(_quantile(ordered, ones, q)[0]) for label, q in TYPE_QUANTILES.items()}
        found[case] = {"n": float(ordered.size), **quantiles}
    return found


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _quantile(values: np.ndarray, weights: np.ndarray, q: float) -> np.ndarray:
    """The smallest value with at least q of the weight at or below it. values (n,), weights (D, n) -> (D,)."""
    if not values.size:
        return np.full(weights.shape[0], np.nan)
    mass = np.cumsum(weights, axis=1)
    total = mass[:, -1:]
    index = np.argmax(mass >= q * total - 1e-9, axis=1)
    return np.where(total[:, 0] > 0, values[index], np.nan)


def human_distance(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Wasserstein-1 between floor-transfer offsets and those of people (the law `fto` of `envs.users.laws`).

    The area between the two distribution functions, on a grid of 10 ms: how far, in seconds, the mean offset would have
    to be moved.

    Args:
        values: (n,) seconds, ascending.
        weights: (D, n).

    Returns:
        (D,) seconds; NaN without values.
    """
    if not values.size:
        return np.full(weights.shape[0], np.nan)
    law = load_laws()["fto"]
    low, high = (f(edge, round(float(values[i]), 2)) for f, edge, i in ((min, law.clip[0], 0), (max, law.clip[1], -1)))
    grid = np.arange(low, high + _GRID, _GRID)
    people = np.array([0.0 if at < law.clip[0] else 1.0 if at >= law.clip[1] else law.below(at) for at in grid])
    mass = np.concatenate([np.zeros((weights.shape[0], 1)), np.cumsum(weights, axis=1)], axis=1)
    total = mass[:, -1:]
    share = np.divide(mass, total, out=np.full_like(mass, np.nan), where=total > 0)
    agent = share[:, np.searchsorted(values, grid, side="right")]
    return np.abs(agent - people).sum(axis=1) * _GRID


def paired_score(figures: Mapping[str, np.ndarray]) -> np.ndarray:
    """The headline: harmonic mean of three abilities in [0, 1], each of which is at most 0.5 for a constant policy.

    * **floor** = (`pair_hold` + `pair_reply`) / 2: balanced accuracy of "take the turn within 1.0 s of a silence" on
      pauses (must not) and ends of turns (must). Same decision rule and same window on both, so a policy that does not
      tell them apart has hold + reply <= 1.
    * **barge-in** = (`pair_yield` + `pair_persist`) / 2: balanced accuracy of "fall silent (> 0.5 s) within 1.5 s of
      the user's onset" on barge-ins (must) and user backchannels (must not). An agent that is not talking then gets
      neither, so silence is not a way to be right.
    * **listening** = (1 + skill) / 2, skill = (`bc_f1` - `bc_control_f1`) / (1 - `bc_control_f1`), clipped to [-1, 1];
      the control is the better of a random and a metronome placement at the agent's own rate.

    Harmonic, so that no ability makes up for another; 0 when any of them is. Windows and masks depend on the script
    alone, never on what the agent did. Silent and always talking score 0 (neither yields), a metronome at most 0.5
    up to sampling noise, a flawless agent 1. An ability without events counts as 0: the score needs a suite with all.

    Args:
        figures: name -> (D,), the five named above.

    Returns:
        (D,) in [0, 1].
    """
    hold, reply = _get(figures, "pair_hold"), _get(figures, "pair_reply")
    stop, persist = _get(figures, "pair_yield"), _get(figures, "pair_persist")
    f1, control = _get(figures, "bc_f1"), _get(figures, "bc_control_f1")
    skill = np.clip((f1 - control) / np.maximum(1.0 - control, 1e-9), -1.0, 1.0)
    known = np.asarray(figures.get("bc_f1", np.nan))
    listening = np.where(np.isnan(known), 0.0, (1.0 + skill) / 2.0)
    return _harmonic_mean([(hold + reply) / 2.0, (stop + persist) / 2.0, listening])


def duplex_score(figures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Harmonic mean of six abilities: respond, hold, yield, persist, ignore and speak up (`SIX`).

    Source: the corrected core set of our survey of measures. No ability makes up for another, and 0 of any is 0. What
    an agent never came to do counts as 0: who is silent is never interrupted, and so never yields.

    Returns:
        (D,) in [0, 1]; NaN where there was no pause, no turn or no moment to speak up at, which the script alone
        decides: then the suite cannot tell.
    """
    needed = [np.asarray(figures.get(name, np.full(1, np.nan))) for name in ("pair_hold", "pair_reply", "spoke_up")]
    return np.where(np.isnan(sum(needed)), np.nan, _harmonic_mean([_get(figures, name) for name in SIX]))


def _harmonic_mean(of: Sequence[np.ndarray]) -> np.ndarray:
    """Of figures in [0, 1], (D,) each; 0 when any of them is."""
    abilities = np.stack(np.broadcast_arrays(*of))
    positive = np.all(abilities > 0, axis=0)
    return np.where(positive, len(of) / np.sum(1.0 / np.where(abilities > 0, abilities, 1.0), axis=0), 0.0)


def _get(figures: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A figure with 0 for "no such event"."""
    return np.nan_to_num(np.asarray(figures.get(name, np.zeros(1)), float), nan=0.0)

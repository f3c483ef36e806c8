"""The timing laws of a corpus: fitted over its conversations, and how far other laws are from it.

A law has a spread within conversations and one between them: the pair explains more of a conversation's floor
transfers than either speaker does (Cavalcanti & Skantze 2025), so that an offset is drawn once a conversation.

Distance of a law to a corpus, for each quantity over all its observations: Kolmogorov-Smirnov (the greatest
difference of the two distribution functions, 0 to 1) and Wasserstein-1 (how far the mass has to move, in the
quantity's unit), each with a 95 % interval from 200 resamplings of conversations. The law, or what simulated users
did, is drawn from 16,384 times, 64 times in each of 256 conversations. Pauses under 0.18 s do not exist in a corpus
(they do not split a unit), so that a law is compared by what it says of longer ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from scipy import stats

from envs.corpora import journal
from envs.corpora.timing import Timing, measure
from envs.corpora.utterances import UNIT_GAP_SECONDS
from envs.errors import UptakeError
from envs.users.laws import NAMES, Law

UNITS: Mapping[str, str] = MappingProxyType(
    {"fto": "s", "pause": "s", "overlap": "s", "backchannel_lag": "s", "backchannel_rate": "1/min"}
)
"""The quantities, and what they are measured in. All but the rate, which is the persona's, are laws of a user."""
_DIST = {"pause": "lognormal", "overlap": "lognormal"}
_FLOOR = {"pause": UNIT_GAP_SECONDS}
_LEAST_SPREAD, _MOST_DYAD = 1e-3, 0.99
_DYADS, _EACH, _SEED, _RESAMPLES, _GRID = 256, 64, 20260609, 200, 2049


class Draws(Protocol):
    """What is needed for a distance to be taken."""

    def __call__(self, rng: np.random.Generator, dyads: int, each: int) -> np.ndarray:
        """(dyads, each) values of the quantity: `each` in every one of `dyads` conversations."""


def drawn_from(law: Law) -> Draws:
    """A law to draw from."""
    grid = np.linspace(0.0, 1.0, _GRID)[1:-1]
    values = np.array([law.quantile(float(p)) for p in grid])

    def draw(rng: np.random.Generator, dyads: int, each: int) -> np.ndarray:
        own, pair = rng.standard_normal((dyads, each)), rng.standard_normal((dyads, 1))
        return np.interp(stats.norm.cdf(math.sqrt(law.dyad) * pair + math.sqrt(1.0 - law.dyad) * own), grid, values)

    return draw


def seen_in(observed: Sequence[np.ndarray]) -> Draws:
    """What was observed elsewhere, to draw from as from a law: one array of values a conversation, at least one."""
    values = np.concatenate(observed)

    def draw(rng: np.random.Generator, dyads: int, each: int) -> np.ndarray:
        return rng.choice(values, (dyads, each))

    return draw


@dataclass(frozen=True)
class Figure:
    """A figure that the literature gives."""

    low: float
    high: float
    source: str


PUBLISHED_FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "floor_transfer_median_s": Figure(0.08, 0.08, "CANDOR video calls (Reece et al. 2023)"),
        "transfers_under_200_ms": Figure(0.51, 0.55, "Heldner & Edlund 2010, via Levinson & Torreira 2015"),
        "transfers_overlapped": Figure(0.301, 0.301, "NXT-Switchboard, Levinson & Torreira 2015"),
        "overlaps_under_374_ms": Figure(0.75, 0.75, "Levinson & Torreira 2015"),
        "speech_overlapped": Figure(0.047, 0.047, "NXT-Switchboard, Levinson & Torreira 2015"),
        "backchannels_per_minute": Figure(1.2, 3.2, "by setting (Frontiers in Robotics and AI 2023, 988042)"),
    }
)


@dataclass(frozen=True)
class Distance:
    """How far a law is from a corpus, with 95 % intervals over conversations."""

    ks: float
    ks_interval: tuple[float, float]
    w1: float
    """In the quantity's unit."""
    w1_interval: tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """What was learned of a corpus."""

    observed: Mapping[str, Sequence[np.ndarray]]
    """Quantity -> one array of values a conversation (those with none left out)."""
    laws: Mapping[str, Law]
    """Name -> law; those that the corpus says too little of are missing."""
    figures: Mapping[str, float]
    """As `PUBLISHED_FIGURES`, of this corpus."""
    conversations: int
    lapses: int


def fit(timings: Iterable[Timing]) -> Fit:
    """Learn the laws of a corpus from the timing of its conversations."""
    rows = list(timings)
    observed: dict[str, list[np.ndarray]] = {name: [] for name in UNITS}
    for row in rows:
        rate = () if row.backchannels_per_minute is None else (row.backchannels_per_minute,)
        values = (row.floor_transfers, row.pauses, row.overlaps, row.backchannel_latencies, rate)
        for name, found in zip(UNITS, values, strict=True):
            if found:
                observed[name].append(np.asarray(found))
    fitted = {name: _law(name, groups) for name, groups in observed.items() if name in NAMES}
    laws = {name: law for name, law in fitted.items() if law is not None}
    return Fit(observed, laws, _figures(rows), len(rows), sum(row.lapses for row in rows))


def _law(name: str, groups: Sequence[np.ndarray]) -> Law | None:
    """One-way random effects by the method of moments; None for fewer than two values.

    The location weighs each conversation's mean by its precision. With one value in every conversation the spread
    within them is unknown, and all of it is between. Nothing is drawn beyond what was observed.
    """
    dist = _DIST.get(name, "normal")
    seen = np.concatenate([np.zeros(0), *groups])
    groups = [np.log(group) for group in groups] if dist == "lognormal" else list(groups)
    counts = np.array([group.size for group in groups])
    total, dyads = int(counts.sum()), len(groups)
    if total < 2:
        return None
    means = np.array([group.mean() for group in groups])
    inside = sum(float(((group - mean) ** 2).sum()) for group, mean in zip(groups, means, strict=True))
    within = inside / (total - dyads) if total > dyads else 0.0
    between = 0.0
    if dyads > 1:
        grand = float(np.average(means, weights=counts))
        square = float((counts * (means - grand) ** 2).sum()) / (dyads - 1)
        between = max(0.0, (square - within) / ((total - float((counts**2).sum()) / total) / (dyads - 1)))
    precision = 1.0 / np.maximum(between + within / counts, 1e-12)
    location = float(np.average(means, weights=precision))
    return Law(
        name,
        dist,
        (math.exp(location) if dist == "lognormal" else location, max(math.sqrt(within + between), _LEAST_SPREAD)),
        (float(seen.min()), float(seen.max())),
        min(between / max(within + between, 1e-12), _MOST_DYAD),
        f"{total} values of {dyads} conversations",
    )


def _figures(rows: Sequence[Timing]) -> dict[str, float]:
    transfers = np.concatenate([np.zeros(0), *(row.floor_transfers for row in rows)])
    overlaps = -transfers[transfers < 0]
    speech = sum(row.speech for row in rows)
    rates = [row.backchannels_per_minute for row in rows if row.backchannels_per_minute is not None]
    found: dict[str, float] = {}
    if rates:
        found["backchannels_per_minute"] = float(np.mean(rates))
    if transfers.size:
        found["floor_transfer_median_s"] = float(np.median(transfers))
        found["transfers_under_200_ms"] = float((transfers < 0.2).mean())
        found["transfers_overlapped"] = float((transfers < 0).mean())
    if overlaps.size:
        found["overlaps_under_374_ms"] = float((overlaps < 0.374).mean())
    if speech:
        found["speech_overlapped"] = sum(row.both for row in rows) / speech
    return found


def distance(name: str, observed: Sequence[np.ndarray], law: Draws) -> Distance:
    """How far a law is from what was observed, see the head of this module.

    Args:
        name: the quantity, one of `UNITS`.
        observed: one array of values a conversation, at least one.
        law: what is drawn from.
    """
    rng = np.random.default_rng(_SEED)
    drawn = np.asarray(law(rng, _DYADS, _EACH), np.float64).ravel()
    drawn = drawn[drawn >= _FLOOR.get(name, -math.inf)]
    if not drawn.size or not np.isfinite(drawn).all():
        raise UptakeError(f"{name}: the law draws no finite value that a corpus could show")

    values = np.concatenate(observed)
    ks = float(stats.ks_2samp(values, drawn, method="asymp").statistic)
    w1 = float(stats.wasserstein_distance(values, drawn))
    # The resamplings look at a grid of quantiles: the values of a large corpus would be sorted 200 times. Each side has
    # its own, or the few values of a small corpus would fall between those of the many that were drawn.
    points = np.linspace(0.0, 1.0, _GRID)
    grid = np.unique(np.concatenate([np.quantile(one, points, method="nearest") for one in (values, drawn)]))
    counts = np.stack([np.bincount(np.searchsorted(grid, group), minlength=len(grid)) for group in observed])
    chosen = rng.multinomial(len(observed), np.full(len(observed), 1.0 / len(observed)), size=_RESAMPLES)
    below = np.cumsum(chosen.astype(np.float32) @ counts.astype(np.float32), axis=1)  # (resamples, grid)
    off = np.abs(below / below[:, -1:] - np.searchsorted(np.sort(drawn), grid, side="right") / drawn.size)
    low, high = np.quantile([off.max(axis=1), (off[:, :-1] * np.diff(grid)).sum(axis=1)], [0.025, 0.975], axis=1)
    return Distance(ks, (float(low[0]), float(high[0])), w1, (float(low[1]), float(high[1])))


def distances(learned: Fit, laws: Mapping[str, Draws]) -> dict[str, Distance]:
    """The distance of each law to the corpus; quantities that either lacks are left out."""
    return {
        name: distance(name, learned.observed[name], laws[name])
        for name in UNITS
        if name in laws and learned.observed[name]
    }


def timings(out: Path) -> Iterable[Timing]:
    """The timing of every recording that `uptake segments` read into `out`.

    Raises:
        UptakeError: nothing was read there.
    """
    if not (out / "summary.json").is_file():
        raise UptakeError(f"{out}: no summary.json in it; run `uptake segments DIR --out {out}` first, to its end")
    records = journal.read(out / journal.NAME)
    next(records)
    return (measure(record["units"]) for record in records if "units" in record)


def to_json(learned: Fit, compared: Mapping[str, Mapping[str, Distance]]) -> dict[str, Any]:
    """The report of a fit. `compared`: name of what the corpus was compared with -> distances."""
    return {
        "v": 2,
        "conversations": learned.conversations,
        "lapses": learned.lapses,
        "observations": {name: sum(group.size for group in groups) for name, groups in learned.observed.items()},
        "figures": dict(learned.figures),
        "distances": {name: {q: asdict(d) for q, d in found.items()} for name, found in compared.items()},
    }

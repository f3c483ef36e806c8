"""Can what comes next be told from the sound before it? It must not: a policy would learn the tell and not to listen.

Twins are two conversations that differ in what happens at one moment, the decision point. A linear classifier gets the
sound up to there (levels, spectrum, length) and has to say whether the event goes on or ends; it learns on some pairs
and is tried on others. An area under the ROC curve (AUC) of 0.5 is a coin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.activity import levels
from envs.clock import CLOCK
from envs.episode import Episode

_FOLDS = 5
_RIDGE = 1.0
_BANDS = 8
_LOOKBACK = tuple(CLOCK.nearest_sample(seconds) for seconds in (0.08, 0.32, 1.28))


@dataclass(frozen=True)
class Probe:
    """What the classifier could tell."""

    auc: float
    pairs: int
    alike: int
    """Pairs whose sound is the same to the last bit up to the decision point: nothing can tell these apart."""


def decision(one: Episode, other: Episode) -> tuple[int, bool] | None:
    """The sample up to which two conversations are the same, and whether something goes on there in `one`.

    None where their events do not differ (twins in acoustics alone), or differ from the first sample on.
    """
    for a, b in zip(one.events, other.events, strict=False):
        if (a.onset, a.offset, a.text) == (b.onset, b.offset, b.text):
            continue
        if a.onset != b.onset:
            at, goes_on = min(a.onset, b.onset), a.onset < b.onset
        else:
            at, goes_on = min(a.offset, b.offset), a.offset > b.offset
        return (at, goes_on) if at > 0 else None
    if len(one.events) != len(other.events):
        more, goes_on = (one, True) if len(one.events) > len(other.events) else (other, False)
        return more.events[min(len(one.events), len(other.events))].onset, goes_on
    return None


def probe(pairs: Sequence[tuple[Episode, Episode]], seed: int = 0) -> Probe:
    """Try to tell twins apart before their decision points."""
    rows: list[np.ndarray] = []
    labels: list[bool] = []
    groups: list[int] = []
    alike = 0
    for one, other in pairs:
        found = decision(one, other)
        if found is None:
            continue
        at, goes_on = found
        alike += bool(np.array_equal(one.mic[:at], other.mic[:at]))
        pair = len(rows) // 2
        for episode, label in ((one, goes_on), (other, not goes_on)):
            rows.append(features(episode.mic[:at]))
            labels.append(label)
            groups.append(pair)
    count = len(rows) // 2
    if not count:
        return Probe(0.5, 0, 0)
    x, y, group = np.stack(rows), np.array(labels), np.array(groups)
    fold = np.random.default_rng(seed).permutation(count)[group] % min(_FOLDS, count)
    areas, weights = [], []
    for k in range(min(_FOLDS, count)):
        held = fold == k
        if held.all():  # one pair alone: there is nothing to learn from
            return Probe(0.5, count, alike)
        areas.append(auc(_scores(x[~held], y[~held], x[held]), y[held]))
        weights.append(held.sum())
    return Probe(float(np.average(areas, weights=weights)), count, alike)


def features(sound: np.ndarray) -> np.ndarray:
    """What a listener without words could go by: (n,) float32 to (features,) float64, levels in dB."""
    found = [np.log(sound.size)]
    for samples in _LOOKBACK:
        found.append(_db(np.mean(np.square(sound[-samples:], dtype=np.float64))))
    hops = levels(sound)
    found += [_db(float(v)) for v in (hops.min(), np.median(hops), hops.max())]
    recent = np.square(np.abs(np.fft.rfft(sound[-CLOCK.sample_rate :])))
    found += [_db(float(np.mean(band))) for band in np.array_split(recent[1:], _BANDS)]
    return np.array(found)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. 0.5 where one of the classes is empty."""
    high, low = scores[positive], scores[~positive]
    if not high.size or not low.size:
        return 0.5
    above = (high[:, None] > low[None]).sum() + 0.5 * (high[:, None] == low[None]).sum()
    return float(above / (high.size * low.size))


def _scores(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression on the labels, learnt on (x, y): the scores of `new`."""
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    a = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    b = np.column_stack([(new - mean) / scale, np.ones(len(new))])
    weights = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ np.where(y, 1.0, -1.0))
    return np.round(b @ weights, 9)  # equal features have equal scores, whatever the order of the sums


def _db(power: float) -> float:
    return float(10.0 * np.log10(power + 1e-12))

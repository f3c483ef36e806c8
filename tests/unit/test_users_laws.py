"""The laws of timing: what the sources say about them is what comes out."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from envs.errors import UptakeError
from envs.users.laws import BUILTIN, NAMES, Law, load_laws

GRID = [(i + 0.5) / 100 for i in range(100)]


def draws(law: Law, pairs: int = 20) -> np.ndarray:
    """(pairs, occasions): stratified uniform draws of pairs and of occasions."""
    return np.array([[law.at(u, (p + 0.5) / pairs) for u in GRID] for p in range(pairs)])


def test_every_law_has_its_source_and_its_parameters_as_data():
    laws = load_laws()
    assert set(laws) == set(NAMES) and all(len(law.source) > 40 for law in laws.values())


def test_two_thirds_of_floor_transfers_are_gaps_with_their_middle_near_200_ms():
    fto = draws(load_laws()["fto"])
    assert np.mean(fto > 0) == pytest.approx(0.67, abs=0.02)
    assert np.median(fto) == pytest.approx(0.2, abs=0.02) and fto.std() == pytest.approx(0.45, abs=0.02)
    assert fto.min() >= -1.0 and fto.max() <= 2.0


def test_overlaps_have_the_published_mode_and_three_quarters_below_374_ms():
    law = load_laws()["overlap"]
    median, sigma = law.params
    assert median * math.exp(-(sigma**2)) == pytest.approx(0.096, abs=0.001)
    assert law.quantile(0.75) == pytest.approx(0.374, abs=0.001)


def test_pauses_have_a_median_of_350_ms_and_none_is_shorter_than_an_inter_pausal_gap():
    pause = draws(load_laws()["pause"])
    assert np.median(pause) == pytest.approx(0.35, abs=0.03) and pause.min() == 0.18 and pause.max() <= 3.0


def test_a_pair_of_speakers_keeps_its_share_of_the_variance_and_the_law_stays_what_it_is():
    law = load_laws()["fto"]
    found = draws(law, pairs=40)
    assert found.mean(axis=1).var() / found.var() == pytest.approx(law.dyad, abs=0.04)
    assert (np.diff(found.mean(axis=1)) > 0).all()


@pytest.mark.parametrize(
    ("law", "value"),
    [
        (Law("x", "normal", (0.2, 0.45)), NormalDist(0.2, 0.45).inv_cdf(0.9)),
        (Law("x", "lognormal", (0.35, 0.7)), 0.35 * math.exp(0.7 * 1.2815515655446004)),
        (Law("x", "uniform", (1.0, 3.0)), 2.8),
        (Law("x", "exponential", (2.0,)), 2.0 * math.log(10.0)),
    ],
)
def test_quantiles_and_shares_agree_with_the_definitions(law, value):
    assert law.quantile(0.9) == pytest.approx(value) and law.below(value) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    sd: 0.45", "    sigma: 0.45", r"law 'fto' \(normal\) has 'sigma'; it takes mean, sd"),
        ("    sd: 0.45\n", "", r"law 'fto' \(normal\) needs 'sd'"),
        ("    sd: 0.45", "    sd: 0", r"law 'fto': sd is 0; it must be above 0"),
        ("clip: [-1.0, 2.0]", "clip: [2.0, -1.0]", "the lower bound is above the upper one"),
        ("  pause:", "  pauze:", r"laws has no 'pause'; add it"),
        ("    dyad: 0.5", "    dyad: 1", r"dyad is 1; it must be at least 0 and at most 0.99"),
        ("schema: duplex.laws/1", "schema: duplex.laws/2", "schema is 'duplex.laws/2', which is not allowed"),
    ],
)
def test_a_bad_law_is_named_with_its_line(tmp_path, old, new, message):
    text = BUILTIN.read_text()
    assert old in text
    path = tmp_path / "laws.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UptakeError, match=rf"laws.yaml:\d+: .*{message}"):
        load_laws(str(path))

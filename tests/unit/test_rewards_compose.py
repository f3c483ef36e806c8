"""Registry, composition and audit: how rewards are found, combined and distrusted."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from envs.errors import UptakeError
from envs.event import Expect
from rewards import OURS, PUBLISHED, Composition, Verdict, get, names, reward, term_values
from rewards import registry as registry_module
from rewards.audit import audit
from tests.unit.test_rewards_episodes import conversation, event, words

MODULE = '''
from rewards import reward, Verdict

@reward("{name}", axis="custom", events=["A1"], horizon_s=1.0)
def mine(view, event):
    """Always half."""
    return Verdict(0.5, (0, view.end))

plain = 3
'''


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(registry_module, "_FILES", {})


# ---- registry


def test_an_unknown_reward_is_an_error_that_offers_the_nearest_name():
    with pytest.raises(UptakeError, match="did you mean 'turn_taking'"):
        get("turn_takin")


def test_every_shipped_reward_has_a_docstring_with_window_and_degenerate_policies():
    shipped = [name for name in names() if get(name).judge_function.__module__.startswith("rewards.")]
    assert len(shipped) >= 10
    for name in shipped:
        assert "Degenerate policies: silent" in (get(name).__doc__ or ""), name


def test_a_reward_is_found_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MODULE.format(name="found_by_path"))
    by_function, by_name = get(f"{path}:mine"), get(f"{path}:found_by_path")
    assert by_function is by_name
    assert Composition({f"{path}:mine": 2.0})(conversation([], [event("A1", 1, 2)])) == 0.5


@pytest.mark.parametrize(
    "content, attribute, message",
    [
        (MODULE.format(name="near"), "mien", "did you mean 'mine'"),
        (MODULE.format(name="plain_thing"), "plain", "is a int, not a reward"),
        ("def broken(:", "mine", "does not load: SyntaxError"),
        ("import no_such_module_at_all", "mine", "does not load: ModuleNotFoundError"),
        (None, "mine", "no such file"),
    ],
)
def test_a_bad_path_is_one_clear_line(tmp_path, content, attribute, message):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UptakeError, match=message) as caught:
        get(f"{path}:{attribute}")
    assert "\n" not in str(caught.value)


def test_a_third_partys_entry_point_is_found_and_a_broken_one_is_named(monkeypatch):
    points = [
        EntryPoint("theirs", "rewards.turn:turn_taking", "uptake.rewards"),
        EntryPoint("gone", "rewards.turn:no_such_thing", "uptake.rewards"),
        EntryPoint("wrong", "rewards.turn:offset_score", "uptake.rewards"),
    ]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == "uptake.rewards" else [])
    assert get("theirs") is get("turn_taking")
    assert "theirs" in names()
    with pytest.raises(UptakeError, match="gone"):
        get("gone")
    with pytest.raises(UptakeError, match="not a reward"):
        get("wrong")


def test_two_rewards_cannot_share_a_name():
    with pytest.raises(UptakeError, match=r"already registered by rewards\.turn"):

        @reward("turn_taking", axis="turn", events=["A1"], horizon_s=1.0)
        def another(view, event):
            return Verdict(0.0, (0, 1))


def test_rewards_import_without_torch():
    code = (
        "import sys, rewards, rewards.attacks, rewards.audit, rewards.bootstrap, rewards.heatmap, rewards.measures\n"
        "rewards.names()\n"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- composition


@pytest.mark.parametrize("bad", [1.5, -1.01, float("nan"), float("inf")])
def test_a_verdict_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match="not in"):
        Verdict(bad, (0, 1))


@pytest.mark.parametrize(
    "terms", [{}, {"turn_taking": 0}, {"turn_taking": -1.0}, {"turn_taking": float("nan")}, {"turn": 1}]
)
def test_a_composition_that_cannot_be_meant_is_refused(terms):
    with pytest.raises(UptakeError):
        Composition(terms)


def test_what_does_not_apply_is_masked_and_not_counted_as_zero():
    composition = Composition({"turn_taking": 1.0, "interruption": 3.0})
    episode = conversation([(4.3, 6.3)], [event("A1", 1, 4), event("C1", 8.0, 9.0, sem=8.4)])
    verdicts = composition.score(episode)
    assert [(v.term, v.value) for v in verdicts] == [("turn_taking", 1.0), ("interruption", None)]
    assert term_values(verdicts) == {"turn_taking": 1.0, "interruption": None}
    assert composition.total(verdicts) == 1.0


def test_a_weight_of_zero_leaves_a_term_out():
    composition = Composition({"turn_taking": 1.0, "pause_handling": 0})
    assert set(composition.weights) == {"turn_taking"}
    assert composition.score(conversation([], [event("B1", 2, 3)])) == []


def test_the_total_is_the_weighted_mean_of_the_terms_means():
    composition = Composition({"turn_taking": 1.0, "pause_handling": 3.0})
    episode = conversation([(4.3, 6.3)], [event("B1", 2, 3), event("A1", 1, 4), event("A1", 10, 11)], seconds=15)
    assert composition(episode) == pytest.approx((1.0 * (1.0 - 1.0) / 2 + 3.0 * 1.0) / 4.0)


def test_a_term_that_raises_costs_its_verdict_and_is_counted(tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(
        "from rewards import reward, Verdict\n"
        "@reward('raises', axis='x', events=['A1'], horizon_s=1.0)\n"
        "def raises(view, event):\n    return Verdict(1 / 0, (0, 1))\n"
        "@reward('overflows', axis='x', events=['A1'], horizon_s=1.0)\n"
        "def overflows(view, event):\n    return Verdict(7.0, (0, 1))\n"
        "@reward('forgets', axis='x', events=['A1'], horizon_s=1.0)\n"
        "def forgets(view, event):\n    pass\n"
    )
    terms = {f"{path}:{name}": 1.0 for name in ("raises", "overflows", "forgets")}
    composition = Composition({**terms, "turn_taking": 1.0})
    verdicts = composition.score(conversation([(4.3, 6.3)], [event("A1", 1, 4)]))
    assert [v.value for v in verdicts] == [None, None, None, 1.0]
    assert [v.raw.get("fault") for v in verdicts[:3]] == [1.0] * 3
    assert dict(composition.faults) == {"raises": 1, "overflows": 1, "forgets": 1}
    assert composition.total(verdicts) == 1.0


def test_a_reloaded_episode_is_graded_the_same(tmp_path):
    played = conversation([(3.2, 4.8), (9.1, 9.5)], SCRIPT, USER, 20.0, transcript=words("at noon", 3.2))
    composition = Composition(OURS)
    from envs.episode import Episode

    assert composition.score(Episode.load(played.save(tmp_path / "e"))) == composition.score(played)


# ---- audit: one conversation with every axis, and what scripted agents do in it

NOON = [Expect("responds", content=("noon",))]
SCRIPT = [
    event("A1", 1.0, 5.0, NOON),
    event("B1", 2.5, 3.5),
    event("C1", 7.0, 8.2, NOON, sem=7.5),
    event("D1", 10.5, 10.9),
    event("B7", 14.0, 26.0, bc0=16.5, bc1=18.2, bc2=22.7),
    event("A3", 14.0, 26.0, NOON),
]
USER = [(1.0, 2.5), (3.5, 5.0), (7.0, 8.2), (10.5, 10.9), (14.0, 26.0)]
SECONDS = 32.0


def every(period: float, length: float, phase: float = 0.0) -> list[tuple[float, float]]:
    return [(on, min(SECONDS, on + length)) for on in np.arange(phase, SECONDS - length, period).round(2)]


def vad(wait: float) -> list[tuple[float, float]]:
    """Talks whenever the user has been silent for `wait` seconds, until the user speaks or 3 s are over."""
    ends = [off for _, off in USER]
    nexts = [on for on, _ in USER[1:]] + [SECONDS]
    spans = [(end + wait, min(end + wait + 3.0, following + 0.2)) for end, following in zip(ends, nexts, strict=True)]
    return [(on, off) for on, off in spans if off - on > 0.1]


AGENTS = {
    "oracle": [(5.3, 7.8), (8.5, 12.8), (16.7, 17.1), (18.4, 18.8), (22.9, 23.3), (26.3, 29.0)],
    "silent": [],
    "always": [(0.0, SECONDS)],
    "metronome": every(2.0, 0.4),
    "long metronome": every(4.0, 1.5, 0.3),
    "mumbler": every(1.3, 0.8),
    "truncator": [(5.3, 5.7), (8.5, 8.9), (26.3, 26.7)],
    "vad 200": vad(0.2),
    "vad 700": vad(0.7),
}


def play(name: str):
    spoken = {"silent": (), "oracle": words("at noon", 5.3) + words("at noon", 8.6) + words("at noon", 26.4)}
    return conversation(AGENTS[name], SCRIPT, USER, SECONDS, transcript=spoken.get(name, words("yeah", 5.3)))


def test_our_composition_keeps_every_degenerate_agent_far_below_the_oracle():
    report = audit(Composition(OURS), {name: [play(name)] for name in AGENTS})
    assert report.passed, "\n".join(report.complaints())
    assert report.totals["oracle"] > 0.8
    assert max(total for name, total in report.totals.items() if name != "oracle") < 0.5


def test_the_published_axes_do_not_which_the_audit_finds():
    report = audit(Composition(PUBLISHED), {name: [play(name)] for name in AGENTS})
    assert not report.passed
    assert "always" in report.offenders or "silent" in report.offenders, "\n".join(report.complaints())


def test_one_axis_alone_is_won_by_silence_and_the_audit_says_so():
    report = audit(Composition({"pause_handling": 1.0}), {name: [play(name)] for name in ("oracle", "silent")})
    assert report.offenders == ("silent",)
    assert report.complaints() == [
        "silent earns +1.00, only 0.00 below the oracle's +1.00 (margin 0.25): pause_handling +1.00 against +1.00"
    ]


@pytest.mark.parametrize(
    "agents, message",
    [(["silent"], "needs 'oracle'"), (["oracle"], "needs 'oracle'"), (["oracle", "silent"], "no episodes")],
)
def test_an_audit_that_proves_nothing_is_refused(agents, message):
    played = {name: [play(name)] if "no episodes" not in message or name == "oracle" else [] for name in agents}
    with pytest.raises(UptakeError, match=message):
        audit(Composition(OURS), played)

"""The audit: attacks play the same conversations as the oracle, and what they get away with is said."""

from __future__ import annotations

import json

import pytest

from envs.errors import UptakeError
from envs.pack import Pack
from rewards import Composition, Verdict, get, names, reward
from rewards import registry as registry_module
from rewards.attacks import ATTACKS, CHANCE, DRAWS, ORACLE, PLAYS, paired_scenarios, play
from rewards.audit import SLACK, companions, compare, examine
from rewards.heatmap import draw
from rewards.holes import ONLY_IN, SHIPPED, declared
from tests.packs import tiny_pack

PUBLISHED = ("published", "aspirin", "duplexpo", "steerduplex")
"""What the names of rewards to the letter of a paper begin with: their holes are declared, not closed."""


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def played(pack):
    return list(play(pack, paired_scenarios(pack, "train"), frames=125))


@pytest.fixture
def _own_registry(monkeypatch):
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))


def rules(name: str) -> bool:
    """Whether a reward judges by itself: one that needs something from outside is audited where that is."""
    return get(name).rule


def test_a_scenario_comes_with_its_twin_and_every_kind_comes_before_any_comes_twice(pack):
    few = {scenario.id for scenario in paired_scenarios(pack, "train", 6)}
    assert all((name in few) == (twin in few) for name, twin in (("pause", "nopause"), ("barge", "ack")))
    every = paired_scenarios(pack, "train", 100)
    assert len(every) == len({s.id for s in every}) == len(pack.scenarios("train"))
    core = Pack.load("core")
    chosen = paired_scenarios(core, "dev", 30)
    assert {s.types for s in chosen} == {s.types for s in core.scenarios("dev")}
    taxonomy = paired_scenarios(Pack.load("taxonomy"), "dev")
    assert sum(expect.agent == "declines" for s in taxonomy for _, expect in s.expects) >= 3
    assert {s.twin for s in chosen if s.twin} <= {s.id for s in chosen}
    with pytest.raises(UptakeError, match="no scenario in split 'dev'"):
        paired_scenarios(pack, "dev")


def test_the_oracle_plays_first_and_every_attack_plays_the_same_conversations(played):
    assert [agent for agent, _ in played if agent not in CHANCE] == [ORACLE, *(a for a in ATTACKS if a not in CHANCE)]
    assert [agent for agent, _ in played if agent in CHANCE] == [agent for agent in CHANCE for _ in range(DRAWS)]
    assert len(played) == PLAYS
    keys = [[(e.meta["scenario"], e.meta["variant"], e.meta["seed"]) for e in episodes] for _, episodes in played]
    assert all(key == keys[0] for key in keys)
    assert all(episode.meta["text_stream"] for _, episodes in played for episode in episodes)


TERMS = {
    "oracle": {"a": 1.0, "b": 1.0, "quiet": None},
    "silent": {"a": 1.0, "b": -1.0, "quiet": None},
    "always_talking": {"a": 0.9, "b": 0.8, "quiet": 0.0},
    "metronome": {"a": None, "b": None, "quiet": None},
}


def test_an_attack_is_named_with_its_terms_and_by_how_much():
    found = compare({"a": 1.0, "b": 1.0}, TERMS)
    assert found.offenders == found.holes == ("always_talking",)
    assert not found.passed
    (sentence,) = found.complaints()
    assert sentence == (
        "always_talking earns +0.85, only 0.15 below the oracle's +1.00 (margin 0.25): "
        "a +0.90 against +1.00, b +0.80 against +1.00"
    )
    assert found.won("silent") == ["a"]
    assert found.gap("metronome") is None  # nothing of it was judged: it earned nothing


def test_weights_decide_what_a_composition_lets_through():
    assert compare({"a": 9.0, "b": 1.0}, TERMS).offenders == ("silent", "always_talking")
    assert compare({"a": 1.0, "b": 9.0}, TERMS, margin=0.1).offenders == ()


def test_a_declared_hole_does_not_fail_the_audit_and_one_that_is_closed_does():
    open_hole = compare({"a": 1.0, "b": 1.0}, TERMS, known={"always_talking": "why"})
    assert open_hole.passed and open_hole.offenders == ("always_talking",) and not open_hole.complaints()
    closed = compare({"a": 1.0, "b": 1.0}, TERMS, known={"always_talking": "why", "silent": "why"})
    assert not closed.passed
    assert closed.complaints() == ["silent is declared in rewards/holes.py and does not get near the oracle"]
    just = 0.15 - SLACK / 2
    assert compare({"a": 1.0, "b": 1.0}, TERMS, margin=just, known={"always_talking": "why"}).passed
    with pytest.raises(UptakeError, match="declared for 'nobody'"):
        compare({"a": 1.0}, TERMS, known={"nobody": "why"})


def test_where_no_hole_was_declared_a_closed_one_is_no_fault():
    closed = compare({"a": 1.0, "b": 1.0}, TERMS, known={"always_talking": "why", "silent": "why"}, strict=False)
    assert closed.passed and not closed.closed and closed.offenders == ("always_talking",)
    assert not compare({"a": 1.0, "b": 1.0}, TERMS, known={"silent": "why"}, strict=False).passed


def test_who_rolls_dice_earns_the_mean_of_the_draws(played):
    timing = {"turn_taking": {"turn_taking": 1.0}}
    together, _ = examine(timing, played)
    draws = [episodes for agent, episodes in played if agent == "random"]
    certain = [pair for pair in played if pair[0] not in CHANCE]
    each = [examine(timing, [*certain, ("random", one)])[0]["turn_taking"].totals["random"] for one in draws]
    assert len(set(each)) == DRAWS
    assert together["turn_taking"].totals["random"] == pytest.approx(sum(each) / DRAWS)


def test_a_term_that_fails_cannot_pass():
    found = compare({"b": 1.0}, {k: TERMS[k] for k in ("oracle", "silent")}, faults={"b": 2, "other": 5})
    assert not found.passed and found.complaints() == ["b failed to give 2 verdicts"]


def test_everything_is_in_the_record_and_the_record_is_json():
    found = compare({"a": 1.0, "b": 1.0}, TERMS, known={"always_talking": "why"})
    record = json.loads(json.dumps(found.to_json()))
    assert record["attacks"]["always_talking"] == {
        "total": pytest.approx(0.85), "gap": pytest.approx(0.15), "terms": {"a": 0.9, "b": 0.8},
        "within_margin": True, "known": "why",
    }  # fmt: skip
    assert record["passed"] and record["attacks"]["metronome"]["gap"] is None


def test_our_terms_keep_every_attack_away_from_the_oracle_on_tones_too(played):
    ours = [name for name in names() if get(name).judge_function.__module__.startswith("rewards.")]
    # The tiny pack's only story is four seconds long: there, blind placement hits nearly as often as a listener.
    ours = [name for name in ours if not name.startswith(PUBLISHED) and name != "backchannel" and rules(name)]
    assert len(ours) >= 15
    audits, refused = examine({name: companions(name) for name in ours}, played)
    assert set(refused) == {"collision", "proactivity", "refusal", "resume", "silence_handling"}  # none of their events
    assert all("judged nobody" in why for why in refused.values())
    for name, found in audits.items():
        assert found.passed, (name, found.complaints())


def test_an_attack_on_the_words_alone_is_caught_by_no_timing_term_alone(played):
    audits, _ = examine({"timing": {"turn_taking": 1.0}, "both": {"turn_taking": 1.0, "quality": 1.0}}, played)
    assert {"mumbler", "echo_chaser"} <= set(audits["timing"].offenders)
    assert not audits["both"].offenders


@pytest.mark.usefixtures("_own_registry")
def test_a_reward_that_pays_for_talking_is_found_out(played):
    @reward("talks", axis="x", events=["A1"], horizon_s=3.0)
    def talks(view, event):
        return Verdict(float((abs(view.agent) > 0.01).mean()), (0, view.end))

    audits, _ = examine({"talks": companions("talks")}, played)
    assert "always_talking" in audits["talks"].holes
    assert any(
        s.startswith("always_talking earns") and " above the oracle's" in s for s in audits["talks"].complaints()
    )


@pytest.mark.usefixtures("_own_registry")
def test_what_cannot_be_audited_is_said_and_the_rest_is_audited(played):
    @reward("idle", axis="x", events=["A1"], horizon_s=3.0)
    def idle(view, event):
        return Verdict(None, (0, view.end))

    audits, refused = examine({"idle": {"idle": 1.0}, "unknown": {"no_such": 1.0}, "quality": {"quality": 1.0}}, played)
    assert set(audits) == {"quality"} and audits["quality"].passed
    assert "no term applies to 'oracle'" in refused["idle"] and "unknown reward 'no_such'" in refused["unknown"]
    assert examine({"unknown": {"no_such": 1.0}}, played)[0] == {}


def test_every_declared_hole_names_an_attack_and_gives_a_reason():
    everywhere = declared("somebody's own pack")
    for subject, holes in everywhere.items():
        assert holes and set(holes) <= set(ATTACKS), subject
        assert all(len(reason) > 40 for reason in holes.values())
    for pack in SHIPPED:
        for subject, holes in declared(pack).items():
            assert holes.items() <= everywhere[subject].items()
            assert not any(set(holes) & set(ONLY_IN[other].get(subject, ())) for other in SHIPPED if other != pack)


def test_terms_beside_a_reward_are_audited_with_it():
    assert companions("turn_taking") == {"turn_taking": 1.0, "quality": 1.0}
    for name in filter(rules, names()):
        Composition(companions(name))


def test_the_picture_shows_every_gap(tmp_path):
    figure = draw({"total": {"silent": 1.0, "random": 0.1}, "turn": {"silent": None, "random": -0.5}}, 0.25, "tones")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["+1.00", "+0.10", "–", "-0.50"]
    assert [t.get_fontweight() for t in figure.axes[0].texts] == ["normal", "bold", "normal", "bold"]
    figure.savefig(tmp_path / "gaps.png", dpi=40)
    assert (tmp_path / "gaps.png").stat().st_size > 2000

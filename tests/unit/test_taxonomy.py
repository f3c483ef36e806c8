"""The taxonomy pack: every event in every split, with a twin that shares all that comes before the decision."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from envs.agents import AlwaysBackchannel, AlwaysTalking, Metronome, Oracle, Silent, converse
from envs.clock import CLOCK
from envs.coverage import coverage, markdown
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import AGENT_BEHAVIOURS, BARGE_IN_TYPES, EVENT_TYPES, PAUSE_TYPES, TURN_TYPES, Event, Word
from envs.impostors import Agreeable
from envs.pack import SPLITS, Pack
from envs.scenario import Scenario, json_schema
from envs.synthesis.build import plan
from envs.synthesis.sounds import SOUNDS, television
from envs.synthesis.texts import SOURCES, load_source
from envs.twins import first_difference
from envs.users.drivers import bind
from rewards.compose import OURS, Composition
from rewards.refusal import TAG

FRAMES = 300
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def core() -> Pack:
    return Pack.load("core")


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack.load("taxonomy")


@pytest.fixture(scope="module")
def played(pack: Pack) -> dict[str, dict[str, Episode]]:
    """Every conversation of the dev split, by agent and by the scenario's id."""
    scenarios = pack.scenarios("dev")
    env = DuplexVectorEnv(pack, len(scenarios), "dev", FRAMES)
    agents = {
        "oracle": Oracle(env.num_envs, pack, env),
        "silent": Silent(env.num_envs),
        "talking": AlwaysTalking(env.num_envs, pack),
        "backchannels": AlwaysBackchannel(env.num_envs, pack),
        "metronome": Metronome(env.num_envs, pack),
    }
    ids = [scenario.id for scenario in scenarios]
    return {
        name: dict(zip(ids, converse(env, agent, 7, {"scenario": ids}), strict=True)) for name, agent in agents.items()
    }


def test_the_grammar_names_every_event_and_every_behaviour():
    item, expect = json_schema()["$defs"]["item"]["properties"], json_schema()["$defs"]["expect"]["properties"]
    assert item["type"]["enum"] == list(EVENT_TYPES)
    assert item["pause_type"]["enum"] == sorted(PAUSE_TYPES)
    assert expect["agent"]["enum"] == list(AGENT_BEHAVIOURS)
    assert not (TURN_TYPES & PAUSE_TYPES or TURN_TYPES & BARGE_IN_TYPES)


def test_every_event_has_a_scenario_with_a_twin_in_every_split(core: Pack, pack: Pack):
    for found in coverage([core, pack]):
        for split in SPLITS:
            assert found.paired(split), f"{found.code} in {split}"


def test_the_taxonomy_pack_alone_covers_every_event(pack: Pack):
    assert all(found.paired(split) for found in coverage([pack]) for split in SPLITS)
    assert all(scenario.twin for scenario in pack.scenarios())


def test_every_variant_of_a_scenario_is_another_conversation(pack: Pack):
    for scenario in pack.scenarios("train"):
        plans = [bind(pack, scenario, 1, variant) for variant in range(4)]
        times = {tuple((line.at, line.gap, line.hold, line.over) for line in plan.lines) for plan in plans}
        assert len(times) == 4, scenario.id


def test_the_table_in_the_documentation_is_what_the_command_prints(core: Pack, pack: Pack):
    assert markdown([core, pack]) in (ROOT / "docs" / "taxonomy.md").read_text()


def test_no_voice_and_no_text_of_a_user_stands_in_two_splits_of_either_pack(core: Pack, pack: Pack):
    clips = [c for p in (core, pack) for c in p.clips() if c.kind == "user" and c.words]
    for split in SPLITS:
        here, there = ([c for c in clips if (c.split == split) is inside] for inside in (True, False))
        assert not {c.voice for c in here} & {c.voice for c in there}
        assert not {c.text.lower() for c in here} & {c.text.lower() for c in there}


def test_a_third_person_has_another_voice_than_the_user(pack: Pack):
    for split in SPLITS:
        for name in ("D6/third_person", "D7/television"):
            ask, other = (pack.clip(item.clip).voice for item in pack.scenario(f"{name}/{split}").script)
            assert ask != other


def test_the_pack_is_what_its_source_says_and_small(pack: Pack):
    source = load_source(SOURCES["taxonomy"])
    for job in plan(source):
        clip = pack.clip(job.id)
        assert clip.voice == job.voice and clip.split == job.utterance.split
        assert len(clip.pauses) == job.utterance.text.count("|")
    folder = SOURCES["taxonomy"].parent / source["scenarios"]
    for file in folder.glob("*.yaml"):
        assert (pack.folder / "scenarios" / file.name).read_text() == file.read_text()
    assert sum(f.stat().st_size for f in pack.folder.rglob("*") if f.is_file()) <= 8e6


def test_nobody_changes_the_core_pack_without_noticing_since_the_figures_of_the_readme_rest_on_it(core: Pack):
    assert core.hash == "18a4b1555d18ce6f330138c3981f16e26186bc106bfe38fccb4fe5e5f3a2051e"


def _decision(pack: Pack, scenario: Scenario, twin: Scenario, one: Episode, other: Episode) -> int:
    """The sample up to which two twins' conversations must be the same: there one says what the other does not."""
    i = first_difference(scenario, twin)
    a, b = (dict(_items(s, e)).get(s.script[i].id) for s, e in ((scenario, one), (twin, other)))
    heard = [(event, s.script[i].clip) for event, s in ((a, scenario), (b, twin)) if s.script[i].clip]
    if scenario.script[i].clip == twin.script[i].clip and a and b:
        return min(a.offset, b.offset)
    # A clip begins a little before its first word.
    begun = [event.onset - (pack.clip(clip).words or [Word("", 0, 0)])[0].onset for event, clip in heard if event]
    return min([one.samples, other.samples, *begun])


def _items(scenario: Scenario, episode: Episode) -> list[tuple[str, Event]]:
    events = [*episode.events, *(Event.from_json(record) for record in episode.meta["running"])]
    return [(item.id, event) for item in scenario.script for event in events if event.id == item.id]


@pytest.mark.parametrize("agent", ["silent", "oracle"])
def test_twins_share_every_sample_up_to_the_decision(pack: Pack, played: dict, agent: str):
    for scenario in pack.scenarios("dev"):
        twin = pack.scenario(scenario.twin)
        one, other = played[agent][scenario.id], played[agent][twin.id]
        if scenario.acoustics != twin.acoustics:
            assert one.meta["acoustics"] != other.meta["acoustics"]
            assert [i.clip for i in scenario.script] == [i.clip for i in twin.script]
            continue
        # An agent that does not know the future can not tell twins apart up to here; the oracle knows when to stop.
        until = _decision(pack, scenario, twin, one, other)
        assert until > 0 and np.array_equal(one.mic[:until], other.mic[:until]), scenario.id


def test_the_oracle_meets_every_event_that_does_not_wait_for_a_mistake(pack: Pack, played: dict):
    missed = {
        (name.rsplit("/", 1)[0], event["type"]) for name, e in played["oracle"].items() for event in e.meta["skipped"]
    }
    assert missed == {("C10/insists", "C10"), ("G3/brief", "G3")}
    assert {event["type"] for event in played["talking"]["C10/insists/dev"].meta["skipped"]} == set()
    assert {event["type"] for event in played["talking"]["G3/brief/dev"].meta["skipped"]} == set()


def test_the_oracle_gets_full_marks_for_timing_and_no_constant_behaviour_comes_near(played: dict):
    timing = {name: weight for name, weight in OURS.items() if name not in ("quality", "backchannel")}
    composition = Composition(timing)
    earned = {
        agent: [v for e in episodes.values() for v in composition.score(e) if v.value is not None]
        for agent, episodes in played.items()
    }
    for verdict in earned["oracle"]:
        assert verdict.value >= 0.99, verdict
    for agent in ("silent", "talking", "backchannels", "metronome"):
        assert composition.total(earned[agent]) < 0.5, agent


def _sounds_at(episode: Episode, first: float, last: float) -> bool:
    span = slice(max(0, CLOCK.nearest_sample(first)), CLOCK.nearest_sample(last))
    return float(np.abs(episode.agent[span]).max(initial=0.0)) > 0.01


def test_the_oracle_does_what_is_expected_beyond_turns(pack: Pack, played: dict):
    judged = set()
    for name, episode in played["oracle"].items():
        for _, event in _items(pack.scenario(name), episode):
            on, off = CLOCK.seconds(event.onset), CLOCK.seconds(event.offset)
            for expect in event.expects:
                judged.add(expect.agent)
                if expect.agent == "declines":
                    assert _sounds_at(episode, off + 0.2, off + 0.6), name
                if expect.agent == "speaks_up":
                    due = CLOCK.seconds(event.anchors["due"])
                    assert not _sounds_at(episode, due - 0.2, due) and _sounds_at(episode, due + 0.15, due + 0.6), name
                elif expect.agent == "yields":
                    both = CLOCK.seconds(event.anchors["collision"])
                    stopped = both + expect.within["full"]
                    assert _sounds_at(episode, both, both + 0.2) and not _sounds_at(episode, stopped, off), name
                elif expect.agent == "resumes":
                    assert not _sounds_at(episode, on + 0.3, off) and _sounds_at(episode, off + 0.2, off + 1.0), name
                elif expect.agent == "silent" and event.type != "D5" and not expect.content:
                    assert not _sounds_at(episode, on + 0.1, off), name
    assert {"speaks_up", "yields", "resumes", "silent", "declines"} <= judged


@pytest.mark.parametrize("split", SPLITS)
def test_what_must_be_declined_is_declined_by_the_oracle_and_not_by_one_who_says_yes(pack: Pack, split: str):
    scenarios = pack.scenarios(split, tags=[TAG])
    harmful = {s.id for s in scenarios if any(expect.agent == "declines" for _, expect in s.expects)}
    assert len(harmful) == 4 and {s.twin for s in scenarios if s.id in harmful} == {s.id for s in scenarios} - harmful
    env = DuplexVectorEnv(pack, len(scenarios), split, FRAMES)
    ids = [scenario.id for scenario in scenarios]
    earned = {}
    for agent in (Oracle(len(ids), pack, env), Agreeable(len(ids), pack, env)):
        episodes = converse(env, agent, 7, {"scenario": ids})
        for episode in episodes:
            episode.meta["text_stream"] = True
        verdicts = {e.meta["scenario"]: Composition({"refusal": 1.0}).score(e) for e in episodes}
        earned[type(agent)] = {
            name: {v.raw["must"]: v.value for v in found if v.value is not None} for name, found in verdicts.items()
        }
    for name in ids:
        assert earned[Oracle][name][float(name in harmful)] == 1.0, name
        assert earned[Agreeable][name][float(name in harmful)] == (-1.0 if name in harmful else 1.0), name


def test_an_agent_that_is_slower_than_its_frames_is_heard_with_gaps(pack: Pack, played: dict):
    slow = played["oracle"]["F4/slow/dev"].meta["acoustics"]["underrun"]
    assert 0.0 < slow["missed"] < 0.5 and slow["share"] == 0.15
    assert played["oracle"]["F4/in_time/dev"].meta["acoustics"] == {}


def test_sounds_differ_between_splits_and_are_as_loud_as_speech():
    for name, make in SOUNDS.items():
        made = [make(number) for number in range(3)]
        assert len({sound.audio.tobytes() for sound in made}) == 3, name
        for sound in made:
            assert np.abs(sound.audio).max() <= 0.98 and len(sound.audio) > 0.2 * CLOCK.sample_rate
            for onset, offset in sound.pauses:
                assert np.abs(sound.audio[onset:offset]).max() < 0.01
    speech = np.sin(np.arange(CLOCK.sample_rate) * 0.2).astype(np.float32) * 0.1
    assert len(television(speech, 0)) <= len(speech) and not np.array_equal(
        television(speech, 0), television(speech, 1)
    )


HEAD = """\
---
schema: duplex.scenario/1
id: {id}
split: test
twin: {twin}
seed_group: {group}
{more}user: {{script: [{script}]}}
"""
ASK = "{id: ask, type: A1, clip: question/library/test, at: 1s}"
CUT = "{id: cut, type: C1, clip: new_topic/music/test, when: {agent: speaking, for: 1s, after: ask}}"
COUGH = CUT.replace("C1", "D3").replace("new_topic/music", "cough/sound")


def _twins(tmp_path: Path, one: str, other: str, **changed: str) -> Path:
    fields = {"group": "g", "more": "", "twin": "a"} | changed
    text = HEAD.format(id="a", twin="b", group="g", more="", script=one) + HEAD.format(id="b", script=other, **fields)
    path = tmp_path / "twins.yaml"
    path.write_text(text)
    return path


def test_twins_that_differ_after_the_decision_load(pack: Pack, tmp_path: Path):
    for one, other in ((f"{ASK}, {CUT}", f"{ASK}, {COUGH}"), (f"{ASK}, {CUT}", ASK)):
        assert len(pack.with_users(_twins(tmp_path, one, other)).scenarios()) == 2


@pytest.mark.parametrize(
    "one, other, changed, message",
    [
        (
            ASK,
            ASK.replace("at: 1s", "at: 2s"),
            {},
            r":7: .*before the decision point: item 'ask' begins at another time",
        ),
        (ASK, ASK.replace("at: 1s", "at: 1s, gain_db: 3"), {}, "item 'ask' has another gain_db there"),
        (ASK, ASK.replace("library", "music"), {}, "and nothing comes before it"),
        (f"{ASK}, {CUT}", f"{ASK}, {CUT.replace('for: 1s', 'for: 2s')}", {}, "item 'cut' begins at another time there"),
        (f"{ASK}, {CUT}", ASK, {"group": "h"}, "seed_group is 'g' here and 'h' there"),
        (f"{ASK}, {CUT}", ASK, {"more": "acoustics: cafe\n"}, "acoustics are others there, and so is the script"),
        (
            f"{ASK}, {CUT}",
            ASK,
            {"more": "acoustics: {room_tone_db: -70}\n"},
            "room_tone_db is -62.0 here and -70 there",
        ),
        (f"{ASK}, {CUT}", ASK, {"twin": "c"}, "the twin of 'b' is 'c', not 'a'"),
    ],
)
def test_a_twin_that_differs_before_the_decision_point_does_not_load(
    pack: Pack, tmp_path: Path, one: str, other: str, changed: dict, message: str
):
    with pytest.raises(UptakeError) as error:
        pack.with_users(_twins(tmp_path, one, other, **changed))
    assert re.search(rf"twins\.yaml:\d+: .*{message}|twins\.yaml{message}", str(error.value)), error.value


def test_a_twin_that_does_not_exist_is_named_with_the_nearest(pack: Pack, tmp_path: Path):
    path = _twins(tmp_path, ASK, ASK)
    path.write_text(path.read_text().replace("twin: b", "twin: bb"))
    with pytest.raises(UptakeError, match="no twin 'bb'; did you mean 'b'"):
        pack.with_users(path)

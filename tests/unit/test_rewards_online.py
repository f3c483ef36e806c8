"""Judged the moment that it is settled, or from the record afterwards: the same verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.rollout import transcript
from envs.agents import AlwaysTalking, EnergyVad, Metronome, Oracle, ScriptedAgent, Silent, converse
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Expect
from envs.impostors import EchoChaser, RandomTalker, Truncator
from envs.pack import Pack
from rewards import Composition, get, names
from rewards.detector import CODE_ACTIVITY, DetectorConfig
from rewards.view import EpisodeView
from tests.packs import tiny_pack
from tests.unit.test_rewards_episodes import MANY, conversation, event, spans, words

SCENARIOS = ("turn", "statement", "pause", "nopause", "dictation", "story", "barge", "ack", "stop", "noise")
AGENTS: dict[str, Callable[[DuplexVectorEnv], ScriptedAgent]] = {
    "silent": lambda env: Silent(1, env.pack),
    "always": lambda env: AlwaysTalking(1, env.pack),
    "metronome": lambda env: Metronome(1, env.pack),
    "vad": lambda env: EnergyVad(1, env.pack, ms=200),
    "oracle": lambda env: Oracle(1, env.pack, env),
    "truncator": lambda env: Truncator(1, env.pack, env),
    "echo": lambda env: EchoChaser(1, env.pack, env),
    "random": lambda env: RandomTalker(1, env.pack),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scenario=st.sampled_from(SCENARIOS),
    agent=st.sampled_from(sorted(AGENTS)),
    frames=st.integers(20, 150),
    every=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    detector=st.sampled_from(["energy", "silero", "text"]),
)
def test_what_is_judged_online_in_the_environment_is_what_the_record_gives_afterwards(
    pack, scenario, agent, frames, every, seed, detector
):
    terms = {name: 1.0 for name in names() if get(name).rule}
    composition = Composition(terms, activity=DetectorConfig(detector))
    env = DuplexVectorEnv(pack, 1, frames=frames)
    speaker = AGENTS[agent](env)
    obs, info = env.reset(seed=seed, options={"scenario": scenario})
    speaker.reset()
    online, judged = [], 0
    while not info["ended"].all():
        obs, _, _, _, info = env.step(speaker.act(obs["mic"]))
        if int(info["frame"][0]) % every == 0 or info["ended"].all():
            so_far = env.episode(0, speaker.transcript(0))
            online += composition.due(so_far, judged)
            judged = so_far.samples
    whole = env.episode(0, speaker.transcript(0))
    afterwards = composition.score(whole)
    assert not composition.faults
    assert sorted(online, key=lambda v: (v.event, v.term)) == sorted(afterwards, key=lambda v: (v.event, v.term))
    assert len({(v.event, v.term) for v in online}) == len(online)


def so_far(episode: Episode, samples: int) -> Episode:
    """The record as an environment gives it after so many samples."""
    tracks = {track: getattr(episode, track)[:samples] for track in ("mic", "user", "agent")}
    begun = [e for e in episode.events if e.onset < samples]
    running = [e.to_json() for e in begun if e.offset > samples]
    ended = "frames" if samples == episode.samples else None
    return replace(
        episode,
        **tracks,
        events=[e for e in begun if e.offset <= samples],
        transcript=tuple(word for word in episode.transcript if word.onset < samples),
        meta={**episode.meta, "running": running, "ended": ended},
    )


@settings(max_examples=25, deadline=None)
@given(agent=spans, user=spans, kinds=st.lists(st.sampled_from(MANY), min_size=1, max_size=3), every=st.integers(3, 40))
def test_every_kind_of_event_is_judged_online_as_afterwards(agent, user, kinds, every):
    events = [replace(kind, id=f"{kind.id}#{i}") for i, kind in enumerate(kinds)]
    said = words("at noon we open at noon", 5.0)
    meta = {"tags": ["safety"], "running": [], "ended": "frames"}
    whole = conversation(agent, events, user, seconds=15.2, transcript=said, meta=meta)
    composition = Composition({name: 1.0 for name in names() if get(name).rule})
    online, judged = [], 0
    for frame in range(1, 191):
        if frame % every == 0 or frame == 190:
            heard = so_far(whole, frame * CLOCK.frame)
            online += composition.due(heard, judged)
            judged = heard.samples
    afterwards = composition.score(whole)
    assert not composition.faults
    assert sorted(online, key=lambda v: (v.event, v.term)) == sorted(afterwards, key=lambda v: (v.event, v.term))
    assert {"aspirin", "waveform"} <= {v.term for v in online}


PIECES = ["", " it", " will", " be", " sun", "ny", "", " at", " no", "on", "", "", " re", "al", "ly", ""]


@settings(max_examples=25, deadline=None)
@given(first=st.integers(20, 60), close=st.integers(0, 40 * CLOCK.frame), every=st.integers(1, 5))
def test_a_word_that_is_spelled_piece_by_piece_is_seen_when_it_is_over_online_as_afterwards(first, close, every):
    pieces = [""] * first + PIECES + [""] * 60
    asked = event("A1", 0.5, 1.5, [Expect("responds", {}, ("sunny", "noon", "really"))])
    spoken = [(CLOCK.seconds(CLOCK.sample_of(first)), CLOCK.seconds(CLOCK.sample_of(first + 15)))]
    whole = conversation(spoken, [asked], seconds=10.0, transcript=transcript(pieces, CLOCK.frame, 0))
    end = CLOCK.sample_of(first) + close
    seen = EpisodeView(whole, end).transcript
    frame = CLOCK.frames_covering(end)  # when the environment has it
    online = transcript(pieces[:frame], CLOCK.frame, 0)
    online = online[:-1] if pieces[frame - 1] else online
    assert EpisodeView(whole, end, online).transcript == seen
    assert {word.text for word in seen} <= {"it", "will", "be", "sunny", "at", "noon", "really"}

    composition, judged, found = Composition({"quality": 1.0, "turn_taking": 1.0}), 0, []
    whole = replace(whole, meta={"running": [], "ended": "frames"})
    for at in [*range(every, 125, every), 125]:
        said = transcript(pieces[:at], CLOCK.frame, 0)
        heard = so_far(whole, at * CLOCK.frame)
        over = said[:-1] if at < 125 and at <= len(pieces) and pieces[at - 1] else said
        found += composition.due(heard, judged, over)
        judged = heard.samples
    assert sorted(found, key=lambda v: v.term) == sorted(
        composition.score(whole, whole.transcript), key=lambda v: v.term
    )


def test_a_view_knows_nothing_that_the_record_notes_later(pack):
    """Whatever a driver or a policy notes: only what was known at the start is let through."""
    env = DuplexVectorEnv(pack, 1, frames=150)
    speaker = Oracle(1, pack, env)
    (episode,) = converse(env, speaker, 3, {"scenario": "barge"})
    episode.meta |= {"text_stream": True, CODE_ACTIVITY: "01" * 75, "cascade": {"replies": ["an answer"]}}
    end = episode.events[0].offset
    seen = EpisodeView(episode, end).meta
    assert seen["scenario"] == "barge" and seen["text_stream"]
    assert len(seen[CODE_ACTIVITY]) == end // CLOCK.frame
    assert not {"ended", "frames", "skipped", "unfinished", "running", "cascade"} & seen.keys()
    assert set(seen["references"]) <= {"ask"} and "cut" in {event.id for event in episode.events}


def test_codes_are_judged_from_the_record_and_refused_online(pack):
    env = DuplexVectorEnv(pack, 1, frames=60)
    env.reset(seed=1, options={"scenario": "turn"})
    composition = Composition({"turn_taking": 1.0}, activity=DetectorConfig("codec"))
    with pytest.raises(UptakeError, match=r"codec hears the agent's codes, which are recorded when .* is over"):
        composition.due(env.episode(0), 0)
    assert not composition.faults


def test_a_turn_that_has_begun_and_is_not_over_is_known_to_a_view_online_as_later(pack):
    env = DuplexVectorEnv(pack, 1, frames=150)
    speaker = Oracle(1, pack, env)
    obs, info = env.reset(seed=1, options={"scenario": "barge"})
    speaker.reset()
    met = False
    while not info["ended"].all():
        obs, _, _, _, info = env.step(speaker.act(obs["mic"]))
        so_far = env.episode(0)
        running = [record["id"] for record in so_far.meta["running"]]
        assert running == so_far.meta["unfinished"]
        met |= running == ["cut"]
        assert "cut" not in running or "cut" not in [event.id for event in so_far.events]
    assert met

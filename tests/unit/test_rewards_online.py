"""Judged the moment that it is settled, or from the record afterwards: the same verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.agents import AlwaysTalking, EnergyVad, Metronome, Oracle, ScriptedAgent, Silent
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.impostors import EchoChaser, RandomTalker, Truncator
from envs.pack import Pack
from rewards import Composition, get, names
from rewards.detector import DetectorConfig
from tests.packs import tiny_pack
from tests.unit.test_rewards_episodes import MANY, conversation, spans, words

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

"""Rewards behind a network: what an agent could not yet hear is not held against it."""

from __future__ import annotations

import pytest

from envs import agents
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from envs.selfplay import AGENT, USER, SelfPlayEnv
from rewards.compose import Composition
from tests.packs import tiny_pack
from tests.unit.test_selfplay import play, tone

F = CLOCK.frame
TERMS = Composition({"turn_taking": 1.0, "interruption": 1.0})
DELAYS = (0, 60, 500)
NEAR = 0.2
"""Seconds: a frame, and the gap between two bursts of the agent's clip."""


def network(delay_ms: int) -> dict:
    return {"network": {"delay_ms": delay_ms, "buffer_ms": 20}}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def talks(pack) -> list:
    """A conversation of an agent that goes by what it hears, without a network and with each delay."""
    found = []
    for acoustics in (None, *map(network, DELAYS)):
        env = DuplexVectorEnv(pack, 1, frames=200, acoustics=acoustics)
        found += agents.converse(env, agents.EnergyVad(1, pack, ms=200), 3, {"scenario": "barge"})
    return found


def test_the_same_reactions_to_what_is_heard_are_worth_the_same_behind_any_delay(talks):
    near, *far = [{v.event: (v.value, v.raw) for v in TERMS.score(episode) if v.value is not None} for episode in talks]
    assert len(near) == 2
    for delayed in far:
        for event, (value, raw) in near.items():
            for name in {"fto_s", "stop_s", "response_s"} & raw.keys():
                assert delayed[event][1][name] == pytest.approx(raw[name], abs=NEAR)
            assert delayed[event][0] == pytest.approx(value, abs=NEAR)


def test_an_event_and_the_voice_lie_where_the_agent_hears_them_and_its_own_speech_where_it_sent_it(talks):
    for episode in talks:
        late = episode.meta["acoustics"].get("uplink_samples", 0)
        back = episode.meta["acoustics"].get("downlink_samples", 0)
        ask, cut = (next(e for e in episode.events if e.id == name) for name in ("ask", "cut"))
        assert ask.onset == talks[0].events[0].onset + late == ask.words[0].onset
        assert abs(episode.user[: ask.onset]).max() == 0 and abs(episode.user[ask.onset : ask.onset + F]).max() > 0.05
        assert abs(episode.mic[: ask.onset]).max() < 0.01 < 0.05 < abs(episode.mic[ask.onset : ask.onset + F]).max()
        spoke = next(on for on in episode.agent.nonzero()[0].tolist() if on > ask.offset)
        assert abs(cut.anchors["agent_speaking_since"] - spoke) <= 2 * 480  # as the user's ear found it, less the way
        assert cut.onset - cut.anchors["agent_speaking_since"] >= late + back + CLOCK.samples(0.8)


def test_an_oracle_is_told_when_the_agent_can_hear_it(pack):
    for delay_ms in DELAYS:
        env = DuplexVectorEnv(pack, 1, frames=200, acoustics=network(delay_ms))
        (episode,) = agents.converse(env, agents.Oracle(1, pack, env), 3, {"scenario": "turn"})
        (verdict,) = [v for v in TERMS.score(episode) if v.term == "turn_taking"]
        assert verdict.value == 1.0 and verdict.raw["fto_s"] == pytest.approx(agents.Oracle.ANSWER, abs=0.1)


def test_each_side_of_self_play_has_the_other_where_it_hears_it():
    env = SelfPlayEnv(frames=80, delay_ms=400)
    play(env, tone(81, [(0.4, 1.6)]), tone(81, [(2.4, 3.6)], 0.13))
    late = CLOCK.samples(0.4)
    for side, own, other in ((AGENT, 2.4, 0.4), (USER, 0.4, 2.4)):
        record = env.episode(side)
        assert int(record.agent.nonzero()[0][0]) == CLOCK.samples(own) + 1
        assert int(record.user.nonzero()[0][0]) == CLOCK.samples(other) + 1 + late
        assert [event.onset for event in record.events] == [pytest.approx(CLOCK.samples(other) + late, abs=480)]

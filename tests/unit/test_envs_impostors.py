"""The degenerate policies: each does wrong what it is named after, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from envs.activity import activity
from envs.agents import Oracle, ScriptedAgent, converse
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.impostors import (
    Agreeable,
    EchoChaser,
    Hummer,
    Mumbler,
    RandomTalker,
    RateMatched,
    Soup,
    Staccato,
    Truncator,
    Whisperer,
)
from envs.pack import Pack
from tests.packs import tiny_pack

NAMES = ["turn", "pause", "story", "barge"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def env(pack) -> DuplexVectorEnv:
    return DuplexVectorEnv(pack, len(NAMES), frames=150)


def talk(env: DuplexVectorEnv, agent: ScriptedAgent) -> dict[str, Episode]:
    return dict(zip(NAMES, converse(env, agent, seed=1, options={"scenario": NAMES}), strict=True))


@pytest.fixture(scope="module")
def oracle(pack, env) -> tuple[Oracle, dict[str, Episode]]:
    agent = Oracle(len(NAMES), pack, env)
    return agent, talk(env, agent)


def spoken(episode: Episode) -> list[str]:
    return [word.text for word in episode.transcript]


def first(episode: Episode) -> int:
    return int(activity(episode.agent)[0, 0])


def test_the_whisperer_says_what_the_oracle_says_and_is_not_heard(pack, env, oracle):
    episodes = talk(env, Whisperer(len(NAMES), pack, env))
    assert spoken(episodes["turn"]) == spoken(oracle[1]["turn"])
    assert episodes["turn"].agent.any() and not len(activity(episodes["turn"].agent))


def test_the_truncator_is_on_time_and_breaks_off(pack, env, oracle):
    episodes = talk(env, Truncator(len(NAMES), pack, env))
    assert first(episodes["turn"]) == first(oracle[1]["turn"])
    for episode in episodes.values():
        assert (np.diff(activity(episode.agent)) <= CLOCK.samples(0.42)).all()  # on the 10 ms grid


def test_the_mumbler_is_on_time_and_has_one_word_for_everything(pack, env, oracle):
    episodes = talk(env, Mumbler(len(NAMES), pack, env))
    assert abs(first(episodes["turn"]) - first(oracle[1]["turn"])) < CLOCK.frame
    assert set(spoken(episodes["turn"])) == {"mhm"} and len(spoken(episodes["turn"])) > 5
    ends = [int(activity(e["turn"].agent)[-1, 1]) for e in (episodes, oracle[1])]
    assert abs(ends[0] - ends[1]) < CLOCK.samples(0.5)


def test_the_echo_chaser_is_on_time_and_says_the_users_own_words(pack, env):
    episode = talk(env, EchoChaser(len(NAMES), pack, env))["turn"]
    ask = episode.events[0]
    assert spoken(episode) == [word.text for word in ask.words]
    start = int(ask.offset + CLOCK.samples(Oracle.ANSWER) - ask.words[0].onset + ask.onset)
    length = ask.offset - ask.onset - CLOCK.frame
    assert np.corrcoef(episode.agent[start : start + length], episode.mic[ask.onset : ask.onset + length])[0, 1] > 0.99


def test_the_staccato_talker_is_on_time_in_bursts_of_a_backchannels_size_and_stops_for_nobody(pack, env, oracle):
    agent = Staccato(len(NAMES), pack, env)
    episodes = talk(env, agent)
    assert abs(first(episodes["turn"]) - first(oracle[1]["turn"])) < CLOCK.frame
    assert spoken(episodes["turn"])[:4] == spoken(episodes["barge"])[:4]
    for name, episode in episodes.items():
        bursts = activity(episode.agent)
        assert (np.diff(bursts) <= CLOCK.samples(1.0)).all()
        for on, off in bursts:
            assert sum(on - CLOCK.frame <= word.onset < off for word in episode.transcript) <= 2, name
    until = [agent.busy_until(row) for row in range(len(NAMES))]
    agent.hush(0, 0)
    assert [agent.busy_until(row) for row in range(len(NAMES))] == until


def test_the_agreeable_agent_is_on_time_and_says_yes_to_everything(pack, env, oracle):
    episodes = talk(env, Agreeable(len(NAMES), pack, env))
    assert abs(first(episodes["turn"]) - first(oracle[1]["turn"])) < CLOCK.frame
    assert spoken(episodes["turn"]) == ["mhm"]  # no sentence of this pack begins by agreeing
    core = Pack.load("core")
    agreeing = Agreeable(1, core, DuplexVectorEnv(core, 1, "dev", 10)).yes
    assert [word.text for word in agreeing.words][:3] == ["Okay,", "I", "have"]


def test_agents_with_the_oracles_timing_give_its_backchannels_in_monologues(pack, env, oracle):
    best = oracle[1]["story"]
    event = next(e for e in best.events if e.type == "B7")
    assert best.agent[event.onset : event.offset].any()
    for kind in (Truncator, Mumbler, EchoChaser, Agreeable, Soup):
        story = talk(env, kind(len(NAMES), pack, env))["story"]
        assert np.array_equal(story.agent[: event.offset], best.agent[: event.offset]), kind


def test_the_soup_names_every_topic_to_everybody(pack, env, oracle):
    episodes = talk(env, Soup(len(NAMES), pack, env))
    assert abs(first(episodes["turn"]) - first(oracle[1]["turn"])) < CLOCK.frame
    assert pack.topics and spoken(episodes["turn"]) == [topic[0] for topic in pack.topics]
    assert spoken(episodes["pause"]) == spoken(episodes["turn"])


def test_the_hummer_has_the_oracles_text_and_times_over_one_tone(pack, env, oracle):
    episodes = talk(env, Hummer(len(NAMES), pack, env))
    for name in ("turn", "pause"):
        assert episodes[name].transcript == oracle[1][name].transcript
    hum = episodes["turn"].agent
    assert np.argmax(np.abs(np.fft.rfft(hum))) * CLOCK.sample_rate / hum.size == pytest.approx(150.0, abs=1.0)


def test_the_rate_matched_agent_says_as_much_as_the_oracle_elsewhere(pack, env, oracle):
    agent, best = oracle
    chatter = RateMatched(agent, [best[name].samples for name in NAMES])
    episodes = talk(env, chatter)
    for name in ("turn", "pause"):  # where the user does not react to the agent
        assert sorted(spoken(episodes[name])) == sorted(spoken(best[name]))
        lengths = [np.abs(e.agent).sum() for e in (episodes[name], best[name])]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.02)
        assert first(episodes[name]) != first(best[name])
    again = talk(env, chatter)
    assert all(np.array_equal(episodes[name].agent, again[name].agent) for name in NAMES)


def test_the_random_talker_is_the_same_every_time_and_other_in_every_row(pack, env):
    agent = RandomTalker(len(NAMES), pack)
    once, twice = talk(env, agent), talk(env, agent)
    onsets = {name: activity(once[name].agent)[:, 0].tolist() for name in NAMES}
    assert all(np.array_equal(once[name].agent, twice[name].agent) for name in NAMES)
    assert len({tuple(found) for found in onsets.values()}) == len(NAMES)


def test_other_dice_give_other_times_and_the_same_dice_the_same(pack, env, oracle):
    agent, best = oracle
    lengths = [best[name].samples for name in NAMES]
    for make in (
        lambda draw: RandomTalker(len(NAMES), pack, draw),
        lambda draw: RateMatched(agent, lengths, draw),
    ):
        zero, again, one = (talk(env, make(draw))["turn"].agent for draw in (0, 0, 1))
        assert np.array_equal(zero, again) and not np.array_equal(zero, one)

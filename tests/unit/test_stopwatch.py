"""A listener who hears only the beginning of a story: what it would earn, and that it earns little in the core pack."""

from __future__ import annotations

import numpy as np
import pytest

from envs.agents import converse
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.impostors import Stopwatch
from envs.pack import open_pack
from rewards.stopwatch import Story, schedule, skill, stories


def perfect(told: list[Story]) -> float:
    """What a listener earns who meets every opportunity."""
    return float(np.mean([story.skill(story.wanted) for story in told]))


def test_where_all_stories_are_alike_a_stopwatch_earns_what_a_listener_earns() -> None:
    told = [Story((2.0, 4.0, 6.0), 8.0), Story((2.2, 4.1, 5.8), 8.5)] * 3
    assert skill(told, schedule(told)) == pytest.approx(perfect(told))


def test_a_schedule_that_cannot_help_is_empty() -> None:
    assert schedule([]) == ()


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_in_the_core_pack_a_stopwatch_earns_little_of_what_a_listener_earns(split: str) -> None:
    pack = open_pack("core")
    told = stories(pack, split)
    assert skill(told, schedule(stories(pack, "train"))) <= 0.4 * perfect(told)


def test_a_stopwatch_speaks_at_its_beats_after_the_first_sound_and_hears_nothing_else() -> None:
    pack = open_pack("core")
    names = [scenario.id for scenario in pack.scenarios("dev") if "B7" in scenario.types][:2]
    env = DuplexVectorEnv(pack, len(names), "dev", 100)
    agent = Stopwatch(len(names), pack, (1.0, 3.0))
    episodes = converse(env, agent, 3, {"scenario": names})
    for row, episode in enumerate(episodes):
        tell = next(event for event in episode.events if event.id == "tell")
        heard = [start for _, start, _ in agent.said(row)]
        after = [CLOCK.seconds(start - tell.onset) for start in heard]
        assert after == pytest.approx([1.0, 3.0], abs=0.1)

"""What is taken for a trick, and what is not: each alarm fires on its own sign, after patience, once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from align.alarms import AlarmConfig, Alarms, observe
from align.tally import Tally
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word

RATE, SECONDS = 24_000, 20
ANSWERS = [
    "the train to berlin leaves at noon from platform four",
    "you can buy the ticket on board or at the desk",
    "it takes two hours and a half with one change",
]
WELL = {
    "behaviour/talk_ratio": 0.45, "behaviour/repetition": 0.05, "behaviour/empty": 0.1, "rewards/quality/mean": 0.7,
    "kl": 0.1, "reward": 0.5,
}  # fmt: skip


def conversation(talks: list[tuple[float, float]], words: str = "") -> Episode:
    """An agent that is loud in the given seconds and says the given words."""
    voice = np.random.default_rng(0).normal(0, 0.1, SECONDS * RATE).astype(np.float32)
    loud = np.zeros_like(voice)
    for begin, end in talks:
        loud[int(begin * RATE) : int(end * RATE)] = 1
    said = tuple(Word(text, index * RATE // 4, (index + 1) * RATE // 4) for index, text in enumerate(words.split()))
    silence = np.zeros_like(voice)
    return Episode(silence, silence, voice * loud, [], said)


def behaviour(*episodes: Episode) -> dict[str, float]:
    tally = Tally()
    observe(episodes, tally)
    return tally.means()


GOOD = [conversation([(5, 9), (13, 17)], text) for text in ANSWERS]
TRICKS = {
    "it talks all the time": [conversation([(0, 20)], text) for text in ANSWERS],
    "it has fallen silent": [conversation([]) for _ in ANSWERS],
    "it says the same again and again": [conversation([(5, 9), (13, 17)], "well let me see " * 12) for _ in ANSWERS],
    "it answers nothing": [conversation([(5, 9), (13, 17)]) for _ in ANSWERS],
}


def test_what_an_agent_does_is_measured_on_its_sound_and_its_words() -> None:
    seen = behaviour(*GOOD)
    assert seen["behaviour/talk_ratio"] == pytest.approx(8 / 20, abs=0.02)
    assert seen["behaviour/empty"] == 0
    assert seen["behaviour/repetition"] == 0
    seen = behaviour(GOOD[0], conversation([]), conversation([(0, 20)]))
    assert seen["behaviour/talk_ratio"] == pytest.approx((8 + 0 + 20) / 60, abs=0.02)
    assert seen["behaviour/empty"] == pytest.approx(2 / 3)
    # 6 words are 4 3-grams, of which the last repeats the first.
    assert behaviour(conversation([], "a b c a b c"))["behaviour/repetition"] == 1 / 4


@pytest.mark.parametrize("meaning", TRICKS)
def test_a_trick_raises_its_alarm_after_patience_and_good_conversations_raise_none(meaning: str) -> None:
    trick, well = Alarms(AlarmConfig(patience=3)), Alarms(AlarmConfig(patience=3))
    lines = [trick.update(behaviour(*TRICKS[meaning])) for _ in range(5)]
    assert not any(lines[:2] + lines[3:])
    assert any(line.endswith(meaning) for line in lines[2])
    if meaning != "it has fallen silent":  # which has no words either
        assert len(lines[2]) == trick.count == 1
    assert not any(well.update(behaviour(*GOOD)) for _ in range(5))
    assert well.count == 0


@pytest.mark.parametrize(
    ("metric", "limit", "beyond", "within", "changes"),
    [
        ("behaviour/talk_ratio", "talk_ratio_above", 0.91, 0.9, {}),
        ("behaviour/talk_ratio", "talk_ratio_below", 0.009, 0.01, {}),
        ("behaviour/repetition", "repetition_above", 0.51, 0.5, {}),
        ("behaviour/empty", "empty_above", 0.81, 0.8, {}),
        ("rewards/quality/mean", "quality_drop", 0.19, 0.21, {}),
        ("rewards/meaning/mean", "quality_drop", 0.19, 0.21, {"quality_term": "meaning"}),
        ("kl", "kl_above", 0.51, 0.5, {"kl_above": 0.5}),
    ],
)
def test_each_threshold_fires_beyond_it_and_not_at_it_and_null_turns_it_off(
    metric: str, limit: str, beyond: float, within: float, changes: dict
) -> None:
    config = AlarmConfig(patience=2, **changes)
    start = WELL | {"rewards/meaning/mean": 0.7}

    def lines(value: float, config: AlarmConfig = config) -> list[list[str]]:
        alarms = Alarms(config)
        return [alarms.update(start)] + [alarms.update(start | {metric: value}) for _ in range(3)]

    fired = lines(beyond)
    assert [len(line) for line in fired] == [0, 0, 1, 0]
    assert f"for {config.patience} iterations" in fired[2][0]
    assert not any(lines(within))
    assert not any(lines(beyond, replace(config, **{limit: None})))


def test_an_alarm_is_raised_again_only_when_it_had_come_back_and_patience_means_in_a_row() -> None:
    alarms = Alarms(AlarmConfig(patience=2))
    bad = WELL | {"behaviour/talk_ratio": 0.99}
    seen = [len(alarms.update(metrics)) for metrics in (bad, WELL, bad, bad, bad, WELL, bad, bad)]
    assert seen == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_quality_that_was_never_measured_cannot_drop() -> None:
    alarms = Alarms(AlarmConfig(patience=1))
    without = {name: value for name, value in WELL.items() if "quality" not in name}
    assert not any(alarms.update(without) for _ in range(3))
    assert not alarms.update(WELL | {"rewards/quality/mean": -1.0})  # the first that is known is what counts as start
    assert not alarms.update(without)


def test_what_was_seen_survives_a_checkpoint() -> None:
    config = AlarmConfig(patience=3, no_better_for=5)
    bad = WELL | {"behaviour/empty": 1.0, "rewards/quality/mean": 0.0}
    whole = Alarms(config)
    expected = [whole.update(metrics) for metrics in (WELL, bad, bad, bad, bad)]
    parts, seen = Alarms(config), []
    for metrics in (WELL, bad, bad, bad, bad):
        kept = json.loads(json.dumps(parts.state()))
        parts = Alarms(config)
        parts.load(kept)
        seen.append(parts.update(metrics))
    assert seen == expected
    assert len(seen[3]) == 2
    assert (parts.count, parts.worse, parts.best) == (whole.count, whole.worse, whole.best)


def test_a_run_is_no_better_when_the_mean_of_ten_iterations_has_not_risen_and_better_as_long_as_it_does() -> None:
    def stops_at(rewards: list[float], wait: int) -> int | None:
        alarms = Alarms(AlarmConfig(no_better_for=wait))
        for iteration, reward in enumerate(rewards):
            alarms.update({"reward": reward})
            if alarms.no_better:
                return iteration
        return None

    rising = [0.01 * step for step in range(60)]
    assert stops_at(rising, 3) is None
    assert (
        stops_at([value + 0.05 * (-1) ** step for step, value in enumerate(rising)], 3) is None
    )  # a bad iteration is no reason
    assert stops_at([0.12, *rising], 3) is None  # nor is a lucky start
    assert stops_at([0.5] * 60, 5) == 9 + 5  # the first mean is that of 0 to 9
    assert stops_at([0.5] * 60, 0) is None  # 0: never
    # Level from 20 on: the mean of the last ten rises until 29, and no more.
    assert stops_at([min(step, 20) / 20 for step in range(60)], 4) == 29 + 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"talk_ratio_above": 1.5}, "grpo.alarms.talk_ratio_above = 1.5: a share, from 0 to 1, or null for none"),
        ({"empty_above": -0.1}, "grpo.alarms.empty_above = -0.1: a share"),
        ({"patience": 0}, "grpo.alarms.patience = 0: must be at least 1"),
        ({"no_better_for": -1}, "grpo.alarms.no_better_for = -1: must be at least 0"),
        ({"quality_drop": float("nan")}, "grpo.alarms.quality_drop = nan: must be at least 0"),
    ],
)
def test_a_threshold_that_means_nothing_is_named(changes: dict, message: str) -> None:
    with pytest.raises(UptakeError, match=message):
        AlarmConfig(**changes).check("grpo")

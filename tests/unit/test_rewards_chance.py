"""Answers against chance: an agent that does not listen has no margin, whatever it says."""

from __future__ import annotations

import pytest

from envs.event import Expect
from rewards.chance import Answer, answer_accuracy, find_answers
from tests.unit.test_rewards_episodes import conversation, event, words

TOPICS = {"dog": ("dog", "ball"), "tea": ("tea", "cup"), "sea": ("sea", "boat"), "sun": ("sun", "warm")}


def replies(say) -> dict[str, list[Answer]]:
    return {f"{topic}{i}": [Answer(TOPICS[topic], tuple(say(topic).split()))] for topic in TOPICS for i in range(8)}


@pytest.mark.parametrize("same", ["the dog has a ball", "nothing to say", "dog tea sea sun"])
def test_an_agent_that_says_the_same_to_everybody_is_at_chance(same):
    accuracy = answer_accuracy(replies(lambda topic: same))
    assert accuracy.margin.estimate == pytest.approx(0.0)
    assert not accuracy.margin.excludes_zero


def test_an_agent_that_listens_is_above_chance():
    accuracy = answer_accuracy(replies(lambda topic: f"yes the {topic}"))
    assert (accuracy.hit.estimate, accuracy.chance.estimate, accuracy.margin.low) == (1.0, 0.0, 1.0)


def test_an_agent_that_answers_the_wrong_question_is_below_chance():
    other = dict(zip(TOPICS, [*list(TOPICS)[1:], "dog"], strict=True))
    accuracy = answer_accuracy(replies(lambda topic: other[topic]))
    assert accuracy.hit.estimate == 0.0
    assert accuracy.margin.high < 0.0


def test_what_was_not_answered_says_nothing_about_listening():
    accuracy = answer_accuracy(replies(lambda topic: "" if topic == "sea" else topic))
    assert (accuracy.asked, accuracy.answered, accuracy.hit.estimate) == (32, 24, 1.0)
    assert answer_accuracy(replies(lambda topic: "")) is None


def test_answers_are_the_words_after_the_question_and_before_the_next():
    asked = [event("A1", 1.0, 2.0, [Expect("responds", {}, TOPICS["dog"])]), event("A3", 8.0, 9.0)]
    said = (*words("hm", 0.5), *words("the dog", 2.4), *words("i see", 10.0))
    episode = conversation([(0.4, 0.9), (2.3, 3.4), (9.9, 11.0)], asked, transcript=said)
    assert find_answers(episode) == [Answer(TOPICS["dog"], ("the", "dog"))]
    assert find_answers(episode, words("a cat", 2.4)) == [Answer(TOPICS["dog"], ("a", "cat"))]
    late = conversation([], asked, seconds=4.0)
    assert find_answers(late) == [], "nobody listened long enough to know"

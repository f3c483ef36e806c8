"""Composed conversations: who speaks when, on the core pack's training clips."""

import numpy as np
import pytest

from envs.clock import CLOCK
from envs.conversations import SITUATIONS, Composer, Untidiness
from envs.pack import Pack

TIDY = Untidiness(
    answers_into_pause=0.0,
    late=0.0,
    backchannels=1.0,
    talks_on=0.0,
    stops_after=(0.3, 0.31),
    false_stops=0.0,
)
FRAMES = 150


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack.load("core")


@pytest.fixture(scope="module")
def tidy(pack: Pack) -> Composer:
    return Composer(pack, "train", FRAMES, TIDY, speeds=None, scrambled=0.0)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_same_seed_gives_the_same_conversation(pack: Pack, situation: str) -> None:
    one, two = (Composer(pack, "train", FRAMES).draw(np.random.default_rng(5), situation) for _ in range(2))
    assert np.array_equal(one.user, two.user) and np.array_equal(one.agent, two.agent)
    assert one.agent_words == two.agent_words


@pytest.mark.parametrize("situation", SITUATIONS)
def test_both_channels_have_the_length_that_was_asked_for_and_words_lie_inside(tidy: Composer, situation: str) -> None:
    for seed in range(5):
        talk = tidy.draw(np.random.default_rng(seed), situation)
        assert len(talk.user) == len(talk.agent) == CLOCK.sample_of(FRAMES)
        assert all(0 <= w.onset < len(talk.user) for w in talk.user_words + talk.agent_words)
        assert np.abs(talk.user).max() > 0.05


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_agent_starts_on_a_frame_boundary(tidy: Composer, situation: str) -> None:
    talk = tidy.draw(np.random.default_rng(1), situation)
    frames = np.abs(talk.agent).reshape(FRAMES, -1).max(1) > 0
    starts = np.flatnonzero(np.diff(frames.astype(int), prepend=0) == 1)
    assert all(np.abs(talk.agent[start * CLOCK.frame - 1]) == 0 for start in starts if start)
    assert len(starts)


def test_a_tidy_agent_waits_through_pauses_and_an_untidy_one_does_not(pack: Pack, tidy: Composer) -> None:
    hasty = Composer(pack, "train", FRAMES, Untidiness(answers_into_pause=1.0), speeds=None)

    def starts_before_the_end(composer: Composer) -> int:
        count = 0
        for seed in range(20):
            talk = composer.draw(np.random.default_rng(seed), "dictation")
            last = max(w.offset for w in talk.user_words)
            count += bool(talk.agent_words) and min(w.onset for w in talk.agent_words) < last - CLOCK.sample_rate // 10
        return count

    assert starts_before_the_end(tidy) == 0
    assert starts_before_the_end(hasty) > 10


def test_an_agent_that_yields_falls_silent_after_the_interruption_began(tidy: Composer) -> None:
    for seed in range(10):
        talk = tidy.draw(np.random.default_rng(seed), "stop")
        stop = min(w.onset for w in talk.user_words if w.text.strip(",.") in ("Okay", "Right", "Yeah"))
        after = stop + int(0.5 * CLOCK.sample_rate)
        assert np.abs(talk.agent[after : after + CLOCK.sample_rate]).max() == 0


def test_stories_get_backchannels_and_an_answer_at_the_end(tidy: Composer) -> None:
    talk = tidy.draw(np.random.default_rng(3), "story")
    listening = [w for w in talk.agent_words if w.onset < max(w.offset for w in talk.user_words)]
    assert len(listening) >= 2


def test_splits_share_no_clip(pack: Pack) -> None:
    heard = {
        split: {clip.id for clips in Composer(pack, split, FRAMES).clips.values() for clip in clips}
        for split in ("train", "dev", "test")
    }
    assert not heard["train"] & heard["test"] and not heard["train"] & heard["dev"] and heard["test"]


def test_a_scrambled_question_holds_its_topic_and_nothing_of_another(pack: Pack) -> None:
    composer = Composer(pack, "train", FRAMES, TIDY, scrambled=1.0)
    for seed in range(10):
        said = composer._pick(np.random.default_rng(seed), "question")
        topics = {t for t in composer.keywords for w in said.words if w.text.lower().startswith(t)}
        assert topics == {said.topic}


def test_chatter_never_leaves_a_long_silence(pack: Pack) -> None:
    talk = Composer(pack, "train", FRAMES).chatter(np.random.default_rng(0))
    onsets = [w.onset for w in talk.user_words]
    assert max(np.diff(onsets)) < 3 * CLOCK.sample_rate and not talk.agent_words

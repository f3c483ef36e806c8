"""A segment of a recording is an episode: its audio, its event, and a human's score in the agent's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.clock import CLOCK
from envs.corpora.axes import Segment
from envs.corpora.extraction import extract
from envs.corpora.replay import events, load, load_segments
from envs.episode import Episode
from envs.errors import UptakeError
from rewards.aggregate import aggregate
from rewards.compose import Composition
from rewards.measures import measure
from tests.corpora import write_tones

SPEECH = {
    "pause": [[(2, 4), (4.6, 7)], [(15, 16)]],
    "turn": [[(2, 7.5)], [(7.7, 13)]],
    "bc": [[(2, 12)], [(5, 5.4), (8, 8.5)]],
    "int": [[(2, 5), (8, 11.5)], [(5.2, 8.4), (11.9, 15)]],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Segment]]:
    root = tmp_path_factory.mktemp("corpus")
    for axis, (x, y) in SPEECH.items():
        write_tones(root / f"{axis}.wav", [y, x], 20.0, 16_000)  # X on the second channel
    extract(root, root / "out")
    found_root, found = load_segments(root / "out")
    assert found_root == root.resolve()
    return root, {one.axis: one for one in found if one.recording == one.axis}


def verdicts(episode: Episode, term: str) -> list[float | None]:
    return [one.value for one in Composition({term: 1.0}).score(episode)]


@pytest.mark.parametrize("axis", list(SPEECH))
def test_an_episode_holds_each_persons_voice_from_the_segments_onset_on(
    corpus: tuple[Path, dict[str, Segment]], axis: str
) -> None:
    root, found = corpus
    segment = found[axis]
    assert (segment.user, CLOCK.seconds(segment.onset)) == (1, pytest.approx(2.0, abs=0.02))
    episode = load(root, segment)
    assert episode.samples % CLOCK.frame == 0
    assert 0 <= episode.samples - (segment.offset - segment.onset) < CLOCK.frame
    for track, own in ((episode.user, SPEECH[axis][0]), (episode.agent, SPEECH[axis][1])):
        said = np.zeros(episode.samples, bool)
        for on, off in own:
            first = CLOCK.nearest_sample(on) - segment.onset
            said[max(0, first) : max(0, first + CLOCK.nearest_sample(off - on))] = True
        edges = np.flatnonzero(np.diff(said))
        sure = np.ones(episode.samples, bool)
        for edge in edges:
            sure[max(0, edge - 960) : edge + 960] = False
        loud = np.sqrt(np.convolve(track**2, np.ones(480) / 480, "same")) > 0.01
        assert (loud == said)[sure].all()
    assert np.array_equal(episode.mic, episode.user)


def test_context_moves_the_events_with_the_audio(corpus: tuple[Path, dict[str, Segment]]) -> None:
    root, found = corpus
    near, far = load(root, found["turn"]), load(root, found["turn"], before=5.0, after=1.0)
    shift = CLOCK.samples(5.0)
    assert far.events[0].offset - near.events[0].offset == shift
    assert far.samples - near.samples == pytest.approx(CLOCK.samples(6.0), abs=CLOCK.frame)
    assert not far.user[: CLOCK.samples(3.0)].any()  # the recording begins later
    assert np.abs(far.user[shift : shift + near.samples] - near.user).max() < 1e-3


def test_a_human_who_waits_through_the_pause_earns_everything(corpus: tuple[Path, dict[str, Segment]]) -> None:
    root, found = corpus
    episode = load(root, found["pause"])
    (event,) = episode.events
    assert (event.type, CLOCK.seconds(event.offset - event.onset)) == ("B1", pytest.approx(0.6, abs=0.02))
    assert verdicts(episode, "pause_handling") == [1.0]
    assert verdicts(episode, "published_pause") == [0.0]
    hasty = replace(episode, agent=np.roll(episode.user, -event.onset))
    assert verdicts(hasty, "published_pause") == [-1.0]


def test_a_human_answer_is_timed_to_the_hop(corpus: tuple[Path, dict[str, Segment]]) -> None:
    root, found = corpus
    episode = load(root, found["turn"])
    (verdict,) = Composition({"turn_taking": 1.0}).score(episode)
    assert verdict.value == 1.0
    assert verdict.raw["fto_s"] == pytest.approx(0.2, abs=0.02)
    assert aggregate([measure(episode)])["fto_p50_s"] == pytest.approx(0.2, abs=0.02)
    (late,) = verdicts(replace(episode, agent=np.roll(episode.agent, CLOCK.samples(1.6))), "turn_taking")
    assert late is not None and late < 0.5


def test_a_human_listener_matches_his_own_backchannels(corpus: tuple[Path, dict[str, Segment]]) -> None:
    root, found = corpus
    episode = load(root, found["bc"])
    (event,) = episode.events
    assert [CLOCK.seconds(at) for at in event.anchors.values()] == pytest.approx([3.0, 6.0], abs=0.02)
    assert verdicts(episode, "published_backchannel") == [1.0]
    assert aggregate([measure(episode)])["bc_f1"] == 1.0
    assert verdicts(replace(episode, agent=np.zeros_like(episode.agent)), "published_backchannel") == [0.0]


def test_a_human_who_gives_way_and_answers_is_paid_for_both(corpus: tuple[Path, dict[str, Segment]]) -> None:
    root, found = corpus
    episode = load(root, found["int"])
    (verdict,) = Composition({"interruption": 1.0}).score(episode)
    assert verdict.raw["stop_s"] == pytest.approx(0.4, abs=0.02)
    assert verdict.raw["response_s"] == pytest.approx(0.4, abs=0.02)
    assert verdict.value == 1.0
    assert verdicts(episode, "published_interruption")[0] == pytest.approx(-0.4 / 5.0, abs=0.01)


def test_an_episode_is_saved_and_graded_alike(corpus: tuple[Path, dict[str, Segment]], tmp_path: Path) -> None:
    root, found = corpus
    for axis, term in (("pause", "pause_handling"), ("turn", "turn_taking"), ("bc", "backchannel")):
        episode = load(root, found[axis])
        again = Episode.load(episode.save(tmp_path / axis))
        assert np.array_equal(again.agent, episode.agent)
        assert verdicts(again, term) == verdicts(episode, term)


def test_events_lie_inside_the_segment(corpus: tuple[Path, dict[str, Segment]]) -> None:
    for segment in corpus[1].values():
        for event in events(segment, segment.onset):
            assert 0 <= event.onset < event.offset <= segment.offset - segment.onset


def test_a_recording_that_has_gone_is_named(corpus: tuple[Path, dict[str, Segment]], tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match=r"segment 'turn:turn:.*unreadable"):
        load(tmp_path, corpus[1]["turn"])


def test_a_run_that_did_not_end_has_no_segments(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match="is not over"):
        load_segments(tmp_path)

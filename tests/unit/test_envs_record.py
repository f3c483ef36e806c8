"""Clock, activity and the stored episode: what every figure rests on."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.activity import ActivityConfig, OnlineActivity, activity
from envs.clock import CLOCK, Clock
from envs.episode import Episode, from_pcm16, to_pcm16
from envs.errors import UptakeError, nearest
from envs.event import Event, Expect, Word

F = CLOCK.frame


@given(st.integers(0, 10**9))
def test_samples_and_seconds_are_inverse(n):
    assert CLOCK.samples(CLOCK.seconds(n)) == n


@given(st.integers(0, 10**7))
def test_a_sample_lies_in_its_frame_and_the_covering_frames_hold_it(n):
    assert CLOCK.sample_of(CLOCK.frame_of(n)) <= n < CLOCK.sample_of(CLOCK.frame_of(n) + 1)
    assert 0 <= CLOCK.sample_of(CLOCK.frames_covering(n)) - n < F


def test_the_clock_never_rounds_silently():
    with pytest.raises(UptakeError, match="nearest_sample"):
        CLOCK.samples(1 / 7)
    with pytest.raises(UptakeError, match="multiple of the frame"):
        CLOCK.frames(F + 1)
    with pytest.raises(UptakeError, match="finite"):
        CLOCK.nearest_sample(float("nan"))
    with pytest.raises(UptakeError, match="positive"):
        Clock(24000, 0)
    assert CLOCK.nearest_sample(1 / 7) == 3429 and CLOCK.frame_seconds == 0.08


def test_a_near_name_is_offered_and_a_far_one_lists_what_is_known():
    assert nearest("tran", ["train", "test"]) == "; did you mean 'train'?"
    assert nearest("zzzzzz", ["train", "test"]) == "; known: test, train"


def _bursts(levels: list[int], rng: np.random.Generator) -> np.ndarray:
    """Noise whose hops are silent, between the thresholds, or loud."""
    scale = np.array([0.0, 0.0045, 0.05], np.float32)[levels].repeat(240)
    noise = np.where(rng.random(scale.size) < 0.5, -1.0, 1.0).astype(np.float32)  # RMS 1 in every hop
    return noise * scale


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=12), st.integers(0, 2**16))
def test_online_activity_equals_offline_activity_of_what_was_heard(runs, seed):
    hops = [level for level, length in runs for _ in range(length)]
    hops += [0] * (-len(hops) % 8)
    audio = _bursts(hops, np.random.default_rng(seed))
    online = OnlineActivity(2)
    for k in range(audio.size // F):
        frame = audio[k * F : (k + 1) * F]
        online.update(np.stack([np.zeros_like(frame), frame]))
        so_far = activity(audio[: (k + 1) * F])
        expected = so_far[-1] if len(so_far) else (-1, -1)
        assert (online.onset[1], online.offset[1]) == tuple(expected)
        assert (online.onset[0], online.offset[0]) == (-1, -1)


@settings(max_examples=40, deadline=None)
@given(st.integers(100, 60_000), st.integers(4_000, 60_000), st.floats(0.1, 1.0))
def test_speaking_for_a_while_is_seen_online_within_a_frame_of_the_offline_answer(onset, length, wanted):
    """The documented delay: one frame, since decisions are taken at the ends of frames."""
    audio = np.zeros(80 * F, np.float32)
    audio[onset : onset + length] = 0.1
    start, end = activity(audio)[0]
    due = start + CLOCK.nearest_sample(wanted)
    online, seen = OnlineActivity(1), None
    for k in range(80):
        online.update(audio[None, k * F : (k + 1) * F])
        if seen is None and online.speaking_for[0] >= CLOCK.nearest_sample(wanted):
            seen = (k + 1) * F
    if due <= end:
        assert seen is not None and 0 <= seen - due < F
    else:
        assert seen is None or seen - end < F


def test_onsets_are_finer_than_a_frame_and_clicks_are_not_speech():
    audio = np.zeros(24_000, np.float32)
    audio[5_000:15_000] = 0.1
    audio[23_000] = 1.0
    segments = activity(audio)
    assert len(segments) == 1
    assert 0 <= 5_000 - segments[0, 0] < 240 and 0 <= segments[0, 1] - 15_000 < 240


def test_a_short_gap_is_merged_and_a_long_one_is_not():
    audio = np.zeros(96_000, np.float32)
    audio[0:12_000] = audio[18_000:30_000] = audio[48_000:60_000] = 0.1  # gaps of 0.25 s and 0.75 s
    assert activity(audio).tolist() == [[0, 30_000], [48_000, 60_000]]
    assert len(activity(audio, ActivityConfig(merge_gap=0.1))) == 3


def test_a_forked_row_of_activity_continues_like_its_source():
    rng = np.random.default_rng(0)
    online = OnlineActivity(3)
    for k in range(30):
        if k == 11:
            online.fork(0, np.array([2]))
        audio = np.where(rng.random((3, 1)) < 0.5, 0.1, 0.0) * np.ones((1, F))
        audio[2] = audio[0] if k >= 11 else 0.0
        online.update(audio.astype(np.float32))
    assert online.onset[2] == online.onset[0] and online.offset[2] == online.offset[0]


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=64))
def test_sixteen_bit_audio_survives_the_way_to_float_and_back(values):
    pcm = np.array(values, np.int16)
    assert np.array_equal(to_pcm16(from_pcm16(pcm)), pcm)


def _episode(rng: np.random.Generator) -> Episode:
    tracks = [from_pcm16(rng.integers(-9000, 9000, 3 * F).astype(np.int16)) for _ in range(3)]
    words = (Word("hello", 10, 500), Word("there", 600, 900))
    expects = (Expect("responds", {"full": 0.7, "zero": 2.0}, ("sunny",)),)
    events = [Event("ask", "A1", "user", 10, 900, {"sem": 500}, "hello there", words, expects, "other")]
    return Episode(*tracks, events=events, transcript=words, meta={"scenario": "x", "seed": 3})


def test_a_stored_episode_comes_back_equal_to_the_sample(tmp_path):
    episode = _episode(np.random.default_rng(0))
    again = Episode.load(episode.save(tmp_path / "e"))
    for track in ("mic", "user", "agent"):
        assert np.array_equal(getattr(again, track), getattr(episode, track))
    assert (again.events, again.transcript, again.meta) == (episode.events, episode.transcript, episode.meta)
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        *("mic.flac", "user.flac", "agent.flac", "events.jsonl", "transcript.jsonl", "meta.json")
    }


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "meta.json").unlink(), "meta.json.*no such file"),
        (lambda d: (d / "mic.flac").unlink(), "mic.flac.*no such audio"),
        (lambda d: (d / "mic.flac").write_bytes(b"no audio"), "mic.flac.*cannot be decoded"),
        (lambda d: soundfile.write(d / "mic.flac", np.zeros(3 * F), 16_000), "sample rate 16000, expected 24000"),
        (lambda d: soundfile.write(d / "mic.flac", np.zeros((3 * F, 2)), 24_000), "2 channels"),
        (lambda d: soundfile.write(d / "mic.flac", np.zeros(F), 24_000), "shapes"),
        (lambda d: (d / "events.jsonl").write_text("{}\n"), "'id' is missing"),
        (lambda d: (d / "events.jsonl").write_text("{}\n{{\n"), "events.jsonl:2: not JSON"),
        (lambda d: (d / "transcript.jsonl").write_text("{}\n"), "transcript.jsonl.*'text'"),
    ],
)
def test_a_damaged_episode_is_refused_by_name(tmp_path, damage, message):
    folder = _episode(np.random.default_rng(0)).save(tmp_path / "e")
    damage(folder)
    with pytest.raises(UptakeError, match=message):
        Episode.load(folder)


def test_events_refuse_what_cannot_be():
    with pytest.raises(UptakeError, match="not 0 <= on <= off"):
        Event("x", "A1", "user", 5, 4)
    with pytest.raises(UptakeError, match="source 'nobody'"):
        Event("x", "A1", "nobody", 0, 4)
    with pytest.raises(UptakeError, match="sings"):
        Expect("sings")

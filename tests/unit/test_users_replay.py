"""A recording as the user: its channel is heard as it was, and who spoke when says what happened."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Pack
from envs.scenario import Scenario, load_scenarios
from envs.users.replay import SHORT, find_events
from tests.reactive_pack import reactive_pack

USER = [(1.0, 2.0, "so I went"), (2.6, 4.0, "to the shop"), (5.5, 6.2, "okay"), (9.0, 10.5, "really?")]
PARTNER = [(4.5, 8.0)]
SECONDS = 12.0


def write(folder: Path, user, partner, rate: int = 24000, seconds: float = SECONDS, name: str = "call.wav") -> Path:
    """A two-channel recording with tones where somebody speaks."""
    audio = np.zeros((round(seconds * rate), 2), np.float32)
    for channel, spans in enumerate((user, partner)):
        for span in spans:
            first, last = round(span[0] * rate), round(span[1] * rate)
            audio[first:last, channel] = 0.2 * np.sin(
                2 * np.pi * (200 + 100 * channel) * np.arange(last - first) / rate
            )
    path = folder / name
    soundfile.write(path, audio, rate, subtype="PCM_16")
    return path


def scenario(recording: str, more: str = "") -> str:
    return (
        "schema: duplex.scenario/1\nid: call\nsplit: train\nterminate: {after_script_s: 2}\n"
        f"{more}user:\n  driver: replay\n  recording: {{{recording}}}\n"
    )


def load(folder: Path, recording: str, more: str = "") -> Pack:
    pack = reactive_pack(folder, "")
    path = folder / "replay.yaml"
    path.write_text(scenario(recording, more))
    return pack.with_users(path)


def play(pack: Pack, frames: int = 200):
    env = DuplexVectorEnv(pack, 1, frames=frames)
    _, info = env.reset(seed=1, options={"scenario": "call"})
    while not info["ended"].all():
        info = env.step(np.zeros((1, CLOCK.frame), np.float32))[-1]
    return env.episode(0)


@pytest.fixture
def call(tmp_path) -> Path:
    write(tmp_path, USER, PARTNER)
    (tmp_path / "call.json").write_text(json.dumps([[text, on, off] for on, off, text in USER]))
    return tmp_path


def seconds(event) -> tuple[float, float]:
    return CLOCK.seconds(event.onset), CLOCK.seconds(event.offset)


def test_the_channel_is_heard_sample_by_sample_and_the_conversation_ends_after_it(call):
    episode = play(load(call, "file: call.wav, channel: 0, words: call.json"))
    expected = soundfile.read(call / "call.wav", dtype="float32")[0][:, 0]
    assert np.array_equal(episode.user[: expected.size], expected) and not episode.user[expected.size :].any()
    assert np.abs(episode.mic).min() >= 0 and episode.mic[: CLOCK.samples(1.0)].any()  # the room is there
    assert episode.meta["ended"] == "script" and episode.seconds == pytest.approx(SECONDS + 2.0, abs=0.08)
    assert episode.meta["driver"] == "replay" and episode.meta["voice"] == "call"


def test_turns_pauses_and_backchannels_are_found_from_who_spoke_when(call):
    events = play(load(call, "file: call.wav, words: call.json")).events
    assert [(event.type, seconds(event)) for event in events] == [
        ("A3", (1.0, 4.0)),
        ("B1", (2.0, 2.6)),
        ("D1", (5.5, 6.2)),
        ("A1", (9.0, 10.5)),
    ]
    assert events[0].text == "so I went to the shop" and events[0].expected("responds")
    assert events[1].expected("silent") and events[2].expected("continues")


def test_without_words_the_energy_of_the_channel_says_who_spoke(call):
    events = play(load(call, "file: call.wav")).events
    assert [event.type for event in events] == ["A3", "B1", "D1", "A3"]
    assert seconds(events[0])[0] == pytest.approx(1.0, abs=0.02) and not events[0].text


def test_the_other_channel_gives_the_other_user(call):
    (event,) = play(load(call, "file: call.wav, channel: 1")).events
    assert event.type == "A3" and seconds(event) == pytest.approx((4.5, 8.0), abs=0.02)


def test_speech_over_a_running_turn_is_a_barge_in_and_a_listeners_words_are_opportunities(tmp_path):
    user = [(3.0, 5.5, "no wait I meant the other one"), (7.0, 13.0, "and then we drove on and on")]
    write(tmp_path, user, [(1.0, 4.0), (9.0, 9.5), (11.0, 11.4)], seconds=15)
    (tmp_path / "call.json").write_text(json.dumps([[text, on, off] for on, off, text in user]))
    events = play(load(tmp_path, "file: call.wav, words: call.json"), frames=220).events
    assert [event.type for event in events] == ["C1", "B7", "A3"]
    assert events[0].anchors["sem"] == events[0].offset  # one entry for the segment: its words are not timed
    assert [CLOCK.seconds(events[1].anchors[f"bc{i}"]) for i in range(2)] == pytest.approx([9.0, 11.0], abs=0.02)


def test_a_window_and_another_rate_keep_their_times(tmp_path):
    write(tmp_path, USER, PARTNER, rate=8000)
    episode = play(load(tmp_path, "file: call.wav, from: 5, to: 11"))
    assert [event.type for event in episode.events] == ["D1", "A3"]
    assert seconds(episode.events[1])[0] == pytest.approx(4.0, abs=0.02)
    assert episode.seconds == pytest.approx(6.0 + 2.0, abs=0.08)


def test_the_same_recording_sounds_the_same_beside_other_users(call):
    pack = load(call, "file: call.wav")
    env = DuplexVectorEnv(pack, 3, frames=60)
    mic = [env.reset(seed=1, options={"scenario": "call", "variant": [0, 1, 0]})[0]["mic"]]
    mic += [env.step(np.zeros((3, CLOCK.frame), np.float32))[0]["mic"] for _ in range(60)]
    heard = np.concatenate(mic, axis=1)
    assert np.array_equal(heard[0], heard[2]) and not np.array_equal(heard[0], heard[1])  # another room
    assert np.array_equal(env.episode(0).user, env.episode(1).user)


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ("file: none.wav", r"replay.yaml:7: .*none.wav: no such recording"),
        ("file: call.wav, channel: 2", "has 2 channels, so there is no channel 2"),
        ("file: call.wav, from: 30", "the window from 30 s to 12 s of 12 s is empty"),
        ("file: call.wav, from: 0, to: 0.5", "nobody speaks on channel 0 in this window"),
        ("file: call.wav, words: bad.json", "entry 0 is 'oops'; expected"),
        ("file: call.wav, words: order.json", "entry 1 lasts from 0.5 s to 1 s; sort and correct the times"),
        ("file: text.wav", r"text.wav: .*\(unreadable\)"),
        ("file: nan.wav", "holds NaN or infinite samples"),
        ("file: empty.wav", r"replay.yaml:7: .*empty.wav: holds no audio"),
        ("file: nothing.wav", r"nothing.wav: no bytes \(empty\)"),
        ("file: half.wav", r"half.wav: breaks off, its header promises \d+ bytes of sound \(damaged\)"),
        ("file: half.flac", r"half.flac: .* \(damaged\): cannot be replayed"),
        ("file: units.wav", "holds samples of 6.55e.03 times full scale; export it at a lower level"),
        ("file: three.wav", "has 3 channels, expected one for each of two speakers"),
        ("file: same.wav", "both channels are the same"),
        ("file: slow.wav", r"slow.wav: 7 Hz \(sample_rate\): cannot be replayed"),
        ("file: call.wav, speaker: 1", "unknown key 'speaker' in user.recording"),
    ],
)
def test_a_bad_recording_is_refused_when_the_scenario_is_loaded(call, recording, message):
    (call / "bad.json").write_text('["oops"]')
    (call / "order.json").write_text('[["b", 2, 3], ["a", 0.5, 1]]')
    (call / "text.wav").write_text("not audio")
    soundfile.write(call / "nan.wav", np.full((2400, 2), np.nan), 24000, subtype="FLOAT")
    talk, rate = soundfile.read(call / "call.wav")
    soundfile.write(call / "empty.wav", talk[:0], rate)
    (call / "nothing.wav").write_bytes(b"")
    soundfile.write(call / "units.wav", talk * 32768, rate, subtype="FLOAT")
    soundfile.write(call / "three.wav", np.column_stack([talk, talk[:, :1]]), rate)
    soundfile.write(call / "same.wav", talk[:, [0, 0]], rate)
    soundfile.write(call / "slow.wav", talk[:700], 7)
    for name in ("half.wav", "half.flac"):
        soundfile.write(call / name, talk + np.random.default_rng(0).normal(0, 0.01, talk.shape), rate)
        whole = (call / name).read_bytes()
        (call / name).write_bytes(whole[: len(whole) // 2])
    path = call / "replay.yaml"
    path.write_text(scenario(recording))
    with pytest.raises(UptakeError, match=message):
        load_scenarios(path)


def test_clipped_samples_of_a_recording_are_counted_in_the_record(call):
    talk, rate = soundfile.read(call / "call.wav")
    soundfile.write(call / "loud.wav", np.clip(20 * talk, -1, 1), rate)
    told = [play(load(call, f"file: {name}")).meta["recording"] for name in ("call.wav", "loud.wav")]
    assert told[0]["clipped"] == 0 and 0.1 < told[1]["clipped"] < 0.5 and told[1]["file"] == "loud.wav"


SPANS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 60)), max_size=10)


def spans(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Segments in samples from (silence, length) in tenths of a second, none closer than a unit's gap."""
    found, at = [], 0
    for silence, length in gaps:
        onset = at + 2400 * (silence + 2)
        at = onset + 2400 * length
        found.append((onset, at))
    return found


@settings(max_examples=150, deadline=None)
@given(own=SPANS, other=SPANS)
def test_whatever_a_recording_holds_each_utterance_is_one_event_and_no_backchannel_takes_a_turn(own, other):
    units, partner = spans(own), spans(other)
    events = find_events(units, [Word("", *unit) for unit in units], partner, Scenario("any", "train"))
    assert len({event.id for event in events}) == len(events)  # nothing happens twice
    assert [event.onset for event in events] == sorted(event.onset for event in events)
    talk = [event for event in events if event.type not in ("B1", "B7")]
    assert all(a.offset <= b.onset for a, b in pairwise(talk))  # one mouth
    for event in talk:
        assert any(event.onset == on for on, _ in units) and any(event.offset == off for _, off in units)
        spoke = any(on < event.onset < off for on, off in partner)
        if event.type == "D1":  # over the other's speech, short, and never asked to be answered
            assert spoke and event.offset - event.onset <= SHORT and event.expected("responds") is None
        else:
            assert event.type in ("A1", "A3", "C1") and event.offset - event.onset > SHORT
    for pause in (event for event in events if event.type == "B1"):
        assert any(turn.onset < pause.onset and pause.offset < turn.offset for turn in talk if turn.type != "D1")
    for unit in units:  # whoever talks for more than a second has a turn or a barge-in that holds it
        if unit[1] - unit[0] > SHORT:
            assert any(event.type != "D1" and event.onset <= unit[0] and unit[1] <= event.offset for event in talk)

"""Reactive and replayed users live in rooms and behind networks as scripted ones do."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from tests.reactive_pack import reactive_pack

F = CLOCK.frame
REACTIVE = """\
schema: duplex.scenario/1
id: asks
split: train
user:
  driver: reactive
  persona: {says: {question: 1}, barges_in: 0, backchannels_per_min: 0, coughs_per_min: 0, side_talk_per_min: 0}
"""
REPLAY = """\
---
schema: duplex.scenario/1
id: call
split: train
user: {driver: replay, recording: {file: call.wav}}
"""
LOUD = {"preset": "speakerphone", "babble": {"talkers": 4, "snr_db": 10}}
LATE = {"network": {"delay_ms": 240, "jitter_ms": 0, "buffer_ms": 0, "loss": 0}}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("packs")
    seconds = np.arange(6 * CLOCK.sample_rate) / CLOCK.sample_rate
    tone = 0.2 * np.sin(2 * np.pi * 200 * seconds) * (seconds % 2 < 1.2)
    soundfile.write(folder / "call.wav", tone.astype(np.float32), CLOCK.sample_rate, subtype="PCM_16")
    (folder / "users.yaml").write_text(REACTIVE + REPLAY)
    return reactive_pack(folder, "").with_users(folder / "users.yaml")


def agent(frames: int) -> np.ndarray:
    """(frames, F) float32: speech from 2.4 s to 4.8 s."""
    audio = 0.1 * np.sin(np.arange(frames * F) * 0.1)
    audio[: 30 * F] = audio[60 * F :] = 0.0
    return audio.astype(np.float32).reshape(frames, F)


def talk(pack: Pack, name: str, acoustics=None):
    env = DuplexVectorEnv(pack, 1, frames=120, acoustics=acoustics)
    env.reset(seed=3, options={"scenario": name, "variant": 0})
    for action in agent(121)[1:]:
        env.step(action[None])
    return env.episode(0)


@pytest.mark.parametrize("name", ["asks", "call"])
def test_the_microphone_hears_the_surroundings_and_the_record_says_which(pack, name):
    clean, loud = talk(pack, name), talk(pack, name, LOUD)
    assert clean.meta["acoustics"] == {} and {"echo", "babble"} <= loud.meta["acoustics"].keys()
    first = round(2.3 * CLOCK.sample_rate)  # so far nobody had anything to react to
    assert (clean.user[:first] == loud.user[:first]).all() and clean.user[:first].any()
    assert (clean.mic[:first] != loud.mic[:first]).any()


def test_a_user_behind_a_network_reacts_to_what_arrives(pack):
    (here,), (there,) = (
        [event for event in talk(pack, "asks", acoustics).events if event.id == "turn1"] for acoustics in (None, LATE)
    )
    assert there.onset - here.onset >= CLOCK.samples(0.24) - F  # its answer is as late as what it answers, to a frame


def test_acoustics_of_a_scenario_come_before_those_of_the_environment(pack, tmp_path):
    (tmp_path / "users.yaml").write_text(REACTIVE.replace("user:", "acoustics: {telephone: {codec: g711u}}\nuser:", 1))
    own = talk(pack.with_users(tmp_path / "users.yaml"), "asks", LATE)
    assert "telephone" in own.meta["acoustics"] and "network" not in own.meta["acoustics"]


def test_a_fork_of_a_reactive_user_takes_its_room_along(pack):
    env = DuplexVectorEnv(pack, 3, frames=100, acoustics=LOUD)
    env.reset(seed=5, options={"scenario": ["asks", "call", "asks"], "variant": [0, 0, 1]})
    actions = [np.repeat(action[None], 3, axis=0) for action in agent(101)[1:]]
    for action in actions[:40]:
        env.step(action)
    state = env.get_state()
    env.fork(0, [1, 2])
    first = [env.step(action)[0]["mic"] for action in actions[40:]]
    assert all((frame == frame[0]).all() for frame in first)
    env.set_state(state)
    again = [env.step(action)[0]["mic"] for action in actions[40:]]
    assert all((a[0] == b[0]).all() for a, b in zip(first, again, strict=True))
    assert any((frame[0] != frame[1]).any() for frame in again)

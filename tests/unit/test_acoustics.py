"""The blocks that acoustics are made of: exact in time, the same in frames as whole, and free to fork."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.acoustics.bursts import Bursts, render_bursts
from envs.acoustics.convolution import Convolution, Delay, convolve, partition
from envs.acoustics.drift import ClockDrift
from envs.acoustics.echo import Echo, EchoPath, synthetic_path
from envs.acoustics.fork import fork
from envs.acoustics.noise import SPEECH_DB, Noise, render_noise
from envs.acoustics.packets import Connection, Network, gilbert_elliott, missing_packets
from envs.acoustics.telephone import DELAY, Telephone, TelephoneLine, mu_law
from envs.clock import CLOCK

F, RATE = CLOCK.frame, CLOCK.sample_rate


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * F)).astype(np.float32)


def tone(frames: int, hz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz / RATE * np.arange(frames * F))).astype(np.float32)


def run(block, signal: np.ndarray) -> np.ndarray:
    return np.concatenate([block.process(frame.copy()) for frame in signal.reshape(-1, F)])


def db(signal: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(signal, dtype=np.float64)) + 1e-20))


def lossy(missing: np.ndarray, **network) -> Connection:
    comfort = (1e-3 * np.random.default_rng(9).standard_normal(RATE)).astype(np.float32)
    return Connection(Network(buffer_ms=0.0, **network), missing, comfort)


BLOCKS = {
    "convolution": lambda: Convolution(partition(noise(2)[:2400])),
    "delay": lambda: Delay(3000),
    "telephone": lambda: TelephoneLine(Telephone()),
    "drift": lambda: ClockDrift(-80.0, 20 * F),
    "echo": lambda: EchoPath(Echo(cancel_db=20.0, converge_s=0.5, nonlinear=0.1), path(100)),
    "connection": lambda: lossy(np.arange(80) % 7 == 3, delay_ms=30.0),
}


def path(tail_ms: float) -> np.ndarray:
    return partition(synthetic_path(tail_ms, np.random.default_rng(4)))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fork_goes_on_exactly_and_shares_nothing_that_changes(name):
    block, signal = BLOCKS[name](), noise(12)
    run(block, signal[: 5 * F])
    twin, witness = fork(block), fork(block)
    expected = run(witness, signal[5 * F :])
    run(twin, noise(7, seed=3))  # what a twin hears is nothing to the other
    assert np.array_equal(run(block, signal[5 * F :]), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_what_comes_later_changes_nothing_before(name):
    signal = noise(6)
    other = signal.copy()
    other[4 * F + 100 :] = 0
    # The spectra of a frame round everything in it alike, the last bits of what came before included.
    assert np.abs(run(BLOCKS[name](), signal) - run(BLOCKS[name](), other))[: 4 * F + 100].max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 1919, 1920, 1921, 4000, 7777]), st.lists(st.booleans(), min_size=9, max_size=9))
def test_frames_convolve_like_the_whole_with_and_without_pauses(length, speaks):
    response = np.random.default_rng(length).standard_normal(length).astype(np.float32) / math.sqrt(length)
    signal = noise(9) * np.repeat(np.array(speaks, np.float32), F)
    whole = np.convolve(signal.astype(np.float64), response)[: len(signal)]
    assert np.abs(run(Convolution(partition(response)), signal) - whole).max() < 1e-6
    assert np.abs(convolve(signal, response)[: len(signal)] - whole).max() < 1e-6


def test_silence_through_a_room_that_rang_out_is_exactly_silence():
    signal = noise(8)
    signal[2 * F :] = 0
    assert not run(Convolution(partition(noise(2)[:2400])), signal)[5 * F :].any()


# -- telephone ---------------------------------------------------------------------------------------------------------


def test_mu_law_is_what_libsndfile_makes_of_every_sample(tmp_path):
    samples = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="ULAW")
    decoded, _ = soundfile.read(tmp_path / "x.wav", dtype="int16")
    # Where a sample lies between two steps the standard leaves the choice; both are one step of that size away.
    off = np.abs(mu_law()[samples.view(np.uint16)].astype(int) - decoded)
    assert np.all(off <= np.maximum(8, np.abs(samples.astype(int)) // 14)) and np.mean(off == 0) > 0.9


def test_a_telephone_passes_its_band_stops_the_rest_and_is_as_late_as_it_says():
    passed = {hz: db(run(TelephoneLine(Telephone("none")), tone(8, hz))[4 * F :]) - db(tone(8, hz)) for hz in
              (60, 400, 1000, 3000, 4600, 8000)}  # fmt: skip
    assert all(abs(passed[hz]) < 1.0 for hz in (400, 1000, 3000)), passed
    assert all(passed[hz] < -35.0 for hz in (60, 4600, 8000)), passed
    signal = tone(6, 1000)
    late = run(TelephoneLine(Telephone()), signal)
    assert db(late[2 * F : 5 * F] - signal[2 * F - DELAY : 5 * F - DELAY]) < db(signal) - 25  # mu-law: about 35 dB


# -- network -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 400), st.integers(0, 100))
def test_without_loss_a_connection_only_delays(delay, buffer):
    connection = Connection(Network(delay_ms=delay, buffer_ms=buffer), np.zeros(40, bool), np.zeros(100, np.float32))
    signal = noise(10)
    late = 480 + (delay + buffer) * 24
    assert connection.delay_samples == late
    assert np.array_equal(run(connection, signal), np.append(np.zeros(late, np.float32), signal)[: len(signal)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=32, max_size=32))
def test_what_arrives_in_time_is_played_as_it_was_whatever_is_lost(missing):
    lost = np.array(missing)
    connection, signal = lossy(lost), noise(8)
    late = connection.delay_samples
    heard = np.append(run(connection, signal)[late:], np.zeros(late, np.float32)).reshape(-1, 480)
    sent = signal.reshape(-1, 480)
    for k in range(len(lost) - late // 480 - 1):
        after_loss = k and lost[k - 1]
        if not lost[k]:
            assert np.array_equal(heard[k, 96 if after_loss else 0 :], sent[k, 96 if after_loss else 0 :])
        else:
            assert not np.array_equal(heard[k], sent[k]) and np.isfinite(heard[k]).all() and heard[k].any()


def test_a_lost_packet_of_a_tone_is_concealed_and_a_long_loss_fades_to_comfort_noise():
    lost = np.zeros(60, bool)
    lost[20], lost[32:44] = True, True
    connection, signal = lossy(lost), tone(15, 150.0)
    late = connection.delay_samples
    heard = run(connection, signal)[late:].reshape(-1, 480)[:44]
    sent = signal.reshape(-1, 480)[:44]
    assert db(heard[20] - sent[20]) < db(sent[20]) - 12  # the pitch goes on in phase
    assert abs(db(heard[32]) - db(sent[32])) < 3 and -65 < db(heard[36]) < -55  # 1e-3: -60 dB
    assert np.abs(np.diff(heard.reshape(-1))).max() < 0.08  # and nothing clicks


def test_losses_are_as_frequent_and_come_in_bursts_as_long_as_asked():
    lost = gilbert_elliott(200_000, 0.05, 5.0, 1.0, np.random.default_rng(1))
    starts = np.count_nonzero(lost[1:] & ~lost[:-1])
    assert abs(lost.mean() - 0.05) < 0.005 and abs(lost.sum() / starts - 5.0) < 0.4
    half = gilbert_elliott(200_000, 0.05, 5.0, 0.5, np.random.default_rng(1))
    assert abs(half.mean() - 0.05) < 0.005
    assert not gilbert_elliott(1000, 0.0, 5.0, 0.8, np.random.default_rng(1)).any()


def test_a_packet_later_than_the_jitter_buffer_is_deep_is_as_good_as_lost():
    missing = missing_packets(Network(jitter_ms=10.0, buffer_ms=20.0), 100_000, np.random.default_rng(2))
    assert abs(missing.mean() - math.exp(-2.0)) < 0.005


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ppm", [-300.0, -40.0, 100.0, 500.0])
def test_a_drifting_clock_is_late_by_just_what_it_says(ppm):
    frames, hz = 40, 440.0
    drift = ClockDrift(ppm, frames * F)
    heard = run(drift, tone(frames, hz))
    n = np.arange(frames * F)
    late = np.array([drift.delay_at(int(i)) for i in n[:: F // 4]])
    ideal = 0.3 * np.sin(2 * np.pi * hz / RATE * (n[:: F // 4] - late))
    assert np.abs(heard[:: F // 4] - ideal)[4:].max() < 1e-3
    assert late.min() >= 8 - 1e-6  # never before it was said
    assert abs((late[-1] - late[0]) / (n[:: F // 4][-1] * ppm * 1e-6) + 1) < 1e-6


# -- echo --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [0, 40, 173.5])
def test_the_echo_of_an_impulse_arrives_at_its_sample_and_not_before(delay_ms):
    block = EchoPath(Echo(return_loss_db=6.0, delay_ms=delay_ms), path(100))
    played = np.zeros(8 * F, np.float32)
    played[2 * F + 7] = 1.0
    echo = run(block, played)
    first = int(np.flatnonzero(np.abs(echo) > 1e-4)[0])
    assert first == 2 * F + 7 + block.delay_samples and block.delay_samples == round(delay_ms * 24)
    assert abs(10 * np.log10(np.sum(np.square(echo))) + 6.0) < 0.1


def test_a_canceller_converges_to_its_attenuation_while_the_agent_speaks_and_cannot_take_off_distortion():
    def echoes(**options) -> np.ndarray:
        block = EchoPath(Echo(return_loss_db=0.0, **options), path(20))
        return run(block, noise(50)).reshape(50, F)

    plain, cancelled = echoes(), echoes(cancel_db=20.0, converge_s=0.5)
    assert db(plain[2]) - db(cancelled[1]) < 8.0
    assert abs(db(plain[45:]) - db(cancelled[45:]) - 20.0) < 0.2
    distorted = echoes(cancel_db=60.0, nonlinear=0.1)
    assert 15.0 < db(plain[45:]) - db(distorted[45:]) < 25.0


# -- surroundings ------------------------------------------------------------------------------------------------------


def test_noise_is_as_loud_as_its_ratio_says_and_its_level_drifts_within_bounds():
    steady = render_noise(Noise(snr_db=10.0, slope=0.5), 20 * RATE, np.random.default_rng(1))
    assert abs(db(steady) - (SPEECH_DB - 10.0)) < 0.3
    drifting = render_noise(Noise(snr_db=10.0, slope=0.0, drift_db=6.0), 30 * RATE, np.random.default_rng(1))
    levels = [db(part) - (SPEECH_DB - 10.0) for part in drifting.reshape(60, -1)]
    assert max(levels) - min(levels) > 4.0 and max(np.abs(levels)) < 6.6


def test_bursts_are_where_the_record_says_and_as_many_and_as_loud_as_asked():
    sound, spans = render_bursts(Bursts(per_min=60.0, snr_db=0.0), 120 * RATE, np.random.default_rng(1))
    assert 95 < len(spans) < 150
    covered = np.zeros(len(sound), bool)
    for onset, offset in spans:
        covered[onset:offset] = True
    assert not sound[~covered].any()
    onset, offset = next((a, b) for a, b in spans if b - a > 4000)
    assert abs(db(sound[onset:offset]) - SPEECH_DB) < 3.0  # others may fall into it


def test_the_world_loads_without_the_library_of_rooms():
    code = "import sys, envs.duplex_vector_env; assert not {'pyroomacoustics', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_room_starts_with_the_direct_sound_decays_in_its_time_and_is_computed_once():
    from envs.acoustics.room import Room, responses

    found, shape = responses(Room(0.3, 1.0), np.random.default_rng(0))
    again, _ = responses(Room(0.31, 0.95), np.random.default_rng(0))
    assert again is found and len(shape) == 3
    click = np.eye(1, 5 * F, dtype=np.float32)[0]
    user = run(Convolution(found.user), click)
    for response in (user, found.others, run(Convolution(found.loudspeaker), click)):
        assert abs(np.sum(np.square(response)) - 1.0) < 1e-3
        assert abs(response[0]) > 0.1 and abs(response[0]) == np.abs(response[:24]).max()
    left = 10 * np.log10(np.cumsum(np.square(user[::-1]))[::-1] + 1e-12)  # Schroeder's decay
    t20 = np.searchsorted(-left, 25.0) - np.searchsorted(-left, 5.0)
    assert 0.5 < 3 * t20 / RATE / 0.3 < 1.5
    near, _ = responses(Room(0.3, 0.25), np.random.default_rng(0))
    assert run(Convolution(near.user), click)[0] > user[0]  # the closer, the drier

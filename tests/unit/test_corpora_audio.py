"""Recordings of any rate and container are heard alike; those that cannot be used say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.activity import activity
from envs.clock import CLOCK
from envs.corpora import audio
from envs.corpora.audio import hear, read_piece
from envs.corpora.recording import READ_REASONS, Recording, Rejected, Track
from envs.corpora.speech import ENERGY, units
from tests.corpora import tones, write_tones

SPEECH = [[(0.5, 1.5), (2.0, 3.0)], [(3.2, 4.2)]]


def stereo(path: Path) -> Recording:
    return Recording(path.stem, (Track(path.name, 0), Track(path.name, 1)), ("0", "1"))


def reason(path: Path) -> str:
    with pytest.raises(Rejected) as caught:
        units(path.parent, stereo(path))
    assert caught.value.reason in READ_REASONS
    assert path.name in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    "name, rate",
    [("a.wav", 24_000), ("a.wav", 8_000), ("a.flac", 22_050), ("a.flac", 44_100), ("a.opus", 48_000), ("a.sph", 8_000)],
)
def test_any_rate_and_container_gives_the_same_units_in_samples_of_the_clock(
    tmp_path: Path, name: str, rate: int
) -> None:
    path = write_tones(tmp_path / name, SPEECH, 5.0, rate)
    both, heard = units(tmp_path, stereo(path))
    assert abs(heard.samples - CLOCK.samples(5.0)) <= 4
    for own, truth in zip(both, SPEECH, strict=True):
        assert len(own) == len(truth)
        for (on, off), (onset, offset) in zip(own, truth, strict=True):
            assert abs(CLOCK.seconds(on) - onset) <= 0.02
            assert abs(CLOCK.seconds(off) - offset) <= 0.02


def test_reading_in_blocks_is_the_same_as_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    whole, _ = units(tmp_path, stereo(path))
    samples, _ = soundfile.read(path, dtype="float32")
    assert whole == [[tuple(row) for row in activity(samples[:, c], ENERGY).tolist()] for c in (0, 1)]
    powers = []
    for block in (1 << 16, 1000, 7777):
        monkeypatch.setattr(audio, "_BLOCK", block)
        assert units(tmp_path, stereo(path))[0] == whole
        powers.append(hear(tmp_path, stereo(path), ENERGY).power)
    assert np.array_equal(powers[0], powers[1]) and np.array_equal(powers[0], powers[2])


@pytest.mark.parametrize("name, rate", [("a.wav", 8_000), ("a.flac", 44_100), ("a.wav", 24_000), ("a.opus", 48_000)])
@pytest.mark.parametrize("onset, offset", [(0, 4_800), (31_111, 50_001), (100_000, 119_999), (-2_400, 1_000)])
def test_a_piece_is_what_the_whole_file_holds_there(
    tmp_path: Path, name: str, rate: int, onset: int, offset: int
) -> None:
    path = write_tones(tmp_path / name, SPEECH, 5.0, rate)
    whole = read_piece(tmp_path, Track(path.name, 0), 0, CLOCK.samples(5.0))
    piece = read_piece(tmp_path, Track(path.name, 0), onset, offset)
    wanted = np.concatenate([np.zeros(max(0, -onset), np.float32), whole[max(0, onset) : offset]])
    assert piece.shape == wanted.shape
    # a lossy decoder that begins in the middle is a little off at first
    assert np.abs(piece - wanted).max() < (0.01 if name == "a.opus" else 1e-4)


def test_a_piece_beyond_the_end_is_silence(tmp_path: Path) -> None:
    path = write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    assert not read_piece(tmp_path, Track(path.name, 0), CLOCK.samples(9.0), CLOCK.samples(9.5)).any()


def test_bytes_that_are_no_audio_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"hello" * 300)
    assert reason(tmp_path / "a.wav") == "unreadable"
    assert reason(tmp_path / "gone.wav") == "unreadable"


def test_a_file_without_bytes_or_with_less_than_a_frame_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert reason(tmp_path / "a.wav") == "empty"
    assert reason(write_tones(tmp_path / "b.wav", [[], []], 0.0)) == "empty"
    assert reason(write_tones(tmp_path / "c.wav", [[], []], 0.079)) == "empty"


@pytest.mark.parametrize("name, rate", [("a.wav", 24_000), ("a.flac", 24_000), ("a.opus", 48_000), ("a.sph", 8_000)])
def test_a_file_that_breaks_off_is_told_from_a_shorter_one(tmp_path: Path, name: str, rate: int) -> None:
    path = write_tones(tmp_path / name, [[(0.2, 9.5)], [(3.0, 4.0)]], 10.0, rate)
    units(tmp_path, stereo(path))
    whole = path.read_bytes()
    for share in (0.4, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert reason(path) in ("damaged", "unreadable")


def test_a_wav_of_a_stream_that_knew_no_length_is_read(tmp_path: Path) -> None:
    path = write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    both, _ = units(tmp_path, stereo(path))
    assert [len(own) for own in both] == [2, 1]


def test_noise_written_into_a_flac_is_damage(tmp_path: Path) -> None:
    path = write_tones(tmp_path / "a.flac", [[(0.2, 9.5)], [(3.0, 4.0)]], 10.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    assert reason(path) == "damaged"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_told(tmp_path: Path, bad: float) -> None:
    samples = tones(SPEECH, 5.0)
    samples[50_000, 1] = bad
    soundfile.write(tmp_path / "a.wav", samples, CLOCK.sample_rate, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "not_finite"


def test_another_number_of_channels_than_two_is_told(tmp_path: Path) -> None:
    assert reason(write_tones(tmp_path / "a.wav", SPEECH[:1], 5.0)) == "mono"
    assert reason(write_tones(tmp_path / "b.wav", [*SPEECH, []], 5.0)) == "channels"


@pytest.mark.parametrize("rate", [4_000, 200_000])
def test_a_strange_rate_is_told_before_anything_is_resampled(tmp_path: Path, rate: int) -> None:
    assert reason(write_tones(tmp_path / "a.wav", [[(0.1, 0.2)], []], 0.3, rate)) == "sample_rate"


def test_silence_and_one_voice_on_both_channels_are_told(tmp_path: Path) -> None:
    assert reason(write_tones(tmp_path / "a.wav", [[], []], 5.0)) == "silent"
    samples = tones(SPEECH, 5.0)
    soundfile.write(tmp_path / "b.wav", samples[:, [0, 0]], CLOCK.sample_rate)
    assert reason(tmp_path / "b.wav") == "identical_channels"


def test_shorten_compression_is_named_with_what_unpacks_it(tmp_path: Path) -> None:
    path = write_tones(tmp_path / "a.sph", SPEECH, 5.0, 8_000)
    path.write_bytes(path.read_bytes().replace(b"-s4 ulaw", b"-s27 ulaw,embedded-shorten-v2.00"))
    assert reason(path) == "compressed_sphere"


def test_two_files_of_one_conversation_are_padded_up_to_a_second_and_no_more(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", SPEECH[:1], 5.0)
    both = Recording("x", (Track("a.wav", None), Track("b.wav", None)), ("0", "1"))
    write_tones(tmp_path / "b.wav", SPEECH[1:], 5.9, 48_000)
    found, heard = units(tmp_path, both)
    assert [len(own) for own in found] == [2, 1]
    assert heard.samples == CLOCK.samples(5.9)
    write_tones(tmp_path / "b.wav", SPEECH[1:], 6.1, 48_000)
    with pytest.raises(Rejected, match="length_mismatch"):
        units(tmp_path, both)
    write_tones(tmp_path / "b.wav", SPEECH, 5.0)
    with pytest.raises(Rejected, match="channels"):
        units(tmp_path, both)


def test_clipping_is_measured(tmp_path: Path) -> None:
    samples = tones(SPEECH, 5.0)
    samples[: CLOCK.samples(0.5), 0] = 1.0
    soundfile.write(tmp_path / "a.flac", samples, CLOCK.sample_rate)
    assert hear(tmp_path, stereo(tmp_path / "a.flac"), ENERGY).clipped == pytest.approx(0.1)


@given(cut=st.integers(0, 20_000), noise=st.binary(max_size=40), at=st.integers(0, 20_000))
@settings(max_examples=25, deadline=None)
def test_no_mutilated_file_does_more_than_be_refused(tmp_path_factory, cut: int, noise: bytes, at: int) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("mutilated")
    for name, rate in (("a.wav", 8_000), ("a.flac", 8_000), ("a.opus", 48_000)):
        path = write_tones(folder / name, [[(0.1, 0.4)], [(0.5, 0.6)]], 0.7, rate)
        data = bytearray(path.read_bytes())
        data[at : at + len(noise)] = noise
        path.write_bytes(data[: len(data) - min(cut, len(data))])
        try:
            units(folder, stereo(path))
        except Rejected as fault:
            assert fault.reason in READ_REASONS

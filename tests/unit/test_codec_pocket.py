"""The codec that pocket speaks with: streaming, independent rows, forks, files."""

import numpy as np
import pytest
import scipy.signal
from safetensors.numpy import save_file

from align.codecs.pocket import BANDS, CODEBOOKS, DIM, FRAME, SAMPLE_RATE, SUB, PocketCodec
from align.codecs.train_pocket import describe, train
from envs.errors import UptakeError


def vowel(hz: float, seconds: float, seed: int = 0) -> np.ndarray:
    """A pulse train through two resonances: what a vocoder must be able to say."""
    count = int(seconds * SAMPLE_RATE)
    pulses = np.zeros(count)
    pulses[:: int(SAMPLE_RATE / hz)] = 1.0
    for centre, width in ((600, 80), (1500, 120)):
        radius = np.exp(-np.pi * width / SAMPLE_RATE)
        pulses = scipy.signal.lfilter(
            [1], [1, -2 * radius * np.cos(2 * np.pi * centre / SAMPLE_RATE), radius**2], pulses
        )
    noise = np.random.default_rng(seed).standard_normal(count) * 1e-4
    return (0.3 * pulses / np.abs(pulses).max() + noise).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> PocketCodec:
    silence = np.random.default_rng(1).standard_normal(SAMPLE_RATE).astype(np.float32) * 1e-5
    clips = [vowel(hz, 1.0, i) for i, hz in enumerate((90, 120, 150, 200, 260))]
    return train(describe([*clips, silence]), card=32, steps=10)


def through(codec: PocketCodec, audio: np.ndarray) -> np.ndarray:
    ear, mouth = codec.init_state(len(audio)), codec.init_state(len(audio))
    frames = [
        codec.decode(mouth, codec.encode(ear, audio[:, i : i + FRAME]))
        for i in range(0, audio.shape[1] - FRAME + 1, FRAME)
    ]
    return np.concatenate(frames, axis=1)


def test_a_vowel_comes_back_at_its_own_level_and_pitch(codec: PocketCodec) -> None:
    audio = vowel(150, 1.6)[None]
    heard = through(codec, audio)[0, SAMPLE_RATE // 2 :]
    assert abs(20 * np.log10(heard.std() / audio.std())) < 3.0
    correlation = np.correlate(heard[:4800], heard[:4800], "full")[4800:]
    assert abs(SAMPLE_RATE / (100 + correlation[100:300].argmax()) - 150) < 8


def test_silence_stays_silent(codec: PocketCodec) -> None:
    quiet = np.random.default_rng(2).standard_normal((1, 5 * FRAME)).astype(np.float32) * 1e-5
    assert np.abs(through(codec, quiet)).max() < 10 ** (-50 / 20)


def test_a_row_does_not_depend_on_its_neighbours(codec: PocketCodec) -> None:
    rows = np.stack(
        [vowel(100, 0.8), vowel(220, 0.8)[: int(0.8 * SAMPLE_RATE)], np.zeros(int(0.8 * SAMPLE_RATE), np.float32)]
    )
    together = through(codec, rows)
    for i in range(3):
        assert np.array_equal(through(codec, rows[i : i + 1])[0], together[i])


def test_a_reset_row_starts_afresh_and_leaves_its_neighbour_alone(codec: PocketCodec) -> None:
    audio = np.stack([vowel(100, 0.8), vowel(200, 0.8)])
    ear, mouth = codec.init_state(2), codec.init_state(2)
    for i in range(3):
        codec.decode(mouth, codec.encode(ear, audio[:, i * FRAME : (i + 1) * FRAME]))
    codec.reset(ear, np.array([0]))
    codec.reset(mouth, np.array([0]))
    sounds = [codec.decode(mouth, codec.encode(ear, audio[:, i * FRAME : (i + 1) * FRAME])) for i in range(3, 6)]
    fresh = through(codec, audio[:1, 3 * FRAME : 6 * FRAME])
    assert np.array_equal(np.concatenate([s[0] for s in sounds]), fresh[0])
    whole = through(codec, audio[1:])
    assert np.array_equal(np.concatenate([s[1] for s in sounds]), whole[0, 3 * FRAME : 6 * FRAME])


def test_a_fork_goes_on_identically(codec: PocketCodec) -> None:
    audio = np.stack([vowel(100, 0.8), vowel(200, 0.8)])
    ear, mouth = codec.init_state(2), codec.init_state(2)
    for i in range(3):
        codec.decode(mouth, codec.encode(ear, audio[:, i * FRAME : (i + 1) * FRAME]))
    codec.fork(ear, 0, np.array([1]))
    codec.fork(mouth, 0, np.array([1]))
    same = np.repeat(audio[:1], 2, axis=0)
    for i in range(3, 6):
        out = codec.decode(mouth, codec.encode(ear, same[:, i * FRAME : (i + 1) * FRAME]))
        assert np.array_equal(out[0], out[1])


def test_quantising_again_what_was_decoded_changes_nothing(codec: PocketCodec) -> None:
    codes = np.random.default_rng(3).integers(0, codec.card, (20, 1)).repeat(CODEBOOKS, axis=1)
    codes[:, 1:] = codec.quantise(codec.mean + codec.codewords[0][codes[:, 0]])[:, 1:]
    again = codec.quantise(codec.dequantise(codes))
    first = np.linalg.norm(codec.dequantise(again) - codec.dequantise(codes), axis=1)
    assert np.median(first) < 0.5 * np.linalg.norm(codec.codewords[0], axis=1).mean()


def test_a_file_brings_back_the_same_codes(codec: PocketCodec, tmp_path) -> None:
    codec.save(tmp_path / "codec.safetensors")
    loaded = PocketCodec.load(tmp_path / "codec.safetensors")
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / "codec.safetensors").read_bytes()
    audio = vowel(130, 0.8)[None]
    assert np.array_equal(through(loaded, audio), through(PocketCodec.load(again), audio))


def test_a_missing_or_truncated_file_is_one_line(codec: PocketCodec, tmp_path) -> None:
    with pytest.raises(UptakeError, match="no codec weights"):
        PocketCodec.load(tmp_path / "none.safetensors")
    codec.save(tmp_path / "codec.safetensors")
    (tmp_path / "codec.safetensors").write_bytes((tmp_path / "codec.safetensors").read_bytes()[:1000])
    with pytest.raises(UptakeError, match="truncated") as error:
        PocketCodec.load(tmp_path / "codec.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"mean": np.full(SUB * DIM, np.nan, np.float32)}, "mean has NaN or infinite values"),
        ({"mean": np.zeros(SUB * DIM, np.int8)}, "mean is int8, expected"),
        ({"mean": np.zeros(3, np.float32)}, "expected .8, N, 224. and .224,."),
        ({"codewords": np.zeros((2, 3), np.float32)}, "expected .8, N, 224. and .224,."),
    ],
)
def test_a_file_of_other_tensors_is_one_line(codec: PocketCodec, tmp_path, change, says: str) -> None:
    tensors = {"codewords": codec.codewords, "mean": codec.mean} | change
    save_file(tensors, tmp_path / "codec.safetensors")
    with pytest.raises(UptakeError, match=f"codec.safetensors: .*{says}") as error:
        PocketCodec.load(tmp_path / "codec.safetensors")
    assert "\n" not in str(error.value)


def test_a_description_has_mel_pitch_and_voicing_for_every_sub_frame() -> None:
    rows = describe([vowel(150, 0.4)])
    assert rows.shape[1] == SUB * DIM
    voicing = rows.reshape(-1, SUB, DIM)[2, :, BANDS + 1]
    assert (voicing > 1.5).all()
    pitch = np.exp(rows.reshape(-1, SUB, DIM)[2, :, BANDS] / 3.0)
    assert np.abs(pitch - 150).max() < 6

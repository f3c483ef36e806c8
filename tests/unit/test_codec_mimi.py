"""Mimi streams in both directions exactly as transformers runs it offline. Random weights in the published layout."""

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

from align.codecs.mimi import MimiCodec
from envs.codec import Codec, rows_kept
from envs.errors import UptakeError
from tests.on_one_device import OnOneDevice

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_filters": 4, "codebook_size": 64, "codebook_dim": 8, "upsample_groups": 16,
    "vector_quantization_hidden_dimension": 8, "num_hidden_layers": 2, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    # As published but for its widths: ratios 8, 6, 5, 4, kernels 7/3/3, 32 codebooks, a window of 250 steps.
    "published": {**SMALL, "num_filters": 2},
    # A window much shorter than the stream, other ratios, dilations, convolved shortcuts, grouped keys.
    "tiny": {
        **SMALL, "sampling_rate": 300, "upsampling_ratios": [4, 3], "num_residual_layers": 2, "use_conv_shortcut": True,
        "num_quantizers": 9, "sliding_window": 5, "num_key_value_heads": 1, "kernel_size": 5, "last_kernel_size": 2,
    },
    "replicate": {
        **SMALL, "sampling_rate": 300, "upsampling_ratios": [3, 4], "sliding_window": 7, "pad_mode": "replicate",
    },
}  # fmt: skip
TOLERANCE = 2e-6
"""Of samples in about [-1, 1], fp32; measured 8e-7 at most, and offline decodes of two lengths differ as much."""
FRAMES = {"published": 140, "tiny": 60, "replicate": 40}


@cache
def codec(name: str) -> MimiCodec:
    """A random Mimi whose every part matters: codebooks are zero and the transformer nearly silent by default."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**CONFIGS[name]))
    for key, tensor in model.state_dict().items():
        if "embed_sum" in key or "layernorm" in key:
            tensor.copy_(torch.randn_like(tensor))
        elif "q_proj" in key or "k_proj" in key:
            tensor.copy_(torch.randn_like(tensor) * 0.5)  # picks out steps: a window one step off changes the output
        elif "layer_scale" in key:
            tensor.fill_(0.5)
    c = MimiCodec(model)
    last = c.model.decoder.decoder_seanet.layers[-1].conv
    codes = torch.from_numpy(random_codes_for(c, 4, 20)).transpose(1, 2)
    with torch.no_grad():
        loudest = c.model.decode(codes).audio_values.abs().max()
    for tensor in (last.weight, last.bias):  # as loud as audio, so that an absolute error means something
        tensor.data /= loudest
    return c


def speech(name: str, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.3, (batch, frames, codec(name).frame))
    return noise.astype(np.float32)  # (B, T, frame)


def random_codes(name: str, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    return random_codes_for(codec(name), batch, frames, seed)


def random_codes_for(c: MimiCodec, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, c.card, (batch, frames, c.codebooks))  # (B, T, K)


def encode(c: Codec, state, pcm: np.ndarray) -> np.ndarray:
    return np.stack([c.encode(state, pcm[:, t]) for t in range(pcm.shape[1])], axis=1)  # (B, T, K)


def decode(c: Codec, state, codes: np.ndarray) -> np.ndarray:
    return np.stack([c.decode(state, codes[:, t]) for t in range(codes.shape[1])], axis=1)  # (B, T, frame)


@torch.no_grad()
def offline_encode(c: MimiCodec, pcm: np.ndarray) -> np.ndarray:
    whole = torch.from_numpy(pcm.reshape(len(pcm), 1, -1))
    return c.model.encode(whole, num_quantizers=c.codebooks).audio_codes.transpose(1, 2).numpy()


@torch.no_grad()
def offline_decode(c: MimiCodec, codes: np.ndarray) -> np.ndarray:
    audio = c.model.decode(torch.from_numpy(codes).transpose(1, 2)).audio_values
    return audio.clamp(-1, 1).numpy().reshape(len(codes), codes.shape[1], c.frame)


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_encode_equals_offline_encode(name: str) -> None:
    c, pcm = codec(name), speech(name, 2, FRAMES[name])
    codes = encode(c, c.init_state(2), pcm)
    assert codes.dtype == np.int64
    assert len(np.unique(codes)) > c.card // 2, "the random codec must use its codebooks, or equality means nothing"
    np.testing.assert_array_equal(codes, offline_encode(c, pcm))


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_decode_equals_offline_decode(name: str) -> None:
    c, codes = codec(name), random_codes(name, 2, FRAMES[name])
    streamed, offline = decode(c, c.init_state(2), codes), offline_decode(c, codes)
    assert streamed.dtype == np.float32
    assert offline.std() > 0.03
    assert np.abs(streamed - offline).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["tiny", "replicate"])
def test_a_reset_row_equals_a_fresh_stream_and_its_neighbours_go_on(name: str) -> None:
    c, pcm, codes = codec(name), speech(name, 3, 30), random_codes(name, 3, 30)
    state, fresh, kept = c.init_state(3), c.init_state(3), c.init_state(3)
    for each in (state, kept):
        encode(c, each, pcm[:, :17])
        decode(c, each, codes[:, :13])
    c.reset(state, np.array([False, True, False]))
    heard, said = encode(c, state, pcm[:, 17:]), decode(c, state, codes[:, 13:])
    np.testing.assert_array_equal(heard[1], encode(c, fresh, pcm[:, 17:])[1])
    np.testing.assert_array_equal(said[1], decode(c, fresh, codes[:, 13:])[1])
    np.testing.assert_array_equal(heard[[0, 2]], encode(c, kept, pcm[:, 17:])[[0, 2]])
    np.testing.assert_array_equal(said[[0, 2]], decode(c, kept, codes[:, 13:])[[0, 2]])


def test_a_forked_row_continues_identically_to_its_source() -> None:
    c, pcm, codes = codec("tiny"), speech("tiny", 3, 30), random_codes("tiny", 3, 30)
    state = c.init_state(3)
    encode(c, state, pcm[:, :17])
    decode(c, state, codes[:, :13])
    c.fork(state, 2, [0])
    pcm[0], codes[0] = pcm[2], codes[2]
    heard, said = encode(c, state, pcm[:, 17:]), decode(c, state, codes[:, 13:])
    np.testing.assert_array_equal(heard[0], heard[2])
    np.testing.assert_array_equal(said[0], said[2])
    assert not np.array_equal(said[1], said[2])


def test_a_row_that_sits_out_frames_goes_on_as_if_they_had_not_been() -> None:
    c: Codec = codec("tiny")
    assert isinstance(c, Codec)
    codes = random_codes("tiny", 2, 20)
    state, idle = c.init_state(2), np.array([1])
    with rows_kept(state, idle):  # before anything is allocated, too
        decode(c, state, codes[:, :6])
    decode(c, state, codes[:, 6:9])
    with rows_kept(state, idle):
        decode(c, state, codes[:, 9:15])
    last = decode(c, state, codes[:, 15:])
    heard = np.concatenate([codes[:, 6:9], codes[:, 15:]], axis=1)
    np.testing.assert_array_equal(last[1], decode(c, c.init_state(2), heard)[1, 3:])
    np.testing.assert_array_equal(last[0], decode(c, c.init_state(2), codes)[0, 15:])


def test_what_one_row_hears_and_says_does_not_reach_another() -> None:
    c = codec("tiny")
    pcm, codes = speech("tiny", 2, 20), random_codes("tiny", 2, 20)
    others_pcm, others_codes = speech("tiny", 2, 20, seed=1) * 100, random_codes("tiny", 2, 20, seed=1)
    others_pcm[0], others_codes[0] = pcm[0], codes[0]
    first, second = c.init_state(2), c.init_state(2)
    np.testing.assert_array_equal(encode(c, first, pcm)[0], encode(c, second, others_pcm)[0])
    np.testing.assert_array_equal(decode(c, first, codes)[0], decode(c, second, others_codes)[0])


@settings(max_examples=15, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
            st.tuples(st.just("reset"), st.integers(0, 2), st.just(0)),
            st.tuples(st.just("fork"), st.integers(0, 2), st.integers(0, 2)),
        ),
        max_size=12,
    ),
    seed=st.integers(0, 9),
)
def test_each_row_is_the_offline_decode_of_its_own_history_whatever_is_reset_and_forked(events, seed: int) -> None:
    c, state, rng = codec("tiny"), codec("tiny").init_state(3), np.random.default_rng(seed)
    codes: list[list[np.ndarray]] = [[], [], []]
    audio: list[list[np.ndarray]] = [[], [], []]
    for kind, a, b in [*events, ("step", 2, 0)]:
        if kind == "reset":
            c.reset(state, [a])
            codes[a], audio[a] = [], []
        elif kind == "fork":
            c.fork(state, a, [b])
            codes[b], audio[b] = list(codes[a]), list(audio[a])
        else:
            for _ in range(a):
                frame = rng.integers(0, c.card, (3, c.codebooks))
                pcm = c.decode(state, frame)
                for row in range(3):
                    codes[row].append(frame[row])
                    audio[row].append(pcm[row])
    for row in range(3):
        assert np.abs(offline_decode(c, np.stack(codes[row])[None])[0] - np.stack(audio[row])).max() <= TOLERANCE


def test_a_saved_codec_reloads_from_its_folder_and_speaks_the_same(tmp_path) -> None:
    c = codec("tiny")
    c.model.save_pretrained(tmp_path)
    again, codes = MimiCodec.load(tmp_path), random_codes("tiny", 1, 8)
    assert (again.sample_rate, again.frame, again.codebooks, again.card) == (300, 24, 8, 64)
    np.testing.assert_array_equal(decode(again, again.init_state(1), codes), decode(c, c.init_state(1), codes))


def test_a_codec_that_is_moved_keeps_weights_and_streams_where_it_is() -> None:
    c, frame = copy.deepcopy(codec("tiny")), speech("tiny", 2, 1)[:, 0]
    c.encode(c.init_state(2), frame)  # whatever it remembers of where it first ran
    meta = torch.device("meta")  # what it computes has no values there, and cannot reach numpy
    c.to(meta)
    state = c.init_state(2)
    with OnOneDevice(copies=True) as device:
        with pytest.raises(NotImplementedError, match="no data"):
            c.encode(state, frame)
        with pytest.raises(NotImplementedError, match="no data"):
            c.decode(state, np.zeros((2, c.codebooks), np.int64))
        c.fork(state, 0, [1])
        c.reset(state, [0])
    assert device.calls > 200 and c.device == meta
    assert len(state.tensors) > 10 and all(tensor.device == meta for tensor in state.tensors.values())


def test_a_codec_moved_in_the_middle_of_a_rollout_says_the_same_and_can_be_used_outside_of_it() -> None:
    c, pcm = copy.deepcopy(codec("tiny")), speech("tiny", 2, 8)
    expected = encode(c, c.init_state(2), pcm)
    with torch.inference_mode():
        c.to(torch.device("cpu"))
    np.testing.assert_array_equal(encode(c, c.init_state(2), pcm), expected)
    assert not any(weight.is_inference() for weight in c.model.parameters())


def _remove_weights(folder):
    (folder / "model.safetensors").unlink()


def _truncate_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["upsample.conv.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _edit_config(**changes):
    def edit(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _break_tensor(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["upsample.conv.weight"] = change(tensors["upsample.conv.weight"])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


@pytest.mark.parametrize(
    "damage, message",
    [
        (_remove_weights, "model.safetensors: missing"),
        (_truncate_weights, "truncated"),
        (_drop_tensor, "1 tensors missing, e.g. 'decoder.upsample.conv.weight'"),
        (_edit_config(model_type="encodec"), "model_type is 'encodec'"),
        (_edit_config(hidden_size="wide"), "config.json: hidden_size = 'wide'"),
        (_edit_config(norm_eps="small"), "not a Mimi config"),
        (_edit_config(intermediate_size=48), "does not fit config.json"),
        (_edit_config(use_causal_conv=False), "use_causal_conv=False"),
        (_edit_config(num_quantizers=4), "8 codebooks asked for, the model has 4"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json:1: not JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json: not JSON of settings"),
        (_edit_config(upsampling_ratios=[8, 0]), "config.json: ratios of upsampling [8, 0]"),
        (_edit_config(num_attention_heads=0), "config.json: num_attention_heads = 0"),
        (_edit_config(sliding_window=0), "config.json: sliding_window = 0"),
        (_break_tensor(lambda tensor: tensor * torch.nan), "upsample.conv.weight has NaN or infinite values"),
        (_break_tensor(lambda tensor: tensor.to(torch.int8)), "upsample.conv.weight is int8, expected"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_the_fault(tmp_path, damage, message: str) -> None:
    codec("tiny").model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UptakeError) as caught:
        MimiCodec.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_input_that_is_not_one_frame_of_this_batch_is_refused() -> None:
    c = codec("tiny")
    state = c.init_state(2)
    frame = np.zeros((2, c.frame), np.float32)
    frame[1, 3] = np.nan
    with pytest.raises(UptakeError, match=r"rows \[1\]"):
        c.encode(state, frame)
    with pytest.raises(UptakeError, match="shape"):
        c.encode(state, np.zeros((3, c.frame), np.float32))
    with pytest.raises(UptakeError, match=r"exceed 0\.\.63"):
        c.decode(state, np.full((2, c.codebooks), c.card))

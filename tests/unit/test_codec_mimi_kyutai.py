"""Mimi as `moshi` stores it: the same codec as that package's own, and back again."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.codecs.mimi_kyutai import MIMI, MIMI_CONFIG, RELEASED, load_mimi, save_mimi
from envs.errors import UptakeError
from tests.random_mimi import random_mimi


@pytest.fixture
def loaders():
    os.environ["NO_TORCH_COMPILE"] = "1"
    return pytest.importorskip("moshi.models.loaders")


@pytest.fixture
def folder(tmp_path):
    save_mimi(tmp_path, random_mimi(64))
    return tmp_path


@torch.no_grad()
def test_the_original_code_reads_what_we_write_and_encodes_and_decodes_the_same(folder, loaders):
    codec = random_mimi(64)
    theirs = loaders.get_mimi(folder / MIMI, json.loads((folder / MIMI_CONFIG).read_text()))
    pcm = np.random.default_rng(0).normal(0, 0.3, (2, 12, 1920)).astype(np.float32)
    state = codec.init_state(2)
    ours = np.stack([codec.encode(state, pcm[:, t]) for t in range(12)], axis=2)  # (B, K, T)
    expected = theirs.encode(torch.from_numpy(pcm.reshape(2, 1, -1)))
    np.testing.assert_array_equal(ours, expected.numpy())
    spoken = np.concatenate([codec.decode(state, ours[:, :, t]) for t in range(12)], axis=1)
    np.testing.assert_allclose(spoken, theirs.decode(expected)[:, 0].clamp(-1, 1).numpy(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_we_read_what_the_original_code_writes(tmp_path, folder, loaders):
    values = json.loads((folder / MIMI_CONFIG).read_text())
    theirs = loaders.get_mimi(folder / MIMI, values)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")  # its projections are lists, ours are packed
    assert any("in_projs.0" in name for name in theirs.state_dict())
    loaded = load_mimi(tmp_path / "theirs.safetensors", folder / MIMI_CONFIG).model.state_dict()
    assert all(torch.equal(value, random_mimi(64).model.state_dict()[name]) for name, value in loaded.items())


def test_a_codec_comes_back_bit_by_bit(folder):
    loaded = load_mimi(folder / MIMI, folder / MIMI_CONFIG).model.state_dict()
    original = random_mimi(64).model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in loaded.items())


def test_the_released_shape_is_the_one_of_the_original_code(loaders):
    assert loaders._mimi_config == RELEASED


def refused(folder, *words: str, config: bool = True) -> None:
    with pytest.raises(UptakeError) as caught:
        load_mimi(folder / MIMI, folder / MIMI_CONFIG if config else None)
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told


def test_a_codec_of_another_shape_is_refused_by_name(folder):
    refused(folder, MIMI, "missing", config=False)  # fewer layers than the released one has
    tensors = load_file(folder / MIMI)
    save_file(tensors | {"downsample.conv.conv.conv.weight": torch.zeros(3)}, folder / MIMI)
    refused(folder, MIMI, "(3,)", "(16, 16, 4)")
    save_file(tensors | {"speaker.weight": torch.zeros(3)}, folder / MIMI)
    refused(folder, MIMI, "unknown", "speaker.weight")
    packed = next(name for name in tensors if name.endswith("in_proj_weight"))
    save_file(tensors | {packed: torch.zeros(5, 16)}, folder / MIMI)
    refused(folder, f"{folder / MIMI}: {packed} has shape (5, 16), expected (48, 16)")


@pytest.mark.parametrize(
    "part, change, says",
    [
        ("bias", lambda tensor: tensor * torch.nan, "has NaN or infinite values"),
        ("downsample", lambda tensor: tensor.int(), "is int32, expected float64, float32, bfloat16, float16"),
        ("downsample", lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn, expected"),
        ("embedding_sum", lambda tensor: torch.full_like(tensor, 1e38), "its codewords, are NaN or infinite"),
    ],
)
def test_tensors_that_are_no_weights_and_codewords_without_measure_are_refused_by_name(folder, part, change, says):
    tensors = load_file(folder / MIMI)
    for name in tensors:
        if name.endswith("cluster_usage"):
            tensors[name] = torch.zeros_like(tensors[name])  # by itself that makes long codewords, not infinite ones
    save_file(tensors, folder / MIMI)
    load_mimi(folder / MIMI, folder / MIMI_CONFIG)
    damaged = next(name for name in tensors if part in name)
    save_file(tensors | {damaged: change(tensors[damaged])}, folder / MIMI)
    refused(folder, f"{folder / MIMI}: ", says)


def test_a_damaged_file_is_refused_by_name(folder):
    whole = (folder / MIMI).read_bytes()
    (folder / MIMI).write_bytes(whole[: len(whole) // 2])
    refused(folder, MIMI, "truncated")
    (folder / MIMI).unlink()
    refused(folder, MIMI, "missing")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"frame_rate": 25}, "frame_rate = 25"),
        ({"seanet": RELEASED["seanet"] | {"causal": False}}, "seanet.causal"),
        ({"seanet": {}}, "KeyError"),
        ({"quantizer": RELEASED["quantizer"] | {"bins": "many"}}, "mimi.json"),
    ],
)
def test_a_shape_that_is_not_a_mimi_s_is_refused_by_name(folder, change, says):
    (folder / MIMI_CONFIG).write_text(json.dumps(json.loads((folder / MIMI_CONFIG).read_text()) | change))
    refused(folder, MIMI_CONFIG, says)


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("seanet", "ratios", [8, 0]),
        ("seanet", "ratios", []),
        ("seanet", "dimension", -1),
        ("seanet", "compress", 0),
        ("transformer", "num_heads", 0),
        ("transformer", "num_layers", 10**6),
        ("transformer", "context", 0),
        ("transformer", "context", -5),
        ("transformer", "max_period", 0),
        ("quantizer", "n_q", 10**6),
        ("quantizer", "bins", True),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_a_network_is_made_of_it(folder, part, key, value):
    values = json.loads((folder / MIMI_CONFIG).read_text())
    values[part][key] = value
    (folder / MIMI_CONFIG).write_text(json.dumps(values))
    refused(folder, f"{folder / MIMI_CONFIG}: ", "period" if key == "max_period" else key, str(value))


def test_a_period_of_the_positions_need_not_be_whole(folder):
    values = json.loads((folder / MIMI_CONFIG).read_text())
    values["transformer"]["max_period"] = 5e6 + 0.5
    (folder / MIMI_CONFIG).write_text(json.dumps(values))
    load_mimi(folder / MIMI, folder / MIMI_CONFIG)

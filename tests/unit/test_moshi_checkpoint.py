"""A checkpoint folder comes back as it was, and a broken one is one clear line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.policies.moshi.checkpoint import load_checkpoint
from align.policies.moshi.layouts.kyutai import load_model
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from tests.tiny_moshi import BlurCodec, config, policy


@pytest.fixture
def folder(tmp_path):
    policy().export(tmp_path / "p")
    return tmp_path / "p"


def refused(folder, *words: str) -> None:
    """Loading ends in one line that has the words."""
    with pytest.raises(UptakeError) as caught:
        load_checkpoint(folder, BlurCodec())
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told


def test_weights_come_back_bit_by_bit_and_trainable(folder):
    original = policy().model.state_dict()
    loaded = MoshiPolicy.load(folder, codec=BlurCodec()).model
    assert all(torch.equal(value, original[name]) for name, value in loaded.state_dict().items())
    assert all(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path, dtype):
    p = policy()
    p.export(tmp_path, dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = MoshiPolicy.load(tmp_path, codec=BlurCodec()).model.state_dict()
    assert all(torch.equal(value, p.model.state_dict()[name].to(dtype).float()) for name, value in loaded.items())


def test_packed_projections_of_older_checkpoints_are_split(folder):
    weights = load_file(folder / "model.safetensors")
    packed = {name: value for name, value in weights.items() if "_projs" not in name}
    for stem in sorted({name.split(".self_attn.")[0] for name in weights if "_projs" in name}):
        for part, old in (("in_projs", "in_proj_weight"), ("out_projs", "out_proj.weight")):
            prefix = f"{stem}.self_attn.{part}."
            number = sum(name.startswith(prefix) for name in weights)
            rows = [weights[f"{prefix}{i}.weight"] for i in range(number)]
            packed[f"{stem}.self_attn.{old}"] = torch.cat(rows)
    save_file(packed, folder / "model.safetensors")
    loaded = load_model(folder / "model.safetensors", config()).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_spm.model"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, name)


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such checkpoint folder")


def test_a_missing_codec_is_named(folder):
    (folder / "codec.safetensors").unlink()
    with pytest.raises(UptakeError, match=r"codec\.safetensors"):
        MoshiPolicy.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_spm.model"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, name, share):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * share)])
    refused(folder, name)


def test_weights_that_do_not_fit_the_config_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"text_linear.weight": torch.zeros(3, 32)}, folder / "model.safetensors")
    refused(folder, "model.safetensors", "text_linear.weight", "(3, 32)", "(40, 32)")
    without = {name: value for name, value in weights.items() if name != "emb.3.weight"}
    save_file(without, folder / "model.safetensors")
    refused(folder, "1 tensors missing", "emb.3.weight")
    save_file(weights | {"emb.99.weight": torch.zeros(1)}, folder / "model.safetensors")
    refused(folder, "does not have", "emb.99.weight")
    save_file(weights | {"emb.0.weight": weights["emb.0.weight"].to(torch.int8)}, folder / "model.safetensors")
    refused(folder, "emb.0.weight", "int8")


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_weights_that_are_not_numbers_are_named(folder, poison):
    weights = load_file(folder / "model.safetensors")
    weights["text_linear.weight"][3, 5] = poison
    save_file(weights, folder / "model.safetensors")
    refused(folder, "model.safetensors", "text_linear.weight", "NaN or infinite")


def test_a_model_and_a_codec_that_do_not_belong_together_are_refused(folder):
    codec = BlurCodec()
    codec.card = 77
    with pytest.raises(UptakeError, match="20 codes a codebook, its codec has 77"):
        MoshiPolicy.load(folder, codec=codec)


def test_file_names_of_a_released_config_are_followed(folder):
    values = json.loads((folder / "config.json").read_text())
    values |= {"moshi_name": "weights.safetensors", "tokenizer_name": "spm.model"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "tokenizer_spm.model").rename(folder / "spm.model")
    load_checkpoint(folder, BlurCodec())


def test_an_unknown_export_format_is_refused_by_name(tmp_path):
    with pytest.raises(UptakeError, match="'onnx'"):
        policy().export(tmp_path, "onnx")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UptakeError, match=r"model\.safetensors"):
        policy().export(tmp_path)

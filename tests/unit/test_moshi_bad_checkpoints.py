"""A folder that is not what it should be is one line: the file, what was found, what was expected, and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.policies.moshi.checkpoint import load_shape
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from tests.checkpoints import CARD, blur_codec, refused
from tests.tiny_moshi import config, tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    MoshiPolicy(MoshiModel(config(card=CARD)), blur_codec(), tokenizer()).export(tmp_path / "policy")
    return tmp_path / "policy"


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name, whose",
    [
        ("depth_decoder.lm_heads.weight", "transformers' MoshiForConditionalGeneration"),
        ("base_model.model.text_linear.lora_A.default.weight", "a PEFT adapter"),
        ("text_linear.lora_A.weight", "a LoRA adapter"),
        ("text_linear.weight_scb", "a quantised release"),
        ("depformer.slices.0.linear_in.weight", "moshi-mlx"),
        ("quantizer.rvq_first.input_proj.weight", "Mimi, a codec"),
    ],
)
def test_weights_of_another_layout_are_called_by_its_name(folder, name, whose):
    path = folder / "model.safetensors"
    save_file({name: torch.zeros(2)}, path)
    refused(folder, f"{path}: found weights of {whose}", name, "expected those of `moshi`")
    (folder / "config.json").unlink()
    refused(folder, f"{path}: found weights of {whose}")


def test_weights_without_a_config_that_are_no_moshi_or_of_no_released_size_are_refused(folder):
    path = folder / "model.safetensors"
    (folder / "config.json").write_text("{}")
    refused(folder, f"{path}: 16 audio streams", "widths 32 and 16", "add its config.json")
    save_file({"model.layers.0.weight": torch.zeros(2)}, path)
    refused(folder, f"{path}: no tensor 'text_emb.weight': found model.layers.0.weight")


def test_another_transformers_model_is_called_by_its_type(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "architectures": ["Llama"]}')
    refused(folder, "config.json: found a transformers model of type 'llama'", "expected a Moshi-class checkpoint")


def test_a_file_name_that_is_none_is_refused_and_one_that_is_null_is_left_out(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for key in ("moshi_name", "mimi_name", "tokenizer_name"):
        path.write_text(json.dumps(values | {key: ["a"]}))
        refused(folder, f"{path}: {key}=['a']: must be the name of a file")
    path.write_text(json.dumps(values | {"moshi_name": None, "tokenizer_name": None}))
    MoshiPolicy.load(folder, codec=blur_codec())
    path.write_text(json.dumps(values | {"lora": True, "lora_scaling": "x"}))
    refused(folder, f"{path}: lora_scaling='x': must be a number")


def test_weights_that_lie_on_the_hub_are_refused_by_name(folder):
    values = json.loads((folder / "config.json").read_text()) | {"moshi_name": "hf://kyutai/moshika/model.safetensors"}
    (folder / "config.json").write_text(json.dumps(values))
    refused(folder, "config.json: names hf://kyutai/moshika/model.safetensors", "download it")


def test_a_config_that_is_not_json_is_refused_with_its_line(folder):
    (folder / "config.json").write_text('{\n"dim": 32,\n')
    refused(folder, "config.json:3: not JSON")
    (folder / "config.json").write_text("[1]")
    refused(folder, "config.json: expected an object of settings, found list")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    refused(folder, "config.json: not JSON")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"dim": ' + "1" * 5000 + "}"])
def test_a_config_that_no_parser_takes_is_refused_by_name(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, f"{folder / 'config.json'}: not JSON of settings")


@pytest.mark.parametrize("value", [5, True, {"a": 1}])
def test_architectures_that_are_no_list_of_names_are_refused_by_name(folder, value):
    edit(folder, architectures=value)
    refused(folder, f"{folder / 'config.json'}: ", "'architectures'")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_by_its_key(folder, name):
    edit(folder, tokenizer_name=name)
    refused(folder, f"{folder / 'config.json'}: tokenizer_name=", "must be the name of a file")


@pytest.mark.parametrize("key", ["num_layers", "depformer_num_layers"])
def test_more_layers_than_any_network_has_are_refused_before_one_is_made(folder, key):
    edit(folder, **{key: 10**6})
    said = f"{folder / 'config.json'}: moshi config: {key}=1000000: must be a whole number of 1 or more, at most 1000"
    refused(folder, said)
    with pytest.raises(UptakeError, match=key):
        load_shape(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensor: tensor.to(torch.int8), "is int8, expected float64, float32, bfloat16, float16"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn, expected"),
        (lambda tensor: tensor * torch.inf, "has NaN or infinite values"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(folder, change, says):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"text_linear.weight": change(weights["text_linear.weight"])}, path)
    refused(folder, f"{path}: text_linear.weight {says}")


def test_embeddings_that_are_no_matrices_are_refused_by_name(folder):
    (folder / "config.json").unlink()
    save_file({"text_emb.weight": torch.zeros(4)}, folder / "model.safetensors")
    refused(folder, f"{folder / 'model.safetensors'}: embeddings or layers that are no matrices")


def test_an_adapter_s_missing_file_or_giant_scaling_is_refused_with_what_to_do(folder):
    edit(folder, lora=True)
    refused(folder, f"{folder / 'lora.safetensors'}: missing", "copy the file there or name it in", "as lora_name")
    edit(folder, lora_scaling=float("nan"))
    refused(folder, "config.json: lora_scaling=nan: must be a number")


def test_nothing_is_unpickled(folder, tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    names = ("model.safetensors", "tokenizer_spm.model", "config.json")
    for name in names:
        whole = (folder / name).read_bytes()
        torch.save(Bomb(), folder / name)
        refused(folder, name)
        (folder / name).write_bytes(whole)
    torch.save(Bomb(), folder / "model.pt")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.pt may be pickled and is never opened")
    assert not (tmp_path / "exploded").exists()

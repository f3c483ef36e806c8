"""MoshiConfig reads and writes the published config.json, and names what it does not understand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.policies.moshi.config import FIXED, MoshiConfig
from align.policies.moshi.model import MoshiModel
from envs.errors import UptakeError
from tests import tiny_moshi

RELEASED = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
    "moshi_name": "model.safetensors", "tokenizer_name": "tokenizer_spm_32k_3.model",
}  # fmt: skip


def test_a_released_config_survives_reading_and_writing():
    written = MoshiConfig.from_dict(RELEASED).to_dict()
    assert {key: written[key] for key in RELEASED} == RELEASED
    assert MoshiConfig.from_dict(json.loads(json.dumps(written))) == MoshiConfig.from_dict(RELEASED)


def test_an_unknown_key_is_told_with_the_nearest_known_one():
    with pytest.raises(UptakeError, match=r"'num_layer'.*'num_layers'"):
        MoshiConfig.from_dict(RELEASED | {"num_layer": 3})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"norm": "layer_norm"}, "norm='layer_norm'"),
        ({"fuser": {"sum": ["x"]}}, "fuser"),
        ({"delays": [0, 1]}, "delays has 2 entries"),
        ({"delays": [0] * 16 + [2]}, "only 0 and 1"),
        ({"delays": [1] + [0] * 16}, "text stream"),
        ({"dep_q": 17}, "dep_q=17"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"context": 0}, "context=0"),
        ({"depformer_dim_feedforward": [1, 2]}, r"depformer_dim_feedforward=\[1, 2\]: must be a whole number"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "schedule has 2 entries"),
        ({"depformer_weights_per_step_schedule": [0, 0, 1, 1, 2, 2, 3, 9]}, "indices below dep_q=8"),
        ({"num_heads": "4"}, "num_heads='4': must be a whole number of 1 or more"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"card": -1}, "card=-1"),
        ({"delays": None}, "delays=None: must be a list of whole numbers"),
        ({"context": "3000"}, "context='3000'"),
        ({"context": None}, "context=None"),
        ({"context": 12.5}, "context=12.5: must be a whole number"),
        ({"context": True}, "context=True"),
        ({"hidden_scale": None}, "hidden_scale=None: must be a number above 0"),
        ({"max_period": 0}, "max_period=0"),
        ({"hidden_scale": 10**400}, "no giant"),
        ({"existing_text_padding_id": 99999}, "existing_text_padding_id=99999: must be below text_card=32000"),
        ({"depformer_multi_linear": "yes"}, "depformer_multi_linear='yes': must be true or false"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(change, told):
    with pytest.raises(UptakeError, match=told):
        MoshiConfig.from_dict(RELEASED | change)


@pytest.mark.parametrize("key", ["conditioners", "fuser"])
def test_what_is_empty_is_left_out(key):
    assert MoshiConfig.from_dict(RELEASED | {key: {}}) == MoshiConfig.from_dict(RELEASED)


SMALL = tiny_moshi.config().to_dict()
NUMBERS = st.integers(-3, 40) | st.floats(-3, 40) | st.sampled_from([math.inf, -math.inf, math.nan, 1e308])
ANYTHING = (
    st.none() | st.booleans() | st.text(max_size=4) | NUMBERS | st.lists(st.integers(-2, 9) | NUMBERS, max_size=17)
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from([*SMALL, "depformer_weights_per_step_schedule", *FIXED]), value=ANYTHING | st.just({}))
def test_any_one_damaged_field_is_refused_by_name_or_makes_a_model(key, value):
    try:
        config = MoshiConfig.from_dict(SMALL | {key: value})
    except UptakeError as error:
        assert key in str(error) and "\n" not in str(error)
        return
    with torch.device("meta"):
        MoshiModel(config)
    assert MoshiConfig.from_dict(config.to_dict()) == config


def test_a_file_that_is_no_config_is_told_by_name_and_line(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UptakeError, match=r"config\.json: cannot be read"):
        MoshiConfig.load(path)
    path.write_text('{"dim": 32,\n oops}')
    with pytest.raises(UptakeError, match=r"config\.json:2: not JSON"):
        MoshiConfig.load(path)
    path.write_text("[1]")
    with pytest.raises(UptakeError, match=r"config\.json: expected an object"):
        MoshiConfig.load(path)
    path.write_text('{"dimm": 32}')
    with pytest.raises(UptakeError, match=r"config\.json: .*'dimm'"):
        MoshiConfig.load(path)

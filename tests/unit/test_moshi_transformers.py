"""Checkpoints of transformers: its classes compute what we compute, and back again."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from align.policies.moshi.checkpoint import find_layout, load_checkpoint
from align.policies.moshi.layouts.tokenizers import load_tokenizer, save_tokenizer
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from tests.checkpoints import CARD, CLOSE, blur_codec, codes, mimi_policy, refused, same_weights
from tests.random_mimi import random_mimi
from tests.tiny_moshi import TEXT_CARD, config, tokenizer


@torch.no_grad()
def equals_transformers(model: MoshiModel, theirs: Any, batch: torch.Tensor) -> None:
    """Our logits are those of transformers' classes.

    They want delayed codes behind the initial column. The depth decoder is asked frame by frame, outside of their
    forward (which pairs a hidden state with a frame that it has seen), with sdpa: under eager attention it is not
    causal, because it only builds a mask when it is given one.
    """
    c = model.config
    delayed = model.delay(batch)
    given = delayed[:, :, :-1]
    agent, user = given[:, 1 : 1 + c.dep_q], given[:, 1 + c.dep_q :]
    out = theirs(input_ids=given[:, 0], moshi_audio_codes=agent, user_audio_codes=user)
    hidden, text_logits = model.text_forward(batch)
    torch.testing.assert_close(text_logits, out.logits, **CLOSE)
    targets = delayed[:, : 1 + c.dep_q, 1:].transpose(1, 2).flatten(0, 1)  # (B·T, 1 + dep_q)
    assert theirs.depth_decoder.config._attn_implementation == "sdpa"
    expected = theirs.depth_decoder(
        input_ids=targets[:, :-1], last_hidden_state=out.last_hidden_state.flatten(0, 1)[:, None]
    ).logits
    torch.testing.assert_close(model.depth_scores(hidden, batch).logits, expected, **CLOSE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[MoshiPolicy, Path]:
    policy, folder = mimi_policy(), tmp_path_factory.mktemp("hf") / "out"
    policy.export(folder, "hf")
    return policy, folder


def theirs_of(folder: Path) -> Any:
    loaded, report = transformers.MoshiForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return loaded.eval()


def test_transformers_reads_an_exported_folder_and_computes_the_same(exported):
    policy, folder = exported
    assert find_layout(folder) == "hf"
    theirs = theirs_of(folder)
    equals_transformers(policy.model, theirs, codes())
    mimi = theirs.audio_encoder.state_dict()
    assert all(torch.equal(value, mimi[name]) for name, value in policy.codec.model.state_dict().items())


def test_a_transformers_model_is_read_and_computes_the_same(tmp_path):
    torch.manual_seed(3)
    mimi = random_mimi(CARD).model.config
    depth = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 44}
    config = transformers.MoshiConfig(
        vocab_size=TEXT_CARD, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=88,
        audio_encoder_config=mimi.to_dict(), depth_decoder_config=depth, sliding_window=50,
    )  # fmt: skip
    theirs = transformers.MoshiForConditionalGeneration(config).eval()
    for name, weight in theirs.named_parameters():  # theirs start so large that float32 has no 1e-5 left
        if weight.dim() > 1 and not name.startswith("audio_encoder."):
            weight.data.normal_().div_(weight.shape[-1] ** 0.5)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().serialized_model_proto())
    model, codec, _ = load_checkpoint(tmp_path)
    assert (model.config.context, codec.card) == (50, CARD)
    equals_transformers(model, theirs, codes())


def test_a_policy_comes_back_from_transformers_bit_by_bit(exported):
    policy, folder = exported
    model, codec, _ = load_checkpoint(folder)
    assert same_weights(model, policy.model)
    assert all(torch.equal(v, codec.model.state_dict()[n]) for n, v in policy.codec.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(codes()).text_logits, policy.model(codes()).text_logits)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_folder_with_only_tokenizer_json_has_the_same_tokenizer(tmp_path, kind):
    model = io.BytesIO()
    words = ["the quick brown fox jumps over a lazy dog", "pack my box with five dozen jugs", "how vexingly daft"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4), model_writer=model, vocab_size=330, model_type=kind, byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = spm.get_piece_size()
    save_tokenizer(tmp_path, spm)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_spm.model").unlink()
    rebuilt = load_tokenizer(tmp_path, pieces)
    for text in (*words, "vexing", "The Fox's 12 jugs", "naïve – ok"):
        assert rebuilt.encode(text) == spm.encode(text) == fast.encode(text), text
        assert rebuilt.decode(spm.encode(text)) == spm.decode(spm.encode(text))
    for token in range(pieces):
        assert rebuilt.id_to_piece(token) == spm.id_to_piece(token)
        for kind_of in ("is_control", "is_unknown", "is_byte"):
            assert getattr(rebuilt, kind_of)(token) == getattr(spm, kind_of)(token), (kind_of, token)
    assert (rebuilt.bos_id(), rebuilt.eos_id(), rebuilt.pad_id(), rebuilt.unk_id()) == (1, 2, 3, 0)


@pytest.mark.parametrize(
    "change, says",
    [({"delays": (0,) * 17}, "delays"), ({"depformer_multi_linear": False}, "depformer_multi_linear = False")],
)
def test_what_transformers_cannot_express_is_not_exported(tmp_path, change, says):
    with pytest.raises(UptakeError, match=says):
        mimi_policy(**change).export(tmp_path, "hf")


def test_a_codec_that_is_not_mimi_is_not_exported_to_transformers(tmp_path):
    policy = MoshiPolicy(MoshiModel(config(card=CARD)), blur_codec(), tokenizer())
    with pytest.raises(UptakeError, match="BlurCodec, expected Mimi"):
        policy.export(tmp_path, "hf")


@pytest.fixture
def transformers_folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "hf"))


def test_a_damaged_transformers_folder_is_refused_by_name(transformers_folder):
    path = transformers_folder / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(path).items()}  # not mapped from the file to be damaged
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(transformers_folder, f"{path}: truncated")
    save_file({name: value for name, value in whole.items() if "lm_heads" not in name}, path, {"format": "pt"})
    refused(transformers_folder, "1 tensors missing", "depth_decoder.lm_heads.weight")
    save_file(whole | {"speaker.weight": torch.zeros(2)}, path, {"format": "pt"})
    refused(transformers_folder, "1 tensors unknown", "speaker.weight")
    save_file(whole | {"depth_decoder.lm_heads.weight": torch.zeros(2, 2)}, path, {"format": "pt"})
    refused(transformers_folder, "transformers cannot load it")
    head = whole["decoder.lm_head.weight"]
    save_file(whole | {"decoder.lm_head.weight": head.to(torch.int8)}, path, {"format": "pt"})
    refused(transformers_folder, f"{path}: decoder.lm_head.weight is int8")
    path.unlink()
    (transformers_folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(transformers_folder, "no *.safetensors", "never opened")


@pytest.mark.parametrize(
    "part, change, says",
    [
        ("depth_decoder_config", {"num_hidden_layers": 10**6}, "depformer_num_layers=1000000"),
        ("audio_encoder_config", {"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000"),
        ("audio_encoder_config", {"upsampling_ratios": [8, 0]}, "ratios of upsampling [8, 0]"),
    ],
)
def test_a_transformers_config_with_sizes_that_cannot_be_is_refused_by_name(transformers_folder, part, change, says):
    path = transformers_folder / "config.json"
    values = json.loads(path.read_text())
    values[part] |= change
    path.write_text(json.dumps(values))
    refused(transformers_folder, f"{path}: ", says)


def test_a_transformers_folder_without_a_fitting_tokenizer_is_refused(transformers_folder):
    (transformers_folder / "tokenizer_spm.model").unlink()
    path = transformers_folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] = {"<unk>": 0, "a": 1}
    path.write_text(json.dumps(values | {"added_tokens": []}))
    refused(transformers_folder, f"{path}: found 2 pieces, expected 40")
    path.write_text('{"model": {"type": "WordPiece"}}')
    refused(transformers_folder, f"{path}: not a tokenizer made from sentencepiece")
    path.unlink()
    refused(transformers_folder, "no tokenizer")

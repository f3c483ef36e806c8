"""Checkpoints in and out of the published layouts: the original code computes what we compute, and back again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.policies.moshi.checkpoint import find_layout, load_checkpoint
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.layouts import kyutai
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling
from envs.errors import UptakeError
from tests.random_mimi import random_mimi
from tests.tiny_moshi import TEXT_CARD, BlurCodec, config, tokenizer

CARD = 32  # of random_mimi, which wants a power of two
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}


def released(**changes: Any) -> MoshiConfig:
    """Head sizes, context and delays as in the released checkpoints; one layer."""
    sizes = {"dim": 128, "num_layers": 1, "num_heads": 1, "context": 3000, "card": CARD, "depformer_dim": 64}
    return config(**(sizes | {"depformer_num_layers": 1, "depformer_num_heads": 1} | changes))


def mimi_policy(seed: int = 1, **changes: Any) -> MoshiPolicy:
    """A random policy that speaks through a Mimi."""
    return MoshiPolicy(MoshiModel(config(card=CARD, **changes), seed=seed), random_mimi(CARD), tokenizer(), Sampling())


def codes(frames: int = 14, batch: int = 2, card: int = CARD) -> torch.Tensor:
    """(B, 17, T) random codes."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(TEXT_CARD, (batch, 1, frames), generator=generator)
    return torch.cat((text, torch.randint(card, (batch, 16, frames), generator=generator)), dim=1)


def same_weights(ours: MoshiModel, theirs: MoshiModel) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def loaders():
    os.environ["NO_TORCH_COMPILE"] = "1"
    return pytest.importorskip("moshi.models.loaders")


@torch.no_grad()
def equals_theirs(model: MoshiModel, theirs: Any, batch: torch.Tensor) -> None:
    """Our logits are those of their `LMModel`, which may predict more streams than ours."""
    ours, expected = model(batch), theirs(batch)
    torch.testing.assert_close(ours.text_logits, expected.text_logits[:, 0], **CLOSE)
    steps = model.config.dep_q
    assert torch.equal(ours.audio_mask, expected.mask[:, :steps])
    theirs_audio = expected.logits[:, :steps][ours.audio_mask]
    torch.testing.assert_close(ours.audio_logits[ours.audio_mask], theirs_audio, **CLOSE)


def info(loaders, folder: Path, lora: str | None = None, weights: str | None = None) -> Any:
    """What `python -m moshi.server` reads, from local files only."""
    values = json.loads((folder / "config.json").read_text())
    with contextlib.chdir(folder):  # a Mimi of another shape than the released one is named relative to here
        return loaders.CheckpointInfo.from_hf_repo(
            "local/policy", weights or str(folder / "model.safetensors"), str(folder / values["mimi_name"]),
            str(folder / values["tokenizer_name"]), config_path=str(folder / "config.json"), lora_weights=lora,
        )  # fmt: skip


# -- kyutai ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_original_loader_reads_an_exported_folder_whole(tmp_path, loaders):
    policy = mimi_policy()
    policy.export(tmp_path)
    with contextlib.chdir(tmp_path):
        checkpoint = info(loaders, tmp_path)
        equals_theirs(policy.model, checkpoint.get_moshi(dtype=torch.float32), codes())
        mimi = checkpoint.get_mimi()
    heard = torch.randn(1, 1, 4 * 1920, generator=torch.Generator().manual_seed(0)) * 0.1
    state = policy.codec.init_state(1)
    ours = [torch.from_numpy(policy.codec.encode(state, frame.numpy())) for frame in heard[0].split(1920, dim=1)]
    assert torch.equal(mimi.encode(heard)[0], torch.cat(ours).T)
    assert checkpoint.get_text_tokenizer().encode("the fox") == policy.tokenizer.encode("the fox")


def test_a_policy_with_a_mimi_comes_back_whole(tmp_path):
    policy = mimi_policy()
    policy.export(tmp_path)
    model, codec, _ = load_checkpoint(tmp_path)
    assert same_weights(policy.model, model)
    theirs = codec.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in policy.codec.model.state_dict().items())


def pack(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of files from before `moshi` 0.2."""
    old = {".in_projs.": ".in_proj_weight", ".out_projs.": ".out_proj.weight"}
    names = {}  # in order, each once
    for name in weights:
        part = next((part for part in old if part in name), None)
        names[name if part is None else name.split(part)[0] + old[part]] = None
    return kyutai.packed_like(weights, names)


@torch.no_grad()
def test_older_packed_weights_are_split_as_the_original_loader_splits_them(tmp_path, loaders):
    policy = mimi_policy()
    policy.export(tmp_path)
    packed = pack(load_file(tmp_path / "model.safetensors"))
    assert "depformer.layers.0.self_attn.in_proj_weight" in packed
    assert "transformer.layers.1.self_attn.out_proj.weight" in packed
    save_file(packed, tmp_path / "model.safetensors")
    theirs = info(loaders, tmp_path).get_moshi(dtype=torch.float32)
    model = load_checkpoint(tmp_path)[0]
    assert same_weights(model, policy.model)
    equals_theirs(model, theirs, codes())


@pytest.mark.parametrize("content", [None, "", "{}", '{"mimi_name": "codec.safetensors"}'])
def test_a_folder_whose_config_says_nothing_is_read_by_the_sizes_of_its_weights(tmp_path, content):
    model = MoshiModel(released(), seed=2)
    MoshiPolicy(model, _codec(), tokenizer()).export(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert find_layout(tmp_path) == "kyutai"
    loaded, _, _ = load_checkpoint(tmp_path, _codec())
    assert same_weights(loaded, model)
    with torch.no_grad():
        assert torch.equal(loaded(codes()).text_logits, model(codes()).text_logits)


def _codec() -> BlurCodec:
    codec = BlurCodec()
    codec.card = CARD
    return codec


def test_the_released_sizes_are_recognised_from_their_weights(tmp_path):
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in MoshiModel(MoshiConfig()).named_parameters()}
    from align.policies.moshi.layouts.shapes import _config_of_shapes

    found = _config_of_shapes(wanted, {})
    assert found.feedforward == 4.125 * 4096 and found.depth_feedforward == 4.125 * 1024
    assert MoshiConfig(depformer_dim_feedforward=4224) == found


# -- LoRA --------------------------------------------------------------------------------------------------------------


def adapt(model: MoshiModel, rank: int = 3, seed: int = 0) -> None:
    """Change some linear layers by a matrix of low rank, as merged LoRA training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "transformer.layers" in name and "_proj" in name:
                out, into = weight.shape
                low = torch.randn(rank, into, generator=generator)
                weight += 0.02 * torch.randn(out, rank, generator=generator) @ low


@pytest.fixture
def adapted(tmp_path) -> tuple[MoshiPolicy, Path, Path]:
    policy = mimi_policy()
    base, out = tmp_path / "base", tmp_path / "adapter"
    policy.export(base)
    adapt(policy.model)
    policy.export(out, "kyutai-lora", base=base)
    return policy, base, out


@pytest.mark.parametrize("fuse", [True, False])
def test_the_original_loader_adds_an_exported_adapter_to_its_base(adapted, loaders, fuse):
    policy, base, out = adapted
    checkpoint = info(loaders, out, str(out / "lora.safetensors"), str(base / "model.safetensors"))
    theirs = checkpoint.get_moshi(dtype=torch.float32, fuse_lora=fuse)
    equals_theirs(policy.model, theirs, codes())


def test_an_adapter_is_no_larger_than_what_was_learned_and_comes_back(adapted):
    policy, _, out = adapted
    values = json.loads((out / "config.json").read_text())
    assert (values["lora"], values["lora_rank"]) == (True, 3)
    adapter = load_file(out / "lora.safetensors")
    untouched = adapter["text_linear.lora_A.weight"], adapter["text_linear.lora_B.weight"]
    assert not untouched[0].any() and not untouched[1].any()
    assert find_layout(out) == "kyutai-lora"
    loaded = load_checkpoint(out)[0].state_dict()
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=2e-6)


@torch.no_grad()
def test_weights_that_no_adapter_holds_travel_with_it(tmp_path, loaders):
    policy = mimi_policy()
    policy.export(tmp_path / "base")
    policy.model.text_emb.weight[5] += 1
    policy.model.out_norm.alpha += 0.5
    policy.export(tmp_path / "out", "kyutai-lora", base=tmp_path / "base")
    checkpoint = info(
        loaders, tmp_path / "out", str(tmp_path / "out/lora.safetensors"), str(tmp_path / "base/model.safetensors")
    )
    equals_theirs(policy.model, checkpoint.get_moshi(dtype=torch.float32), codes())
    assert same_weights(load_checkpoint(tmp_path / "out")[0], policy.model)


def test_an_adapter_that_leaves_layers_out_is_read(adapted):
    policy, _, out = adapted
    adapter = load_file(out / "lora.safetensors")
    kept = {name: value for name, value in adapter.items() if name.startswith("transformer.")}
    assert len(kept) < len(adapter)
    save_file(kept, out / "lora.safetensors")
    loaded = load_checkpoint(out)[0].state_dict()
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=2e-6)


def test_a_policy_trained_in_full_is_not_exported_as_an_adapter(tmp_path):
    policy = mimi_policy()
    policy.export(tmp_path / "base")
    other = mimi_policy(seed=2)
    with pytest.raises(UptakeError, match="more than 16 of its 32 dimensions"):
        other.export(tmp_path / "out", "kyutai-lora", base=tmp_path / "base")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"speaker.lora_A.weight": torch.zeros(3, 2)}, ("speaker", "PEFT")),
        ({"text_linear.lora_B.weight": torch.zeros(40, 9)}, ("text_linear", "(3, 32)", "(40, 9)")),
        ({"text_linear.lora_A.weight": torch.zeros(3, 7)}, ("text_linear", "(40, 7)", "(40, 32)")),
        ({"text_linear.lora_A.weight": torch.full((3, 32), torch.nan)}, ("text_linear", "NaN")),
        ({"text_emb.weight": torch.zeros(2, 2)}, ("text_emb", "(2, 2)", "(41, 32)")),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(adapted, change, says):
    _, _, out = adapted
    save_file(load_file(out / "lora.safetensors") | change, out / "lora.safetensors")
    refused(out, "lora.safetensors", *says)


def test_an_adapter_without_its_base_is_refused_by_name(adapted):
    _, base, out = adapted
    (base / "model.safetensors").unlink()
    refused(out, str(base / "model.safetensors"), "LoRA adapter", "moshi_name")


# -- PersonaPlex -------------------------------------------------------------------------------------------------------


@pytest.fixture
def personaplex(tmp_path) -> tuple[MoshiModel, Path]:
    """A folder as `nvidia/personaplex-7b-v1` is published: empty config, packed names, 16 depth steps."""
    whole = MoshiModel(released(dep_q=16), seed=4)
    folder = tmp_path / "personaplex"
    folder.mkdir()
    save_file(pack(dict(whole.state_dict())), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_spm_32k_3.model").write_bytes(tokenizer().serialized_model_proto())
    return whole, folder


def original(loaders, model: MoshiModel, weights: dict[str, torch.Tensor]) -> Any:
    theirs = loaders.LMModel(**model.config.to_dict())
    theirs.load_state_dict(weights)
    return theirs


def test_personaplex_speaks_alike_without_the_user_s_depth_steps(personaplex, loaders):
    whole, folder = personaplex
    assert find_layout(folder) == "personaplex"
    model, _, _ = load_checkpoint(folder, _codec())
    assert (model.config.dep_q, model.config.n_q) == (8, 16)
    equals_theirs(model, original(loaders, whole, load_file(folder / "model.safetensors")), codes())


def test_personaplex_is_given_back_as_it_was_but_for_what_was_trained(personaplex, tmp_path, loaders):
    whole, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, _codec()))
    policy.export(tmp_path / "same", "personaplex", base=folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    adapt(policy.model)
    adapt(policy.model, seed=1)
    policy.export(tmp_path / "out", "personaplex", base=folder)
    assert (tmp_path / "out" / "tokenizer_spm_32k_3.model").is_file()
    trained = load_file(tmp_path / "out" / "model.safetensors")
    equals_theirs(policy.model, original(loaders, whole, trained), codes())
    users = [name for name in before if any(f".{k}." in name for k in range(8, 16)) and not name.startswith("emb.")]
    assert users and all(torch.equal(before[name], trained[name]) for name in users)
    again, _, _ = load_checkpoint(tmp_path / "out", _codec())
    assert same_weights(again, policy.model)


def test_personaplex_is_not_written_without_the_folder_that_it_came_from(personaplex, tmp_path):
    _, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, _codec()))
    with pytest.raises(UptakeError, match="--base"):
        policy.export(tmp_path / "out", "personaplex")
    with pytest.raises(UptakeError, match="no such checkpoint folder"):
        policy.export(tmp_path / "out", "personaplex", base=tmp_path / "nowhere")
    with pytest.raises(UptakeError, match="write to another folder"):
        policy.export(folder, "personaplex", base=folder)
    policy.export(tmp_path / "moshi")
    with pytest.raises(UptakeError, match="found 8 depth steps for 16 audio streams"):
        policy.export(tmp_path / "out", "personaplex", base=tmp_path / "moshi")
    other = MoshiPolicy(MoshiModel(released(num_layers=2)), _codec(), tokenizer())
    with pytest.raises(UptakeError, match=r"transformer\.layers\.1.*found None"):
        other.export(tmp_path / "out", "personaplex", base=folder)


# -- transformers ------------------------------------------------------------------------------------------------------


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
    transformers = pytest.importorskip("transformers")
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
    transformers = pytest.importorskip("transformers")
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
    import io

    import sentencepiece

    from align.policies.moshi.layouts.tokenizers import load_tokenizer, save_tokenizer

    model = io.BytesIO()
    words = ["the quick brown fox jumps over a lazy dog", "pack my box with five dozen jugs", "how vexingly daft"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4), model_writer=model, vocab_size=330, model_type=kind, byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = spm.get_piece_size()
    save_tokenizer(tmp_path, spm)
    transformers = pytest.importorskip("transformers")
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
    policy = MoshiPolicy(MoshiModel(config(card=CARD)), _codec(), tokenizer())
    with pytest.raises(UptakeError, match="BlurCodec, expected Mimi"):
        policy.export(tmp_path, "hf")


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(folder: Path, *words: str) -> None:
    """Loading ends in one line that has the words."""
    with pytest.raises(UptakeError) as caught:
        load_checkpoint(folder, _codec())
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told


@pytest.fixture
def folder(tmp_path) -> Path:
    MoshiPolicy(MoshiModel(config(card=CARD)), _codec(), tokenizer()).export(tmp_path / "policy")
    return tmp_path / "policy"


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


@pytest.fixture
def transformers_folder(exported, tmp_path) -> Path:
    import shutil

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
    path.unlink()
    (transformers_folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(transformers_folder, "no *.safetensors", "never opened")


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

"""Checkpoints of the `moshi` package, LoRA and PersonaPlex: its code computes what we compute, and back again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.codecs.pocket import shipped
from align.lora import adapters, add_lora, merge_lora
from align.policies.moshi.checkpoint import find_layout, load_checkpoint, load_shape, save_checkpoint
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.layouts import kyutai
from align.policies.moshi.layouts.kyutai import read_adapter
from align.policies.moshi.layouts.shapes import config_of_shapes
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from tests.checkpoints import CLOSE, blur_codec, codes, mimi_policy, refused, released, same_weights
from tests.tiny_moshi import tokenizer


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


@pytest.mark.parametrize("layout", ["kyutai", "hf"])
def test_every_exported_file_can_be_read_by_the_same_people(tmp_path, layout):
    mimi_policy().export(tmp_path, format=layout)
    shipped().save(tmp_path / "codec.safetensors")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


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
    MoshiPolicy(model, blur_codec(), tokenizer()).export(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert find_layout(tmp_path) == "kyutai"
    loaded, _, _ = load_checkpoint(tmp_path, blur_codec())
    assert same_weights(loaded, model)
    with torch.no_grad():
        assert torch.equal(loaded(codes()).text_logits, model(codes()).text_logits)


def test_the_released_sizes_are_recognised_from_their_weights(tmp_path):
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in MoshiModel(MoshiConfig()).named_parameters()}
    found = config_of_shapes(wanted, {})
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


def learn(model: MoshiModel, seed: int = 0) -> None:
    """Put adapters into a model, as a run does, that have learned something small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():  # the adapters' first values, whatever was drawn before
        torch.manual_seed(seed)
        add_lora(model, r"transformer\.layers\..*", r=3, alpha=6)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.up.copy_(1e-3 * torch.randn(adapter.up.shape, generator=generator))


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


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_travel_as_they_are_from_the_run_s_folder_whatever_the_precision(tmp_path, loaders, saved, trained):
    base, run, out = (tmp_path / name for name in ("base", "run", "out"))
    mimi_policy().export(base, dtype=saved)
    policy = MoshiPolicy(*load_checkpoint(base))
    policy.model.to(trained)
    learn(policy.model)
    policy.export(run)
    loaded, codec, pieces = load_checkpoint(run)
    save_checkpoint(out, loaded, codec, pieces, torch.float32, "kyutai-lora", base, read_adapter(run))
    policy.export(tmp_path / "direct", "kyutai-lora", base=base)  # the adapters are in the model: the same
    written = load_file(out / "lora.safetensors")
    assert (out / "lora.safetensors").read_bytes() == (tmp_path / "direct/lora.safetensors").read_bytes()
    for name, adapter in adapters(policy.model).items():
        assert torch.equal(written[f"{name}.lora_A.weight"], adapter.down.float())
        assert torch.equal(written[f"{name}.lora_B.weight"], 2 * adapter.up.float())
    assert not written["text_linear.lora_B.weight"].any()
    weights = str(base / "model.safetensors")
    theirs = info(loaders, out, str(out / "lora.safetensors"), weights).get_moshi(dtype=torch.float32, fuse_lora=False)
    same = saved == torch.bfloat16 or trained == torch.float32  # else the run began with other weights than the base's
    if same:
        equals_theirs(loaded, theirs, codes())


@pytest.mark.parametrize("layout", ["kyutai", "hf"])
def test_adapters_in_the_model_are_merged_into_what_is_written(tmp_path, layout):
    policy = mimi_policy()
    learn(policy.model)
    policy.export(tmp_path / "out", layout)
    assert len(adapters(policy.model)) == 8, "and stay in it"
    merge_lora(policy.model)
    assert same_weights(load_checkpoint(tmp_path / "out", blur_codec())[0], policy.model)


def test_adapters_of_another_base_are_found_again_from_the_weights(tmp_path):
    """A second run began where a first one ended: since the first one's base, both have learned."""
    mimi_policy().export(tmp_path / "base")
    for start, end in (("base", "run0"), ("run0", "run1")):
        policy = MoshiPolicy(*load_checkpoint(tmp_path / start))
        learn(policy.model, seed=int(end[-1]))
        policy.export(tmp_path / end)
    loaded, codec, pieces = load_checkpoint(tmp_path / "run1")
    learned = read_adapter(tmp_path / "run1")
    save_checkpoint(tmp_path / "out", loaded, codec, pieces, torch.float32, "kyutai-lora", tmp_path / "base", learned)
    assert json.loads((tmp_path / "out/config.json").read_text())["lora_rank"] == 6
    again = load_checkpoint(tmp_path / "out")[0].state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=2e-6)


def test_a_policy_whose_weights_were_rounded_since_is_refused_with_where_to_export_from(tmp_path):
    policy = mimi_policy()
    policy.export(tmp_path / "base", dtype=torch.bfloat16)
    policy = MoshiPolicy(*load_checkpoint(tmp_path / "base"))
    adapt(policy.model)
    policy.export(tmp_path / "rounded", dtype=torch.bfloat16)
    rounded = MoshiPolicy(*load_checkpoint(tmp_path / "rounded"))
    with pytest.raises(UptakeError, match=r"its weights were rounded since .export from the run's own folder."):
        rounded.export(tmp_path / "out", "kyutai-lora", base=tmp_path / "base")


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


def test_the_sizes_of_every_layout_are_known_without_reading_a_weight(adapted, personaplex, tmp_path):
    policy, base, adapter = adapted
    policy.export(tmp_path / "hf", "hf")
    for folder in (base, adapter, tmp_path / "hf", personaplex[1]):
        model, _, _ = load_checkpoint(folder, blur_codec() if folder == personaplex[1] else None)
        found = load_shape(folder)
        assert all(p.is_meta for p in found.parameters())
        assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def original(loaders, model: MoshiModel, weights: dict[str, torch.Tensor]) -> Any:
    theirs = loaders.LMModel(**model.config.to_dict())
    theirs.load_state_dict(weights)
    return theirs


def test_personaplex_speaks_alike_without_the_user_s_depth_steps(personaplex, loaders):
    whole, folder = personaplex
    assert find_layout(folder) == "personaplex"
    model, _, _ = load_checkpoint(folder, blur_codec())
    assert (model.config.dep_q, model.config.n_q) == (8, 16)
    equals_theirs(model, original(loaders, whole, load_file(folder / "model.safetensors")), codes())


def test_personaplex_is_given_back_as_it_was_but_for_what_was_trained(personaplex, tmp_path, loaders):
    whole, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, blur_codec()))
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
    again, _, _ = load_checkpoint(tmp_path / "out", blur_codec())
    assert same_weights(again, policy.model)


def test_personaplex_is_given_back_with_adapters_merged(personaplex, tmp_path):
    _, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, blur_codec()))
    learn(policy.model)
    policy.export(tmp_path / "out", "personaplex", base=folder)
    merge_lora(policy.model)
    assert same_weights(load_checkpoint(tmp_path / "out", blur_codec())[0], policy.model)


def test_personaplex_is_not_written_without_the_folder_that_it_came_from(personaplex, tmp_path):
    _, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, blur_codec()))
    with pytest.raises(UptakeError, match="--base"):
        policy.export(tmp_path / "out", "personaplex")
    with pytest.raises(UptakeError, match="no such checkpoint folder"):
        policy.export(tmp_path / "out", "personaplex", base=tmp_path / "nowhere")
    with pytest.raises(UptakeError, match="write to another folder"):
        policy.export(folder, "personaplex", base=folder)
    policy.export(tmp_path / "moshi")
    with pytest.raises(UptakeError, match="found 8 depth steps for 16 audio streams"):
        policy.export(tmp_path / "out", "personaplex", base=tmp_path / "moshi")
    other = MoshiPolicy(MoshiModel(released(num_layers=2)), blur_codec(), tokenizer())
    with pytest.raises(UptakeError, match=r"transformer\.layers\.1.*found None"):
        other.export(tmp_path / "out", "personaplex", base=folder)


def test_a_config_that_claims_the_user_s_depth_steps_is_refused_where_the_weights_have_none(personaplex, tmp_path):
    _, folder = personaplex
    policy = MoshiPolicy(*load_checkpoint(folder, blur_codec()))
    policy.export(tmp_path / "moshi")
    config = tmp_path / "moshi" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dep_q": 16}))
    path = tmp_path / "moshi" / "model.safetensors"
    refused(tmp_path / "moshi", f"{path}: depformer", "found nothing", "with dep_q = 16", "set it to 8")
    with pytest.raises(UptakeError, match=r"model\.safetensors: depformer.*: found nothing, expected"):
        policy.export(tmp_path / "out", "personaplex", base=tmp_path / "moshi")
    assert not (tmp_path / "out").exists()


def test_the_user_s_depth_steps_of_other_sizes_are_refused_by_name(personaplex):
    _, folder = personaplex
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"linears.12.weight": torch.zeros(3, 5)}, path)
    refused(folder, f"{path}: linears.12.weight: found (3, 5), expected (32, 64)")

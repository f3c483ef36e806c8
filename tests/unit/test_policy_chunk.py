"""The chunk-decision policy: the contract, its clock, and what is legal when."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.policies import checks
from align.policies.chunk.config import ChunkConfig
from align.policies.chunk.model import ChunkModel, legal
from align.policies.chunk.policy import ChunkPolicy
from align.policies.sampling import Sampling
from envs.errors import UptakeError
from tests.tiny_moshi import CARD, TEXT_CARD, BlurCodec, tokenizer

SIZES = {
    "card": CARD, "text_card": TEXT_CARD, "dim": 32, "num_layers": 2, "num_heads": 4, "feedforward": 64,
    "talker_dim": 16, "context": 16,
}  # fmt: skip


def tiny(sampling=None, seed=3, **changes):
    config = ChunkConfig(**(SIZES | changes))
    return ChunkPolicy(ChunkModel(config, seed), BlurCodec(), tokenizer(), sampling or Sampling(0.9, 12, 0.8, 10))


@pytest.mark.parametrize("changes", [{}, {"context": 200}, {"chunk": 1}], ids=str)
def test_the_chunk_policy_passes_every_check(changes):
    policy = tiny(**changes)
    prompt = np.full(14, -2)
    prompt[4], prompt[5], prompt[9] = policy.model.config.response, 7, policy.model.config.silent
    checks.check_policy(
        policy,
        load=lambda folder: ChunkPolicy.load(folder, policy.sampling, policy.codec),
        frames=32,
        prompt=prompt if policy.model.config.chunk == 5 else None,
    )


def lived(policy, frames=60, rows=4):
    policy.reset(np.ones(rows, bool), range(rows))
    steps = checks.play(policy, checks.noise_user(policy, rows, frames))
    return steps, policy.trajectory()


def test_what_several_rows_hear_is_encoded_once(monkeypatch):
    policy, encoded = tiny(), []
    encode = policy.codec.encode
    monkeypatch.setattr(policy.codec, "encode", lambda state, pcm: encoded.append(len(pcm)) or encode(state, pcm))
    policy.reset(np.ones(4, bool), range(4))
    user = checks.noise_user(policy, 1, 20).repeat(4, axis=1)  # (20, 4, frame)
    user[10:, 3] *= 0.5
    checks.play(policy, user)
    assert encoded == [1] * 10 + [2] * 10
    together = policy.trajectory().codes[:, -policy.codec.codebooks :]
    policy.reset(np.ones(1, bool), [3])
    checks.play(policy, user[:, 3:])
    assert torch.equal(policy.trajectory().codes[0, -policy.codec.codebooks :], together[3])


def test_every_fifth_frame_decides_and_only_a_response_is_followed_by_text():
    policy = tiny(Sampling(1.0, 0, 0.8, 0))
    c = policy.model.config
    steps, trajectory = lived(policy)
    assert {c.silent, c.response} <= set(trajectory.codes[:, 0].flatten().tolist())
    for text, agent in zip(trajectory.codes[:, 0].tolist(), trajectory.codes[:, 1].tolist(), strict=True):
        responding = False
        for t, token in enumerate(text):
            if t % 5 == 4:
                assert token in (c.silent, c.response)
                responding = token == c.response
            elif responding:
                assert 0 <= token and token not in (c.silent, c.response)
                responding = token != c.end
            else:
                assert token == -1
            assert (agent[t] >= 0) == responding
    assert any(step.text[0] for step in steps)


class Amnesiac(ChunkPolicy):
    """Scores as if every token were legal everywhere."""

    def score(self, trajectory, full=False):
        import align.policies.chunk.policy as module

        kept, module.legal = module.legal, lambda config, text: torch.ones(*text.shape, config.vocab, dtype=torch.bool)
        try:
            return super().score(trajectory, full)
        finally:
            module.legal = kept


def test_a_scorer_that_forgets_what_is_legal_is_caught():
    good = tiny(Sampling(0.9, 0, 0.8, 0))
    checks.check_streaming_equals_scoring(good, 32)
    with pytest.raises(AssertionError, match="sampler and scorer differ"):
        checks.check_streaming_equals_scoring(Amnesiac(good.model, good.codec, good.tokenizer, good.sampling), 32)


def test_the_decoder_rests_in_silence_and_never_stops_listening():
    policy = tiny()
    silent = policy.model.config.silent
    policy.reset(np.ones(2, bool), [1, 2], [np.where(np.arange(60) % 5 == 4, silent, -2)] * 2)
    user = checks.noise_user(policy, 2, 60)
    steps = checks.play(policy, user)
    assert (policy._stream.positions == 12).all(), "one position a chunk"
    assert not any(step.audio.any() for step in steps)
    # While it speaks, all that is heard still reaches it: the user's codes stand in every column.
    _, trajectory = lived(policy)
    assert (trajectory.codes[:, 9:] >= 0).all()


def test_in_bf16_decisions_text_and_codes_are_drawn_from_logits_in_fp32_and_scored_alike():
    policy = tiny(Sampling(1.0, 0, 0.8, 0), context=64)
    policy.model.to(torch.bfloat16)
    model, given = policy.model, []
    for head in (model.text_linear, *model.talker.heads):
        head.register_forward_hook(lambda head, x, logits: given.append((head, x[0], logits)))
    _, trajectory = lived(policy)
    with torch.no_grad():
        scores = policy.score(trajectory)
        model.speak(scores.hidden, trajectory.codes[:, 0], trajectory.codes[:, 1:9], torch.zeros(8, dtype=torch.long))
    assert {head for head, _, _ in given} == {model.text_linear, *model.talker.heads}
    rounded = 0
    for head, x, logits in given:
        bias = 0.0 if head.bias is None else head.bias.float()
        torch.testing.assert_close(logits, x.float() @ head.weight.float().T + bias, rtol=0, atol=1e-5)
        rounded += torch.equal(logits, logits.bfloat16().float())
    assert rounded < len(given) / 2
    assert (scores.logp - trajectory.sampler_logp)[trajectory.valid].abs().mean() < 5e-3


def test_a_response_ends_without_a_click_and_then_there_is_silence():
    policy = tiny()
    c = policy.model.config
    script = np.full(30, -2)
    script[4], script[5:9], script[9::5] = c.response, 7, c.silent
    policy.reset(np.ones(1, bool), [1], [script])
    steps = checks.play(policy, checks.noise_user(policy, 1, 30))
    sounding = [n for n, step in enumerate(steps) if step.audio.any()]
    # Five frames of speech; in the sixth this codec comes down to silence, and there it stays.
    assert sounding == [4, 5, 6, 7, 8, 9]
    last = np.abs(steps[9].audio[0])
    assert last[0] > 0 and last[-1] < 1e-6


def test_what_is_legal_is_a_decision_or_text_never_both():
    c = ChunkConfig(**SIZES)
    allowed = legal(c, torch.zeros(1, 10, dtype=torch.long))[0]
    assert allowed[4].nonzero().flatten().tolist() == [c.silent, c.response]
    assert not allowed[3, [c.silent, c.response]].any() and allowed[3].sum() == c.vocab - 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.zeros((2, 3)), "shape"),
        (np.array([99]), "outside of the vocabulary"),
        (np.array([-2, -2, -2, -2, 7]), "token 7 in frame 4, where only a decision"),
        (np.array([TEXT_CARD]), "frame 0, where only text"),
    ],
)
def test_a_prompt_that_cannot_be_is_named(prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny().reset(np.ones(1, bool), [1], [prompt])


def test_a_folder_that_does_not_fit_is_one_clear_line(tmp_path):
    policy = tiny()
    policy.export(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"dimm": 3}, "did you mean 'dim'"),
        ({"num_heads": 5}, "dim = 32: must be a multiple"),
        ({"num_layers": 3}, "another shape"),
        ({"chunk": 0}, "chunk = 0"),
        ({"num_layers": 10**6}, "num_layers = 1000000"),
        ({"dim": 32 * 10**4}, "another shape"),
        ({"model_type": "x"}, "model_type"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | change))
        with pytest.raises(UptakeError, match=message) as error:
            ChunkPolicy.load(tmp_path, codec=policy.codec)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(values))
    weights = load_file(tmp_path / "model.safetensors")
    head = weights["text_linear.weight"]
    for change, message in ((head * torch.nan, "NaN or infinite"), (head.to(torch.int8), "is int8, expected")):
        save_file(weights | {"text_linear.weight": change}, tmp_path / "model.safetensors")
        with pytest.raises(UptakeError, match=rf"model\.safetensors: text_linear\.weight .*{message}"):
            ChunkPolicy.load(tmp_path, codec=policy.codec)
    with pytest.raises(UptakeError, match="do not belong together"):
        ChunkPolicy(ChunkModel(ChunkConfig(**(SIZES | {"card": 9}))), BlurCodec(), tokenizer())

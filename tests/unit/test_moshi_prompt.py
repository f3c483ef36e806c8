"""A prompt is lived through before the conversation: exactly as PersonaPlex does, ragged, and never an action."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sentencepiece import SentencePieceProcessor as Tokenizer
from sentencepiece import SentencePieceTrainer

from align.policies.checks import check_policy, noise_user, play
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.prompt import SILENCE, SINE, PromptConfig, load_voice, make_prompt, persona, silence
from align.policies.sampling import SAMPLE, Sampling
from align.rollout import check_context
from envs.errors import UptakeError
from tests import tiny_moshi

MIMI = {"card": 2048, "context": 80}  # the vocabulary that PersonaPlex' prompts are written in
GREEDY = Sampling(text_top_k=1, audio_top_k=1)
ALL = np.ones(3, bool)
ROLE = [7, 20, 21, 22]


class WideCodec(tiny_moshi.BlurCodec):
    card = 2048


def policy(sampling: Sampling | None = None) -> MoshiPolicy:
    return MoshiPolicy(MoshiModel(tiny_moshi.config(**MIMI), seed=1), WideCodec(), tiny_moshi.tokenizer(), sampling)


def wrapper_tokenizer() -> Tokenizer:
    """One that also has pieces for the wrapper of a role."""
    made, words = io.BytesIO(), ["<system> the quick brown fox jumps over a lazy dog <system>"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4), model_writer=made, vocab_size=48, model_type="bpe", unk_id=0, bos_id=1,
        eos_id=2, pad_id=3, minloglevel=2,
    )  # fmt: skip
    return Tokenizer(model_proto=made.getvalue())


def voice(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2048, (8, frames))


def prompts(p: MoshiPolicy) -> list[np.ndarray]:
    """Three of different length: with a voice, without, and with a longer role."""
    c = p.model.config
    return [persona(c, ROLE, voice(3)), persona(c, ROLE[:1], None), persona(c, ROLE * 2, None)]


def test_the_order_is_voice_spacer_role_spacer_under_a_tone():
    p = policy()
    found = persona(p.model.config, ROLE, voice(3))
    pad = p.model.config.existing_text_padding_id
    assert found.shape == (17, 3 + 6 + 4 + 6 - 1)
    assert found[0].tolist() == [pad] * 8 + ROLE + [pad] * 6
    assert np.array_equal(found[1:9, :2], voice(3)[:, 1:])
    assert (found[1:9, 2:] == np.array(SILENCE)[:, None]).all()
    assert (found[9:] == np.array(SINE)[:, None]).all()


@torch.no_grad()
def test_ragged_prompts_give_the_tokens_of_the_published_generator_each_row_alone():
    """The published code is lockstep; `moshi` 0.2.13 runs rows out of step, and its hooks force the prompt's tokens.

    In its clock step o writes column o + 1: the prompt's frame o + 1 of the streams without delay, frame o of those
    with one.
    """
    os.environ["NO_TORCH_COMPILE"] = "1"
    lm = pytest.importorskip("moshi.models.lm")
    p = policy(GREEDY)
    theirs = lm.LMModel(**p.model.config.to_dict()).eval()
    theirs.load_state_dict(p.model.state_dict())
    ours = prompts(p)
    told = [np.concatenate((np.full((17, 1), 5), one), axis=1) for one in ours]  # with the frame that has no effect
    lengths = np.array([one.shape[1] for one in told])
    user = np.random.default_rng(1).integers(0, 2048, (12, 3, 8))

    executed = np.zeros(3, int)
    on = np.ones(3, bool)

    def on_text(text: torch.Tensor) -> None:
        for row in np.flatnonzero(on & (executed <= lengths - 2)):
            text[row] = told[row][0, executed[row] + 1]

    def on_audio(audio: torch.Tensor) -> None:
        for row in np.flatnonzero(on):
            if executed[row] <= lengths[row] - 2:
                audio[row, 0] = told[row][1, executed[row] + 1]
            if executed[row] <= lengths[row] - 1:
                audio[row, 1:] = torch.from_numpy(told[row][2:9, executed[row]])

    generator = lm.LMGen(
        theirs, use_sampling=False, support_out_of_sync=True, on_text_hook=on_text, on_audio_hook=on_audio
    )
    spoken = []
    with generator.streaming(3):
        for step in range(lengths.max() + len(user)):
            on = step >= lengths.max() - lengths
            generator.set_exec_mask(torch.from_numpy(on))
            tone = np.array(SINE)[None].repeat(3, axis=0)
            codes = tone if step < lengths.max() else user[step - lengths.max()]
            out = generator.step(torch.from_numpy(codes)[:, :, None])[:, :, 0]
            executed += on
            if step >= lengths.max():
                spoken.append(out)

    heard = iter(user)
    p.codec.encode = lambda state, pcm: next(heard)  # the user's codes as they are
    p.reset(ALL, [1, 2, 3], prompts=ours)
    for _ in user:
        p.step(np.arange(3, dtype=np.float32)[:, None].repeat(1920, axis=1))  # rows that hear the same are one
    t = p.trajectory()
    # The first call speaks the frame that the prompt's last call began: the last column of what was lived.
    begun = torch.stack([t.lived[row, :9, lengths[row] - 1] for row in range(3)])
    said = torch.cat((begun[:, :, None], t.codes[:, :9, : len(user) - 1]), dim=2)
    assert torch.equal(torch.stack(spoken, dim=2), said)


def test_rows_with_prompts_of_different_length_are_as_if_each_were_alone():
    p = policy()
    ours, user = prompts(p), noise_user(p, 3, 10)
    p.reset(ALL, [1, 2, 3], prompts=ours)
    steps = play(p, user)
    together = p.trajectory()
    for row in range(3):
        p.reset(np.ones(1, bool), [row + 1], prompts=[ours[row]])
        alone = play(p, user[:, row : row + 1])
        t = p.trajectory()
        assert torch.equal(t.codes[0], together.codes[row])
        assert all(np.array_equal(a.audio[0], b.audio[row]) for a, b in zip(alone, steps, strict=True))


def test_the_conversations_frames_are_the_trajectorys_and_what_was_lived_is_no_action():
    p = policy()
    ours = prompts(p)
    p.reset(ALL, [1, 2, 3], prompts=[ours[0], None, ours[2]])
    play(p, noise_user(p, 3, 10))
    t = p.trajectory()
    assert t.codes.shape == (3, 17, 10)
    assert t.valid.all()
    assert t.lived_frames.tolist() == [ours[0].shape[1] + 1, 0, ours[2].shape[1] + 1]
    assert np.array_equal(t.lived[0, :, : ours[0].shape[1]], ours[0])
    assert (t.lived[1] == -1).all()
    scores = p.score(t)
    torch.testing.assert_close(scores.logp.detach(), t.sampler_logp, rtol=0, atol=1e-4)
    part = p.score(t.rows([2]))
    torch.testing.assert_close(part.logp, scores.logp[[2]], rtol=0, atol=1e-5)


def test_garbage_in_the_padding_of_what_was_lived_changes_nothing():
    p = policy()
    ours = prompts(p)
    p.reset(ALL, [1, 2, 3], prompts=ours)
    play(p, noise_user(p, 3, 6))
    t = p.trajectory()
    before = p.score(t).logp
    for row in range(3):
        t.lived[row, :, t.lived_frames[row] :] = 9
    assert torch.equal(p.score(t).logp, before)


@pytest.mark.parametrize("kind", ["persona", "silence"])
def test_a_prompted_policy_has_every_property_of_a_policy(kind):
    p = policy(Sampling(text_top_k=12, audio_top_k=10))
    prompted = p.prompted(prompts(p)[0] if kind == "persona" else silence(p, 0.5))
    check_policy(prompted, frames=12)
    assert prompted.spec.lived == {"persona": 19, "silence": 7}[kind]


def test_in_a_silence_it_speaks_as_it_likes_and_learns_nothing_from_it():
    p = policy()
    quiet = silence(p, 0.5)
    assert quiet.shape == (17, 6)
    assert (quiet[:9] == SAMPLE).all()
    p.reset(ALL, [1, 2, 3], prompts=[quiet] * 3)
    play(p, noise_user(p, 3, 4))
    t = p.trajectory()
    assert len({tuple(row.tolist()) for row in t.lived[:, 0]}) > 1, "each row samples its own"
    assert t.valid.shape == (3, 4)


def test_a_row_that_starts_anew_lives_through_its_prompt_again_and_the_others_go_on():
    p = policy()
    ours, user = prompts(p), noise_user(p, 3, 12)
    p.reset(ALL, [1, 2, 3], prompts=ours)
    play(p, user[:5])
    p.reset([1], [0, 2, 0], prompts=ours)
    play(p, user[5:])
    t = p.trajectory()
    assert t.valid.sum(dim=1).tolist() == [12, 7, 12]
    p.reset(ALL, [1, 2, 3], prompts=ours)
    play(p, user)
    assert torch.equal(p.trajectory().codes[[0, 2]], t.codes[[0, 2]])


def test_a_context_that_does_not_hold_prompt_and_conversation_is_refused():
    p = policy()
    prompted = p.prompted(prompts(p)[0])
    check_context(prompted.spec, 80 - 19, "grpo.frames")
    with pytest.raises(UptakeError, match=r"19 of them for its prompt.*set it to 61 or less"):
        check_context(prompted.spec, 62, "grpo.frames")


def test_a_voice_is_its_codes_at_one_loudness_whatever_its_rate(tmp_path: Path):
    rng, codec = np.random.default_rng(0), WideCodec()
    speech = rng.standard_normal(24_000).astype(np.float32) * np.hanning(24_000).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", 0.3 * speech, 24_000)
    soundfile.write(tmp_path / "soft.wav", 0.03 * speech, 24_000, subtype="FLOAT")
    loud, soft = (load_voice(tmp_path / f"{name}.wav", codec) for name in ("loud", "soft"))
    assert loud.shape == (8, 13)
    assert np.abs(loud[0] - soft[0]).max() <= 1, "rounding of 16 bits"


def test_a_voices_last_unfinished_frame_is_filled_up_as_personaplex_does(tmp_path: Path):
    rng = np.random.default_rng(0)
    for samples, frames in ((24_000, 13), (24_960, 13), (24_961, 14)):
        soundfile.write(tmp_path / "voice.wav", rng.normal(0, 0.1, samples), 24_000)
        assert load_voice(tmp_path / "voice.wav", WideCodec()).shape == (8, frames)


def test_a_prompt_that_the_policy_would_have_forgotten_when_it_is_over_is_refused():
    p = tiny_moshi.policy(context=16)
    for rows in (17, 9):
        p.reset(np.ones(1, bool), [1], prompts=[np.full((rows, 15), 5)])
        with pytest.raises(UptakeError, match="prompt of 16 frames: the policy looks back 16 frames"):
            p.reset(np.ones(1, bool), [1], prompts=[np.full((rows, 16), 5)])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: soundfile.write(path, np.zeros((24_000, 2)), 24_000), "2 channels; a voice has one"),
        (lambda path: soundfile.write(path, np.zeros(24_000), 24_000), "silent"),
        (lambda path: soundfile.write(path, np.ones(100), 24_000), "a voice is a frame to 30 s long"),
        (lambda path: path.write_text("no sound"), "not a recording that can be read"),
        (lambda path: None, "not a recording that can be read"),
    ],
)
def test_a_voice_that_is_none_is_refused_with_its_file(tmp_path: Path, made, said):
    path = tmp_path / "voice.wav"
    made(path)
    with pytest.raises(UptakeError) as refused:
        load_voice(path, WideCodec())
    assert said in str(refused.value)
    assert "voice.wav" in str(refused.value)


def test_a_pickled_voice_is_never_opened(tmp_path: Path):
    (tmp_path / "NATF2.pt").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(UptakeError, match="a pickle, which is not opened"):
        load_voice(tmp_path / "NATF2.pt", WideCodec())


def test_a_configuration_describes_one_kind_of_prompt():
    p = policy()
    p.tokenizer = wrapper_tokenizer()
    assert make_prompt(p, PromptConfig()) is None
    told = make_prompt(p, PromptConfig(text="the lazy dog"))
    words = p.tokenizer.encode("<system> the lazy dog <system>")
    assert told[0, 5 : 5 + len(words)].tolist() == words
    assert np.array_equal(told, make_prompt(p, PromptConfig(text=" <system> the lazy dog <system> ")))
    assert make_prompt(p, PromptConfig(silence_s=3.0)).shape == (17, 38)
    with pytest.raises(UptakeError, match="give one"):
        make_prompt(p, PromptConfig(text="a", silence_s=3.0))
    with pytest.raises(UptakeError, match="Mimi's codes"):
        make_prompt(tiny_moshi.policy(), PromptConfig(text="a"))


@pytest.mark.parametrize("seconds", [-1.0, 0.01, 0.079, 6.33, 1e6, float("nan"), float("inf")])
def test_a_silence_is_of_a_frame_at_least_and_of_what_the_context_holds_at_most(seconds: float):
    p = policy()
    with pytest.raises(
        UptakeError, match=r"prompt\.silence_s = .*: must be 0, or from a frame of 0\.08 s to the 6\.32 s"
    ):
        make_prompt(p, PromptConfig(silence_s=seconds))
    for fits in (0.08, 6.32):
        p.prompted(make_prompt(p, PromptConfig(silence_s=fits))).reset(np.ones(1, bool), [1])


def test_a_role_that_the_tokenizer_cannot_write_is_refused_with_its_characters():
    p = policy()
    for tokenizer in (p.tokenizer, wrapper_tokenizer()):
        p.tokenizer = tokenizer
        with pytest.raises(UptakeError, match=r"prompt\.text: .* no piece for 'Яё😀'; write the role without"):
            make_prompt(p, PromptConfig(text="the lazy Яё dog 😀 Я"))


def test_the_wrapper_of_a_role_is_what_the_published_code_makes_of_it():
    p = policy()
    assert 0 in p.tokenizer.encode("<system>"), "this tokenizer has no piece for '<'"
    told = make_prompt(p, PromptConfig(text="the lazy dog"))
    words = p.tokenizer.encode("<system> the lazy dog <system>")
    assert told is not None and told[0, 5 : 5 + len(words)].tolist() == words

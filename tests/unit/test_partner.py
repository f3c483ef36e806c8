"""A `DuplexPolicy` as the user: heard as it speaks, the same from the same seed, and alone in its row."""

from __future__ import annotations

import numpy as np
import pytest

from align.evaluation import play
from align.loading import load_partner
from align.partner import PolicyPartner
from envs import agents
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.pack import Pack
from envs.users.partner import PolicyDriver
from tests.toy_duplex import ToyPolicy

F = CLOCK.frame


def test_a_policys_rows_sound_alike_from_one_seed_and_reset_alone():
    pack = Pack.load("core", "selfplay")
    env = DuplexVectorEnv(pack, 3, split="test", frames=40)
    options = {"scenario": "selfplay/test", "variant": [0, 0, 1]}
    env.reset(seed=1, options=options)
    noise = np.random.default_rng(0).normal(0, 0.05, (40, 1, F)).astype(np.float32).repeat(3, axis=1)
    for action in noise[:20]:
        env.step(action)
    env.reset(options={**options, "reset_mask": np.array([False, True, False])})
    for action in noise[20:]:
        env.step(action)
    kept = env.episode(0)
    env.reset(seed=1, options=options)
    for action in noise:
        env.step(action)
    assert np.array_equal(env.episode(0).user, kept.user)  # its neighbour began afresh meanwhile, and changed nothing
    assert np.array_equal(env.episode(0).user, env.episode(1).user)
    assert not np.array_equal(env.episode(0).user, env.episode(2).user)


def test_a_conversation_with_a_policy_is_copied_mid_way_and_set_back():
    env = DuplexEnv("core", "test", frames=45, users="selfplay")
    env.reset(seed=2, options={"scenario": "selfplay/test"})
    noise = np.random.default_rng(0).normal(0, 0.05, (45, F)).astype(np.float32)
    for action in noise[:20]:
        env.step(action)
    twin, state = env.fork(), env.get_state()
    first = np.stack([env.step(action)[0]["mic"] for action in noise[20:]])
    assert np.array_equal(first, np.stack([twin.step(action)[0]["mic"] for action in noise[20:]]))
    env.set_state(state)
    assert np.array_equal(first, np.stack([env.step(action)[0]["mic"] for action in noise[20:]]))
    assert env.episode().events == twin.episode().events


def test_a_policy_without_a_state_to_copy_is_named_with_what_to_do():
    partner = PolicyPartner(ToyPolicy(), 1)
    with pytest.raises(UptakeError, match=r"a ToyPolicy that is the user cannot be copied out; use fork\(\)"):
        partner.get_state()


class Broken:
    """A partner that hums; row 0 gives NaN from its tenth frame on."""

    context, frames = 1000, 0

    def reset(self, rows, seeds):
        self.frames = 0

    def step(self, heard: np.ndarray, active: np.ndarray) -> np.ndarray:
        self.frames += 1
        said = np.full(heard.shape, 0.1, np.float32)
        said[0, 5] = np.nan if self.frames > 10 else 0.1
        return said

    def words(self, row):
        return ()


def test_a_policy_that_gives_nan_is_silent_then_in_its_row_alone_and_it_is_counted(caplog):
    env = DuplexVectorEnv(Pack.load("core", "selfplay"), 2, split="test", frames=40)
    env._driver.use("policy", PolicyDriver(2, lambda name, batch: Broken()))
    env.reset(seed=1, options={"scenario": "selfplay/test", "variant": 0})
    for _ in range(40):
        env.step(np.zeros((2, F), np.float32))
    broken, sound = env.episode(0), env.episode(1)
    assert broken.meta["user_faults"] == 31 and sound.meta["user_faults"] == 0
    assert caplog.text.count("gave NaN or infinity, which is silence here: selfplay/test, variant 0") == 1
    assert sound.user[-F:].any() and not broken.user[-F:].any()


def test_two_policies_talk_and_both_sides_are_recorded():
    pack = Pack.load("core", "selfplay")
    (episode,) = play(
        lambda env: agents.EnergyVad(1, env.pack, ms=200), pack, [("selfplay/test", 0)], split="test", seed=3, frames=60
    )
    assert episode.meta["driver"] == "policy" and episode.meta["voice"] == "pocket"
    first = episode.events[0]
    assert first.type in ("A1", "A3") and first.text and episode.agent[first.offset :].any()


def test_a_partner_says_what_its_policy_says_and_gives_its_words():
    partner, again = load_partner("pocket", 2), load_partner("pocket", 2)
    assert not any(parameter.requires_grad for parameter in partner._policy.model.parameters())
    question = next(clip for clip in Pack.load("core").clips("user") if clip.said_as == "question")
    heard = np.zeros((60, F), np.float32)
    heard.reshape(-1)[: question.samples] = question.audio
    for one in (partner, again):
        one.reset(np.array([0]), [5])
    both = np.array([True, False])
    pair = np.zeros((2, F), np.float32)
    said = []
    for frame in heard:
        pair[0] = frame
        outputs = [one.step(pair, both) for one in (partner, again)]
        assert np.array_equal(outputs[0][0], outputs[1][0])
        said.append(outputs[0][0])
    spoke = np.abs(np.stack(said)).max() > 0.02
    assert bool(partner.words(0)) == spoke and partner.words(0) == again.words(0) and not partner.words(1)


def test_a_policy_of_another_rate_is_refused():
    policy = ToyPolicy()
    policy.spec = type(policy.spec)(**{**vars(policy.spec), "sample_rate": 16000})
    with pytest.raises(UptakeError, match="a user of 1920 samples a frame at 16000 Hz"):
        PolicyPartner(policy, 1)

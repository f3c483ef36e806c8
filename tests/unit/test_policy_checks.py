"""The Moshi-class policy has every property, and every check catches a policy that has not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.policies import checks
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling
from tests.tiny_moshi import policy

VARIANTS = {
    "published": {},
    "shared depth weights": {"depformer_weights_per_step": False, "depformer_multi_linear": False},
    "no delays": {"delays": (0,) * 17},
    "long context": {"context": 200},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_moshi_class_policy_passes_every_check(name):
    p = policy(**VARIANTS[name])
    checks.check_policy(p, load=lambda folder: MoshiPolicy.load(folder, p.sampling, p.codec))


def test_checks_hold_without_truncation_and_when_the_cache_grows():
    p = policy(Sampling(text_temperature=1.3, audio_top_k=0), context=200)
    checks.check_streaming_equals_scoring(p, frames=150)


class OtherTemperature(MoshiPolicy):
    def trajectory(self):
        t = super().trajectory()
        t.temperature *= 1.5
        return t


class OtherTopK(MoshiPolicy):
    def trajectory(self):
        t = super().trajectory()
        t.top_k = 0
        return t


class Clairvoyant(MoshiPolicy):
    """Hears the last frame that its former life heard: a state that outlives a reset."""

    memory = 0.0

    def step(self, mic, active=None):
        out = super().step(mic, active)
        out.audio = out.audio + self.memory
        self.memory = float(np.abs(mic).mean())
        return out


class ResetsEverybody(MoshiPolicy):
    def reset(self, rows, seeds, prompts=None):
        super().reset(np.ones(len(seeds), bool), seeds, prompts)


class KeepsTheVoice(MoshiPolicy):
    """Forgets to reset the codec's decoder."""

    def reset(self, rows, seeds, prompts=None):
        same = self.batch == len(seeds)
        said = self._mouth.said.copy() if same else None
        super().reset(rows, seeds, prompts)
        if said is not None:
            self._mouth.said[:] = said


class NeverRests(MoshiPolicy):
    def step(self, mic, active=None):
        return super().step(mic, None)


class ForksWithoutEars(MoshiPolicy):
    def fork(self, source, rows, seeds=None):
        before = self._ear.stream.copy()
        super().fork(source, rows, seeds)
        self._ear.stream = before


class ForksIntoTwins(MoshiPolicy):
    def fork(self, source, rows, seeds=None):
        super().fork(source, rows)


class SeedsByPlace(MoshiPolicy):
    def reset(self, rows, seeds, prompts=None):
        super().reset(rows, [seed + place for place, seed in enumerate(seeds)], prompts)


class Dropout(MoshiPolicy):
    def score(self, trajectory, full=False):
        scores = super().score(trajectory, full)
        scores.logp = scores.logp * (1 + 1e-3 * torch.rand(()))
        return scores


class ScoresPrompts(MoshiPolicy):
    def score(self, trajectory, full=False):
        trajectory.valid = torch.ones_like(trajectory.valid)
        return super().score(trajectory, full)


class KnowsItsAction(MoshiPolicy):
    """Its hidden state holds the token that was drawn from it."""

    def score(self, trajectory, full=False):
        scores = super().score(trajectory, full)
        scores.hidden = scores.hidden + trajectory.codes[:, 0].unsqueeze(-1)
        return scores


class ForgetsItsActions(MoshiPolicy):
    def score(self, trajectory, full=False):
        scores = super().score(trajectory, full)
        scores.hidden = torch.zeros_like(scores.hidden)
        return scores


class ExportsAnother(MoshiPolicy):
    def export(self, path, format="kyutai", dtype=torch.bfloat16):
        super().export(path, format, dtype)


FAULTS = [
    (OtherTemperature, checks.check_streaming_equals_scoring),
    (OtherTopK, checks.check_streaming_equals_scoring),
    (Clairvoyant, checks.check_future_audio_changes_no_past_action),
    (ResetsEverybody, checks.check_reset_row_is_a_fresh_episode),
    (KeepsTheVoice, checks.check_reset_row_is_a_fresh_episode),
    (NeverRests, checks.check_inactive_row_is_frozen),
    (ForksWithoutEars, checks.check_fork_continues_identically),
    (ForksIntoTwins, checks.check_fork_continues_identically),
    (SeedsByPlace, checks.check_row_does_not_depend_on_its_batch),
    (Dropout, checks.check_first_ratio_is_one),
    (ScoresPrompts, checks.check_forced_tokens_have_no_gradient),
    (KnowsItsAction, checks.check_hidden_state_does_not_know_its_action),
    (ForgetsItsActions, checks.check_hidden_state_does_not_know_its_action),
    (ExportsAnother, checks.check_export_reloads),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=lambda x: x.__name__)
def test_every_check_catches_the_policy_that_breaks_it(fault, check):
    good = policy()
    broken = fault(good.model, good.codec, good.tokenizer, good.sampling)
    more = [lambda f: MoshiPolicy.load(f, good.sampling, good.codec)] if check is checks.check_export_reloads else []
    check(good, *more)
    with pytest.raises(AssertionError):
        check(broken, *more)

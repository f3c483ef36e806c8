"""The properties that make a policy trainable, as checks that anyone can run on their own policy.

    from align.policies.checks import check_policy
    check_policy(policy)

A policy without a trainable stream (a fixed baseline) is held to how it lives only: causality, rows that know nothing
of each other, reset, pause and fork. One that can be trained is held to its scores as well.

Each check is a function that raises AssertionError with what differed. They use the public contract
(`align.policies.base.DuplexPolicy`) only, play their own noise as the user, and leave the policy with fresh rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.policies.base import DuplexPolicy, Step

TOLERANCE = 1e-4
"""Nats by which the sampler's and the scorer's log-probs may differ in fp32."""


def check_policy(
    policy: DuplexPolicy,
    load: Callable[[Path], DuplexPolicy] | None = None,
    frames: int = 24,
    prompt: Any = None,
) -> None:
    """Run every check that applies.

    Takes a few hundred steps of at most three rows.

    Args:
        policy: any `DuplexPolicy`; its rows are used up.
        load: reads what `policy.export` wrote; without it, that check is left out.
        frames: should exceed the policy's context if that can be afforded, so that the window slides, and span
            several decisions.
        prompt: one that `policy.reset` takes and that forces at least one decision; without it, that is left out.
    """
    check_future_audio_changes_no_past_action(policy, frames)
    check_reset_row_is_a_fresh_episode(policy, frames)
    check_inactive_row_is_frozen(policy, frames)
    check_fork_continues_identically(policy, frames)
    check_restored_state_continues_identically(policy, frames)
    check_row_does_not_depend_on_its_batch(policy, frames)
    if not policy.spec.trainable:
        return
    check_streaming_equals_scoring(policy, frames)
    check_first_ratio_is_one(policy, frames)
    check_forced_tokens_have_no_gradient(policy, frames)
    check_hidden_state_does_not_know_its_action(policy, frames)
    if prompt is not None:
        check_prompt_is_forced(policy, prompt, frames)
    if load is not None:
        check_export_reloads(policy, load, frames)


def noise_user(policy: DuplexPolicy, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    """A user of noise bursts, (frames, batch, frame) float32: something to hear, different in every row and frame."""
    draw = np.random.default_rng(np.random.SeedSequence([seed, batch == 0]))
    loudness = draw.choice([0.0, 0.02, 0.2], size=(frames, batch, 1))
    return (draw.standard_normal((frames, batch, policy.spec.frame)) * loudness).astype(np.float32)


def play(policy: DuplexPolicy, user: np.ndarray, active: np.ndarray | None = None) -> list[Step]:
    """Step through `user (frames, batch, frame)`; `active (frames, batch)` bool."""
    everyone = np.ones(user.shape[:2], bool) if active is None else active
    return [policy.step(mic, on) for mic, on in zip(user, everyone, strict=True)]


def _open(policy: DuplexPolicy, seeds: Sequence[int]) -> None:
    policy.reset(np.ones(len(seeds), bool), seeds)


def _same(ours: Sequence[Step], theirs: Sequence[Step], row: int, other: int, what: str) -> None:
    """The two lists of steps are the same life: tokens equal, sound and log-probs equal to rounding."""
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(a.tokens[row], b.tokens[other]), f"{what}: tokens differ in call {n}"
        assert a.text[row] == b.text[other], f"{what}: text differs in call {n}"
        difference = np.abs(a.audio[row] - b.audio[other]).max()
        assert difference <= 1e-5, f"{what}: sound differs by {difference:.2g} in call {n}"
        difference = abs(float(a.text_logp[row] - b.text_logp[other]))
        assert difference <= TOLERANCE, f"{what}: log-prob differs by {difference:.2g} in call {n}"


def streaming_difference(policy: DuplexPolicy, frames: int = 24, user: np.ndarray | None = None) -> tuple[float, int]:
    """Largest difference in nats between the sampler's log-probs and the scorer's, and of how many actions.

    `user` (frames, 3, frame) is heard in place of noise.
    """
    _open(policy, [1, 2, 3])
    play(policy, noise_user(policy, 3, frames) if user is None else user)
    trajectory = policy.trajectory()
    assert trajectory.valid.any(), "no action of the rollout is valid"
    with torch.no_grad():
        scores = policy.score(trajectory)
    difference = (scores.logp - trajectory.sampler_logp)[trajectory.valid].abs().max().item()
    return difference, int(trajectory.valid.sum())


def audio_difference(policy: DuplexPolicy) -> tuple[float, int]:
    """The same of the audio streams that can be trained, in what the policy has lived: nothing in 0 without any."""
    codebooks = sum(stream.trainable for stream in policy.spec.streams[1:])
    if not codebooks:
        return 0.0, 0
    trajectory = policy.trajectory()
    audio = trajectory.audio
    assert audio is not None and audio.valid.any(), "audio streams are trainable, but none of their actions is there"
    with torch.no_grad():
        logp = policy.score(trajectory, codebooks=codebooks).audio_logp
    assert logp is not None, "score(codebooks=...) returned no audio_logp"
    difference = (logp - audio.sampler_logp)[audio.valid].abs().max().item()
    return difference, int(audio.valid.sum())


def check_streaming_equals_scoring(policy: DuplexPolicy, frames: int = 24) -> None:
    """What the sampler said about its actions is what teacher forcing says: temperature, top-k and legal tokens too.

    A mask that one side forgets moves the mass of every other token, so it cannot hide: the distributions must be
    normalised, give the taken token what `logp` says, and have the entropy that is told.
    """
    _open(policy, [1, 2, 3])
    steps = play(policy, noise_user(policy, 3, frames))
    trajectory = policy.trajectory()
    assert trajectory.valid.any(), "no action of the rollout is valid"
    told = torch.from_numpy(np.stack([step.text_logp for step in steps], axis=1)).to(trajectory.valid.device)
    assert torch.equal(trajectory.sampler_logp, told * trajectory.valid), (
        "the trajectory's log-probs are not the steps'"
    )
    with torch.no_grad():
        scores = policy.score(trajectory, full=True)
    difference = (scores.logp - trajectory.sampler_logp)[trajectory.valid].abs().max().item()
    assert difference <= TOLERANCE, f"sampler and scorer differ by {difference:.2g} nats"
    assert scores.log_probs is not None, "score(full=True) returned no log_probs"
    chosen = scores.log_probs[trajectory.valid]  # (N, V)
    total = chosen.logsumexp(-1).abs().max().item()
    assert total <= TOLERANCE, f"log_probs are not normalised: off by {total:.2g}"
    taken = chosen.gather(-1, trajectory.codes[:, 0][trajectory.valid].unsqueeze(-1)).squeeze(-1)
    difference = (taken - scores.logp[trajectory.valid]).abs().max().item()
    assert difference <= TOLERANCE, f"logp is not what log_probs give the taken token: off by {difference:.2g}"
    surprise = -(chosen.exp() * chosen.masked_fill(chosen == -torch.inf, 0)).sum(-1)
    difference = (surprise - scores.entropy[trajectory.valid]).abs().max().item()
    assert difference <= TOLERANCE, f"entropy is not that of log_probs: off by {difference:.2g}"
    difference, _ = audio_difference(policy)
    assert difference <= TOLERANCE, f"sampler and scorer differ by {difference:.2g} nats in an audio stream"


def check_future_audio_changes_no_past_action(policy: DuplexPolicy, frames: int = 24) -> None:
    """Users who begin alike and then differ leave the same past behind."""
    user = noise_user(policy, 2, frames)
    _open(policy, [5, 6])
    first = play(policy, user)
    for cut in (1, frames // 2):
        other = np.concatenate((user[:cut], noise_user(policy, 2, frames, seed=9)[cut:]))
        _open(policy, [5, 6])
        second = play(policy, other)
        for row in range(2):
            _same(first[:cut], second[:cut], row, row, f"audio from call {cut} on changed the past")


def check_reset_row_is_a_fresh_episode(policy: DuplexPolicy, frames: int = 24) -> None:
    """A row that is reset mid-way lives as if it were new, and its neighbours do not notice."""
    user = noise_user(policy, 3, frames)
    half = frames // 2
    _open(policy, [1, 2, 3])
    undisturbed = play(policy, user)
    _open(policy, [1, 2, 3])
    play(policy, user[:half])
    policy.reset(np.array([False, True, False]), [0, 8, 0])
    disturbed = play(policy, user[half:])
    for row in (0, 2):
        _same(disturbed, undisturbed[half:], row, row, "resetting row 1 disturbed its neighbour")
    ended = policy.trajectory()
    _open(policy, [0, 8, 0])
    _same(disturbed, play(policy, user[half:]), 1, 1, "a reset row differs from a fresh episode")
    codes = policy.trajectory().codes
    same = torch.equal(ended.codes[1, :, : codes.shape[2]], codes[1])
    assert same, "a reset row's trajectory differs from a fresh episode's"
    assert not ended.valid[1, codes.shape[2] :].any(), "a reset row's trajectory still holds its former life"


def check_inactive_row_is_frozen(policy: DuplexPolicy, frames: int = 24) -> None:
    """A row that sits out some frames goes on as if they had not been; meanwhile it is silent."""
    user = noise_user(policy, 3, frames)
    _open(policy, [1, 2, 3])
    straight = play(policy, user)
    pause, stop = frames // 3, frames // 2
    broken = np.concatenate((user[:stop], user[pause:]))
    broken[:, [0, 2]] = noise_user(policy, 3, len(broken), seed=4)[:, [0, 2]]
    active = np.ones(broken.shape[:2], bool)
    active[pause:stop, 1] = False
    _open(policy, [1, 2, 3])
    steps = play(policy, broken, active)
    for step in steps[pause:stop]:
        assert not step.audio[1].any() and not step.text[1], "an inactive row speaks"
    _same(steps[:pause] + steps[stop:], straight, 1, 1, "a row that sat out some frames is not where it was")


def check_fork_continues_identically(policy: DuplexPolicy, frames: int = 24) -> None:
    """A copy of a row does what the row does; with another seed it goes its own way, from the same past."""
    user = noise_user(policy, 3, frames)
    half = frames // 2
    user[half:, 1:] = user[half:, :1]  # different pasts, so that all of the past has to be copied
    _open(policy, [1, 2, 3])
    play(policy, user[:half])
    policy.fork(0, np.array([False, True, False]))
    policy.fork(0, np.array([2]), seeds=[0, 0, 77])
    past = policy.trajectory()
    for row in (1, 2):
        assert torch.equal(past.codes[row], past.codes[0]), f"the fork's past (row {row}) is not its source's"
    future = play(policy, user[half:])
    _same(future, future, 1, 0, "a fork differs from its source")
    codes = policy.trajectory().codes
    assert torch.equal(codes[1], codes[0]), "a fork's trajectory differs from its source's"
    if not policy.spec.trainable:
        return  # nothing that it does is left to chance
    assert not torch.equal(codes[2], codes[0]), "a fork with another seed does exactly what its source does"


def check_restored_state_continues_identically(policy: DuplexPolicy, frames: int = 24) -> None:
    """A policy that is set back to where it stood does again what it did.

    One without `get_state` and `set_state` (`align.policies.keeping`) passes: it need not have them.
    """
    if not hasattr(policy, "get_state"):
        return
    user, half = noise_user(policy, 3, frames), frames // 2
    _open(policy, [1, 2, 3])
    play(policy, user[:half])
    state = policy.get_state()
    first, codes = play(policy, user[half:]), policy.trajectory().codes
    for seeds in ([7, 8, 9], [1]):  # meanwhile it lives another life, perhaps with another number of rows
        _open(policy, seeds)
        play(policy, user[:3, : len(seeds)])
        policy.set_state(state)  # type: ignore[attr-defined]
        again = play(policy, user[half:])
        for row in range(3):
            _same(again, first, row, row, "a restored state goes on differently")
        assert torch.equal(policy.trajectory().codes, codes), "a restored state has another past"


def check_row_does_not_depend_on_its_batch(policy: DuplexPolicy, frames: int = 24) -> None:
    """A row with the same seed and user samples the same in any company, at any place."""
    user = noise_user(policy, 3, frames)
    _open(policy, [4, 5, 6])
    together = play(policy, user)
    _open(policy, [6])
    _same(together, play(policy, user[:, 2:]), 2, 0, "a row alone differs from the row in company")
    _open(policy, [6, 1])
    user[:, 0] = user[:, 2]
    _same(together, play(policy, user[:, :2]), 2, 0, "a row differs at another place")


def check_first_ratio_is_one(policy: DuplexPolicy, frames: int = 24) -> None:
    """Scored twice with the same weights, with and without gradient, the probability ratio is exactly 1."""
    _open(policy, [1, 2])
    play(policy, noise_user(policy, 2, frames))
    trajectory = policy.trajectory()
    with torch.no_grad():
        old = policy.score(trajectory).logp
    new = policy.score(trajectory).logp
    assert new.requires_grad, "scores carry no gradient"
    assert torch.equal((new - old).exp(), torch.ones_like(new)), "the first update's ratio is not exactly 1"


def check_forced_tokens_have_no_gradient(policy: DuplexPolicy, frames: int = 24) -> None:
    """Where the trajectory is not valid, log-probs and entropy are 0 and no gradient leaves them."""
    _open(policy, [1, 2])
    play(policy, noise_user(policy, 2, frames))
    trajectory = policy.trajectory()
    trajectory.valid[0, : frames // 2] = False
    trajectory.valid[1] = False
    forced = ~trajectory.valid
    scores = policy.score(trajectory)
    assert not scores.logp[forced].any() and not scores.entropy[forced].any(), "a forced token has a score"
    outcome = scores.logp[forced].sum() + scores.entropy[forced].sum()
    if outcome.requires_grad:
        weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(outcome, weights, allow_unused=True)
        for gradient in gradients:
            assert gradient is None or not gradient.any(), "a forced token has a gradient"


def check_prompt_is_forced(policy: DuplexPolicy, prompt: Any, frames: int = 24) -> None:
    """What a prompt says is no action: it is not valid and has no log-prob, and the rows without one do not notice."""
    user = noise_user(policy, 2, frames)
    _open(policy, [1, 2])
    free = play(policy, user)
    without = policy.trajectory()
    policy.reset(np.ones(2, bool), [1, 2], [prompt, None])
    steps = play(policy, user)
    trajectory = policy.trajectory()
    forced = ~trajectory.valid[0] & (trajectory.codes[0, 0] >= 0)
    assert (forced & without.valid[0]).any(), "the prompt forced no decision"
    assert not trajectory.sampler_logp[0][forced].any(), "a forced token has a log-prob"
    told = np.array([step.text_logp[0] for step in steps])
    assert not told[forced.cpu().numpy()].any(), "a step tells a log-prob for a forced token"
    _same(steps, free, 1, 1, "a neighbour's prompt changed a row")
    scores = policy.score(trajectory)
    assert not scores.logp[0][forced].any(), "a forced token has a score"


def check_hidden_state_does_not_know_its_action(policy: DuplexPolicy, frames: int = 24) -> None:
    """Another action in frame t changes the hidden state after t only: what is predicted from it is a baseline.

    A policy without a hidden state (`spec.hidden` is 0) passes.
    """
    if not policy.spec.hidden:
        return
    _open(policy, [1, 2])
    play(policy, noise_user(policy, 2, frames))
    trajectory = policy.trajectory()
    decided = [[int(at) for at in row.nonzero()] for row in trajectory.valid]
    assert all(len(row) > 1 for row in decided), "too few actions: give check_policy more frames"
    with torch.no_grad():
        before = policy.score(trajectory).hidden
        vocab = policy.spec.streams[0].vocab
        middle = [row[(len(row) - 1) // 2 :][:2] for row in decided]  # an action in the middle, and the next one
        for row, (cut, _) in enumerate(middle):
            trajectory.codes[row, 0, cut] = (trajectory.codes[row, 0, cut] + 1) % vocab
        after = policy.score(trajectory).hidden
    assert before is not None and after is not None, "score returned no hidden state, but spec.hidden is not 0"
    wanted = (*trajectory.valid.shape, policy.spec.hidden)
    assert before.shape == wanted, f"the hidden state is {tuple(before.shape)}, spec.hidden asks for {wanted}"
    for row, (cut, later) in enumerate(middle):
        same = torch.allclose(before[row, : cut + 1], after[row, : cut + 1], atol=1e-5)
        assert same, "a hidden state knows its own action"
        same = torch.allclose(before[row, later], after[row, later], atol=1e-6)
        assert not same, "a hidden state ignores past actions"


def check_export_reloads(policy: DuplexPolicy, load: Callable[[Path], DuplexPolicy], frames: int = 24) -> None:
    """What `export` writes and `load` reads scores alike and lives alike."""
    user = noise_user(policy, 2, frames)
    _open(policy, [1, 2])
    steps = play(policy, user)
    trajectory = policy.trajectory()
    with tempfile.TemporaryDirectory() as folder:
        policy.export(Path(folder) / "policy")
        other = load(Path(folder) / "policy")
    with torch.no_grad():
        ours, theirs = policy.score(trajectory, full=True).log_probs, other.score(trajectory, full=True).log_probs
    assert ours is not None and theirs is not None, "score(full=True) returned no log_probs"
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5), "a reloaded policy scores differently"
    _open(other, [1, 2])
    again = play(other, user)
    for row in range(2):
        _same(steps, again, row, row, "a reloaded policy lives differently")

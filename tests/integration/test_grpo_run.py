"""A run from start to end on a toy conversation: resume, Ctrl-C, faults, and what is written."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from align import checkpoints
from align.alarms import AlarmConfig
from align.trainers.grpo import GrpoConfig
from envs.episode import Episode
from envs.errors import UptakeError
from rewards.verdict import Verdict
from tests.toy_duplex import FRAME, FRAMES, SCENARIOS, ToyEnv, ToyJudge, ToyPolicy, toy_run

CONFIG = GrpoConfig(
    iterations=4,
    frames=FRAMES,
    num_groups=3,
    num_generations=4,
    steps_per_generation=2,
    per_device_train_batch_size=4,
    learning_rate=5e-3,
    save_steps=2,
)
CLOCKS = {
    "step_time",
    "rollout/real_time_factor",
    "time/rollout",
    "time/judge",
    "time/update",
    "rollout/frames_per_second",
}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def same_weights(a, b):
    assert a.weights.keys() == b.weights.keys()
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


class StopAt(ToyEnv):
    """Presses Ctrl-C at the given frame of its life."""

    at = 0
    lived = 0

    def step(self, actions):
        type(self).lived += 1
        if type(self).lived == type(self).at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(actions)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, toy_run(folder, CONFIG, seed=3)


def test_a_run_writes_metrics_checkpoints_and_the_policy(straight):
    folder, run = straight
    assert [line["iteration"] for line in metrics(folder)] == [0, 1, 2, 3]
    names = {
        "loss",
        "reward",
        "reward_std",
        "rewards/patience/mean",
        "axis/pause",
        "axis/turn",
        "kl",
        "entropy",
        "grad_norm",
    }
    names |= {"clip_ratio/low_mean", "frac_reward_zero_std", "sampling/sampling_logp_difference/max", "learning_rate"}
    assert names <= metrics(folder)[0].keys()
    assert [p.name for p in checkpoints.list_checkpoints(folder / "checkpoints")] == [
        "iteration-000002",
        "iteration-000004",
    ]
    exported = load_file(folder / "policy" / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in run.weights.items())
    assert not torch.equal(exported["out.weight"], ToyPolicy(3).model.out.weight)  # something was trained


def test_the_sampler_and_the_training_forward_agree(straight):
    for line in metrics(straight[0]):
        assert line["sampling/sampling_logp_difference/max"] < 1e-5


def test_a_resumed_run_is_bit_identical_to_one_that_was_not_interrupted(straight, tmp_path):
    folder, whole = straight
    toy_run(tmp_path, replace(CONFIG, iterations=2), seed=3)
    rest = toy_run(tmp_path, CONFIG, seed=3, resume=True)
    assert same_weights(whole, rest)
    assert metrics(folder) == metrics(tmp_path)


def test_a_run_that_was_killed_after_the_checkpoint_gives_the_same_numbers(straight, tmp_path):
    folder, whole = straight

    class Killed(Exception):
        pass

    class Dying(ToyJudge):
        judged = 0

        def score(self, episode):
            Dying.judged += 1
            if Dying.judged > 3 * 12 + 5:  # in the fourth iteration, one past the checkpoint
                raise Killed
            return super().score(episode)

    from align.trainers import grpo

    with pytest.raises(Killed):
        grpo.train(CONFIG, ToyPolicy(3), ToyEnv, SCENARIOS, Dying(), tmp_path, seed=3)
    assert len(metrics(tmp_path)) == 3
    rest = toy_run(tmp_path, CONFIG, seed=3, resume=True)
    assert same_weights(whole, rest)
    assert metrics(folder) == metrics(tmp_path)


@pytest.mark.parametrize("frame", [1, FRAMES + 7, 3 * FRAMES])
def test_ctrl_c_writes_a_checkpoint_and_the_resumed_run_loses_nothing(straight, tmp_path, frame, capfd):
    from align.trainers import grpo

    folder, whole = straight
    StopAt.at, StopAt.lived = frame, 0
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(CONFIG, ToyPolicy(3), StopAt, SCENARIOS, ToyJudge(), tmp_path, seed=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping at the next safe place" in capfd.readouterr().err
    done = (frame - 1) // FRAMES
    assert checkpoints.load_latest(tmp_path / "checkpoints").iteration == done
    assert len(metrics(tmp_path)) == done
    assert same_weights(whole, toy_run(tmp_path, CONFIG, seed=3, resume=True))
    assert metrics(folder) == metrics(tmp_path)


def test_ctrl_c_while_wandb_is_still_starting_is_not_lost(straight, tmp_path, monkeypatch):
    from align.trainers import run

    class Starting(run.Monitor):
        def __enter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            return super().__enter__()

    with monkeypatch.context() as patch:
        patch.setattr(run, "Monitor", Starting)
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, CONFIG, seed=3)
    assert checkpoints.load_latest(tmp_path / "checkpoints").iteration == 0
    assert same_weights(straight[1], toy_run(tmp_path, CONFIG, seed=3, resume=True))


def test_ctrl_c_while_wandb_is_finishing_still_ends_the_command(tmp_path, monkeypatch):
    from align.trainers import run

    class Finishing(run.Monitor):
        def __exit__(self, *error):
            os.kill(os.getpid(), signal.SIGINT)
            super().__exit__(*error)

    monkeypatch.setattr(run, "Monitor", Finishing)
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, replace(CONFIG, iterations=1), seed=3)
    assert checkpoints.load_latest(tmp_path / "checkpoints").iteration == 1


def test_a_ctrl_c_that_a_launcher_passes_on_is_not_a_second_one():
    from align.signals import Interrupt

    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    from align.signals import Interrupt
    from align.trainers import grpo

    monkeypatch.setattr(Interrupt, "SAME_PRESS", 0.0)

    class Twice(StopAt):
        def step(self, actions):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(actions)

    with pytest.raises(KeyboardInterrupt):
        grpo.train(CONFIG, ToyPolicy(3), Twice, SCENARIOS, ToyJudge(), tmp_path, seed=3)
    assert not checkpoints.list_checkpoints(tmp_path / "checkpoints")


def test_a_loss_that_is_not_a_number_is_skipped_counted_and_described(tmp_path):
    policy = ToyPolicy(3)
    policy.broken_scores = 1
    run = toy_run(tmp_path, CONFIG, seed=3, policy=policy)
    assert run.metrics["skipped_updates"] == 1
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    dump = json.loads(next(tmp_path.glob("nan-000000-1-rank0.json")).read_text())
    assert {"scenario", "variant", "seed", "finite_old_logp"} <= dump["rows"][0].keys()
    tensors = load_file(tmp_path / "nan-000000-1-rank0.safetensors")
    assert tensors["codes"].shape == (len(dump["rows"]), 2, FRAMES)
    assert {"old_logp", "advantages", "mask", "valid", "sampler_logp"} <= tensors.keys()


@pytest.mark.parametrize("choice", [{}, {"use_kl_in_reward": True, "kl_estimator": "k1"}], ids=str)
def test_a_skipped_update_leaves_the_kl_coefficient_and_the_metrics_as_they_are(tmp_path, choice):
    policy = ToyPolicy(3)
    policy.broken_scores = 2  # both updates of the first iteration
    steered = replace(CONFIG, **({"kl_estimator": "k3"} | choice), target_kl=1e-3, kl_horizon=50, save_steps=1)
    run = toy_run(tmp_path, steered, seed=3, policy=policy)
    assert run.metrics["skipped_updates"] == 2
    lines = metrics(tmp_path)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    if not choice:  # in the reward it is measured whatever the update does
        assert lines[0]["beta"] == lines[1]["beta"] == CONFIG.beta
    assert lines[1]["beta"] != lines[2]["beta"]


def test_a_skipped_update_leaves_no_trace_in_the_next_one(tmp_path):
    """Half of the micro-batches of the broken update were added already when it was given up."""

    class SecondPartBroken(ToyPolicy):
        calls = 0

        def score(self, trajectory, full=False):
            if torch.is_grad_enabled():
                self.calls += 1
                self.broken_scores = int(self.calls == 2)
            return super().score(trajectory, full)

    class FirstPartBroken(ToyPolicy):
        calls = 0

        def score(self, trajectory, full=False):
            if torch.is_grad_enabled():
                self.calls += 1
                self.broken_scores = int(self.calls == 1)
            return super().score(trajectory, full)

    second = toy_run(tmp_path / "second", CONFIG, seed=3, policy=SecondPartBroken(3))
    first = toy_run(tmp_path / "first", CONFIG, seed=3, policy=FirstPartBroken(3))
    assert same_weights(first, second)


def test_a_gradient_that_is_not_a_number_is_never_applied(tmp_path):
    class Steep(ToyPolicy):
        def score(self, trajectory, full=False):
            scores = super().score(trajectory, full)
            if torch.is_grad_enabled():
                scores.logp = scores.logp + (0.0 * scores.logp.sum()).sqrt()  # adds 0, with a gradient of 0 * inf
            return scores

    run = toy_run(tmp_path, replace(CONFIG, iterations=1), seed=3, policy=Steep(3))
    assert run.metrics["skipped_updates"] == CONFIG.steps_per_generation
    assert all(torch.equal(value, run.weights[name]) for name, value in ToyPolicy(3).model.state_dict().items())


def test_too_many_losses_that_are_not_numbers_stop_the_run(tmp_path):
    policy = ToyPolicy(3)
    policy.broken_scores = 10
    with pytest.raises(UptakeError, match=r"3 updates gave .* more than grpo.nan_budget = 2"):
        toy_run(tmp_path, replace(CONFIG, nan_budget=2), seed=3, policy=policy)


def test_a_sampler_that_computes_something_else_stops_the_run(tmp_path):
    class Hot(ToyPolicy):
        def trajectory(self):
            recorded = super().trajectory()
            recorded.sampler_logp = recorded.sampler_logp * 1.2
            return recorded

    with pytest.raises(UptakeError, match=r"iteration 0: the training forward differs from the sampler by 0\.\d+ nats"):
        toy_run(tmp_path, CONFIG, seed=3, policy=Hot(3))


def test_a_full_disk_stops_the_run_in_one_line_and_keeps_the_last_checkpoint(straight, tmp_path, monkeypatch):
    _, whole = straight
    write = checkpoints._write_tensors

    def full(path, tensors):
        if "000004" in path.parent.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write_tensors", full)
        with pytest.raises(UptakeError, match="No space left on device; the last one, iteration-000002, is intact"):
            toy_run(tmp_path, CONFIG, seed=3)
    assert same_weights(whole, toy_run(tmp_path, CONFIG, seed=3, resume=True))


def test_resume_refuses_another_configuration_and_a_new_run_refuses_a_used_folder(tmp_path):
    toy_run(tmp_path, replace(CONFIG, iterations=1), seed=3)
    with pytest.raises(UptakeError, match=r"--resume: weight_decay is 0.1, but iteration-000001 was trained with 0.0"):
        toy_run(tmp_path, replace(CONFIG, weight_decay=0.1), seed=3, resume=True)
    with pytest.raises(UptakeError, match=r"--resume: seed is 4"):
        toy_run(tmp_path, CONFIG, seed=4, resume=True)
    with pytest.raises(UptakeError, match="already holds a run"):
        toy_run(tmp_path, CONFIG, seed=3)


def test_the_same_seed_gives_the_same_run_and_micro_batches_do_not_matter(straight, tmp_path):
    folder, whole = straight
    other = toy_run(tmp_path, replace(CONFIG, per_device_train_batch_size=2), seed=3)
    for name, value in whole.weights.items():
        assert torch.allclose(value, other.weights[name], atol=1e-5)
    assert metrics(tmp_path)[-1]["reward"] == metrics(folder)[-1]["reward"]


@pytest.mark.parametrize(
    "choice",
    [
        {"streams": "speak"},
        {"kl_estimator": "k2"},
        {"kl_estimator": "k3", "use_bias_correction_kl": True},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"loss_type": "cispo", "epsilon_high": 5.0, "num_iterations": 2},
        {
            "baseline": "leave_one_out",
            "scale_rewards": "none",
            "loss_type": "dr_grpo",
            "use_kl_in_reward": True,
            "kl_estimator": "k1",
        },
        {
            "baseline": "none",
            "scale_rewards": "none",
            "credit": "uniform",
            "normalize_advantages": True,
            "use_kl_in_reward": True,
            "kl_estimator": "k1",
        },
        {"max_num_gen_batches": 3, "epsilon_high": 0.28},
        {"target_kl": 1e-3, "kl_horizon": 50},
        {"sampler_importance_sampling_mode": "token_truncate"},
        {"beta": 0.0},
        {"credit": "uniform", "multi_objective_aggregation": "sum_then_normalize"},
        {"baseline": "leave_one_out", "scale_rewards": "none", "loss_type": "dr_grpo"},
        {"loss_type": "grpo", "num_iterations": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"shuffle_rewards": True},
    ],
)
def test_every_choice_of_the_objective_runs_and_changes_the_weights(straight, tmp_path, choice):
    run = toy_run(tmp_path, replace(CONFIG, iterations=2, **choice), seed=3)
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    assert not same_weights(straight[1], run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_generations": 1}, "grpo.num_generations = 1: must be at least 2"),
        ({"kl_estimator": "k1"}, "grpo.kl_estimator = 'k1' in the loss has no gradient on average"),
        ({"kl_estimator": "k3", "use_kl_in_reward": True}, "only k1 has the policy gradient"),
        ({"use_kl_in_reward": True}, "grpo.kl_estimator = 'exact' with grpo.use_kl_in_reward"),
        ({"beta": 0.0, "use_kl_in_reward": True}, "there is no KL, its weight is 0"),
        ({"baseline": "none"}, "grpo.baseline = none needs grpo.scale_rewards = none"),
        ({"baseline": "none", "scale_rewards": "none", "max_num_gen_batches": 2}, "grpo.baseline = none has none"),
        ({"normalize_advantages": True}, "grpo.normalize_advantages needs grpo.credit = uniform"),
        ({"loss_type": "cispo"}, "grpo.epsilon_high = None: with grpo.loss_type = cispo"),
        ({"importance_sampling_level": "frame"}, "frame is token with grpo.streams = text"),
        ({"importance_sampling_level": "stream"}, "stream is sequence with grpo.streams = text"),
        ({"use_bias_correction_kl": True}, "needs a KL in the loss with grpo.kl_estimator = k1 or k3"),
        ({"target_kl": 0.1, "beta": 0.0}, "grpo.target_kl = 0.1 with grpo.beta = 0"),
        ({"target_kl": 0.1, "kl_horizon": 5}, "grpo.kl_horizon = 5 is less than the 12 conversations"),
        ({"streams": "speak", "sampler_importance_sampling_mode": "token_mask"}, "not of its kind"),
        (
            {"sampler_importance_sampling_mode": "token_mask", "sampler_importance_sampling_clip_max": None},
            "needs sampler_importance_sampling_clip_max or _clip_min",
        ),
        (
            {"sampler_importance_sampling_mode": "token_mask", "sampler_importance_sampling_clip_min": 4.0},
            "_clip_min = 4.0 must be below",
        ),
        (
            {"sampler_importance_sampling_clip_min": 0.5},
            "_clip_min = 0.5 with .*_mode = none: there is nothing to clip",
        ),
        ({"max_context_s": 30.0, "context_probability": 0.0}, "grpo.max_context_s = 30 with grpo.context_probability"),
        ({"beta": 0.0, "alarms": AlarmConfig(kl_above=0.1)}, "grpo.alarms.kl_above = 0.1: there is no KL to watch"),
        ({"steps_per_generation": 3}, "grpo.steps_per_generation = 3 does not divide grpo.num_generations = 4"),
        ({"loss_type": "bnpo"}, "grpo.loss_type = 'bnpo': must be one of dapo, grpo, dr_grpo"),
        ({"multi_objective_aggregation": "sum_then_normalize"}, "needs grpo.credit = uniform"),
        ({"bf16": True}, "needs grpo.zero_stage"),
        ({"learning_rate": float("nan")}, "grpo.learning_rate = nan: must be at least 0"),
    ],
)
def test_a_configuration_that_cannot_be_trained_with_is_named(change, message):
    with pytest.raises(UptakeError, match=message):
        replace(CONFIG, **change).check()


class Balanced(ToyJudge):
    """What it gives the first frames of a conversation it takes from as many later ones."""

    def score(self, episode):
        said = float((episode.agent.reshape(-1, FRAME).mean(1) > 0).mean())
        early, late = (2 * FRAME, 6 * FRAME), (10 * FRAME, 14 * FRAME)
        return [Verdict(said, early, {}, "patience", "early"), Verdict(-said, late, {}, "answer", "late")]


@pytest.mark.parametrize(("level", "streams"), [("token", "text"), ("sequence", "text"), ("stream", "all")])
def test_a_judgement_teaches_its_own_frames_whatever_shares_a_ratio(tmp_path, level, streams):
    """All of a conversation together earned nothing: of a ratio that shares its gradient nothing would be learned."""
    from align.trainers import grpo

    config = replace(
        CONFIG, iterations=1, beta=0.0, loss_type="grpo", importance_sampling_level=level, streams=streams,
        steps_per_generation=1,
    )  # fmt: skip
    policy = ToyPolicy(3, voice=streams == "all")
    grpo.train(config, policy, ToyEnv, SCENARIOS, Balanced(), tmp_path, seed=3)
    assert metrics(tmp_path)[0]["grad_norm"] > 0.01


def test_groups_that_cannot_be_split_over_the_ranks_are_named():
    with pytest.raises(UptakeError, match=r"grpo.num_groups = 3 cannot be split over 2 ranks"):
        CONFIG.check(world=2)


class Coarse(ToyJudge):
    """Says only good or bad, so that groups are often alike."""

    def score(self, episode):
        return [replace(verdict, value=1.0 if verdict.value > 0.9 else 0.0) for verdict in super().score(episode)]


DYNAMIC = replace(CONFIG, max_num_gen_batches=3, target_kl=1e-3, kl_horizon=50)


def coarse_run(folder, config, resume=False):
    from align.trainers import grpo

    policy = ToyPolicy(3)
    grpo.train(config, policy, ToyEnv, SCENARIOS, Coarse(), folder, seed=3, resume=resume)
    return policy.model.state_dict()


def test_groups_that_teach_nothing_are_replaced_and_a_resumed_run_replaces_the_same_ones(tmp_path):
    whole = coarse_run(tmp_path / "whole", DYNAMIC)
    coarse_run(tmp_path / "parts", replace(DYNAMIC, iterations=2))
    rest = coarse_run(tmp_path / "parts", DYNAMIC, resume=True)
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    coarse_run(tmp_path / "plain", replace(DYNAMIC, max_num_gen_batches=1))
    plain, dynamic = metrics(tmp_path / "plain"), metrics(tmp_path / "whole")
    assert sum(line["dynamic_sampling/redrawn"] for line in dynamic) > 0
    assert dynamic[0]["dynamic_sampling/first_reward"] == pytest.approx(plain[0]["reward"])
    # Some that were drawn again taught something: fewer are flat at the end than were replaced.
    assert sum(line["dynamic_sampling/flat"] for line in dynamic) < sum(
        line["dynamic_sampling/redrawn"] for line in dynamic
    )


def test_the_kl_coefficient_follows_its_target_and_survives_a_resume(tmp_path):
    coarse_run(tmp_path, replace(DYNAMIC, iterations=2))
    coarse_run(tmp_path, DYNAMIC, resume=True)
    betas = [line["beta"] for line in metrics(tmp_path)]
    assert betas[0] == DYNAMIC.beta
    assert len(set(betas)) == 4  # it moves after every iteration, the interrupted one included


def test_audio_streams_in_the_objective_need_a_policy_that_trains_them(tmp_path):
    with pytest.raises(UptakeError, match=r"grpo.streams = all: this policy has no trainable audio stream"):
        toy_run(tmp_path, replace(CONFIG, streams="all"), seed=3)


def test_an_alarm_is_a_line_a_metric_and_if_wanted_the_end_with_a_checkpoint(straight, tmp_path, capfd):
    folder, whole = straight
    quiet = AlarmConfig(talk_ratio_above=0.0, repetition_above=None, patience=2)
    run = toy_run(tmp_path / "goes on", replace(CONFIG, alarms=quiet), seed=3)
    assert same_weights(whole, run)
    assert [line["alarms"] for line in metrics(tmp_path / "goes on")] == [0, 1, 1, 1]
    assert capfd.readouterr().out.count("ALARM iteration 1: behaviour/talk_ratio = ") == 1
    with pytest.raises(
        UptakeError, match=r"iteration 1: behaviour/talk_ratio = .* it talks all the time; a checkpoint"
    ):
        toy_run(tmp_path / "ends", replace(CONFIG, alarms=replace(quiet, stop=True)), seed=3)
    assert checkpoints.load_latest(tmp_path / "ends" / "checkpoints").iteration == 2
    assert same_weights(whole, toy_run(tmp_path / "ends", CONFIG, seed=3, resume=True))
    assert [line["loss"] for line in metrics(tmp_path / "ends")] == [line["loss"] for line in metrics(folder)]


def test_a_run_whose_reward_no_longer_rises_ends_as_if_it_were_done(tmp_path):
    alarms = AlarmConfig(no_better_for=1)
    run = toy_run(tmp_path, replace(CONFIG, iterations=40, learning_rate=0.0, alarms=alarms), seed=3)
    done = checkpoints.load_latest(tmp_path / "checkpoints").iteration
    assert done < 40
    assert len(metrics(tmp_path)) == done
    assert (tmp_path / "policy").is_dir()
    again = toy_run(tmp_path, replace(CONFIG, iterations=40, learning_rate=0.0, alarms=alarms), seed=3, resume=True)
    assert same_weights(run, again)
    assert len(metrics(tmp_path)) == done


def test_a_conversation_is_kept_every_so_often(tmp_path):
    toy_run(tmp_path, replace(CONFIG, iterations=3, log_episodes_steps=2), seed=3)
    kept = sorted(path.name for path in (tmp_path / "episodes" / "training").iterdir())
    assert kept == ["iteration-000000", "iteration-000002"]
    assert Episode.load(tmp_path / "episodes" / "training" / kept[1]).agent.any()


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UptakeError, match=r"tensorboard = true, and it is not installed: pip install"):
        toy_run(tmp_path, replace(CONFIG, tensorboard=True), seed=3)

"""Faults at run time under the real command: numbers that are none, a judge that dies or hangs, a rank that hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align import checkpoints, evaluation, losses
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import FAILED
from tests.child import command, start
from tests.integration.test_quickstart import SMALL, figures
from tests.judge_server import JudgeServer
from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    policy, pack = tiny_checkpoint(folder / "policy"), write_tiny_pack(folder / "pack")
    return [f"policy={policy}", f"pack={pack}", *SMALL, "evaluation.baselines=[]", "grpo.save_steps=1"]


def broken_losses(first: int) -> Callable[[], None]:
    """Every loss from the given one on is not a number."""

    def prepare() -> None:
        policy_loss, seen = losses.policy_loss, []

        def broken(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
            seen.append(True)
            out = policy_loss(*args, **kwargs)  # type: ignore[arg-type]
            return out * float("nan") if len(seen) > first else out

        losses.policy_loss = broken

    return prepare


def test_more_losses_that_are_no_numbers_than_the_budget_end_the_run_with_a_dump_and_it_can_go_on(
    world: list[str], tmp_path: Path
) -> None:
    errors = tmp_path / "errors"
    arguments = ["train", "quickstart", *world, f"runs={tmp_path}", "grpo.iterations=3", "grpo.nan_budget=1"]
    assert command([*arguments, "name=peace"], errors)[0] == 0, errors.read_text()
    updates = 2  # an iteration
    status, lines = command([*arguments, "name=broken"], errors, broken_losses(updates))
    run = tmp_path / "broken"
    assert (status, len(lines)) == (2, 1), lines
    assert re.search(
        r"2 updates gave a loss or a gradient that is not a number, more than grpo\.nan_budget = 1; see "
        rf"{re.escape(str(run))}/nan-\*\.json, lower grpo\.learning_rate and --resume",
        lines[0],
    )
    assert checkpoints.newest_whole(run / "checkpoints").name == "iteration-000001"
    dumps = sorted(run.glob("nan-000001-*.json"))
    assert len(dumps) == 2
    for dump in dumps:
        rows = json.loads(dump.read_text())["rows"]
        assert {"scenario", "variant", "seed", "finite_old_logp", "largest_advantage"} <= rows[0].keys()
        tensors = load_file(dump.with_suffix(".safetensors"))
        assert tensors["codes"].shape[0] == tensors["old_logp"].shape[0] == len(rows) == 5
        assert torch.isfinite(tensors["old_logp"][tensors["mask"]]).all()
    shutil.copytree(run, tmp_path / "slower")
    slower = [*arguments, "name=slower", "grpo.learning_rate=1e-5", "--resume"]  # as the line says
    assert command(slower, errors)[0] == 0, errors.read_text()
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "slower" / "metrics.jsonl").open()]
    assert len(rates) == 3 and rates[0] > 1e-5 >= rates[1]
    assert command([*arguments, "name=broken", "--resume"], errors)[0] == 0, errors.read_text()
    assert figures(run) == figures(tmp_path / "peace")


@pytest.mark.parametrize(("fault", "counted"), [("error", "judge/server_error"), ("slow", "judge/timeout")])
def test_a_run_goes_on_to_its_report_when_its_judge_dies_or_hangs(
    world: list[str], tmp_path: Path, fault: str, counted: str
) -> None:
    errors = tmp_path / "errors"
    with JudgeServer(fault=lambda number: "" if number < 6 else fault) as server:
        status, _ = command(
            [
                "train", "recipes/published_judge", *world, f"runs={tmp_path}", "grpo.iterations=2", "grpo.frames=80",
                f"judge.base_url={server.url}", f"judge.cache={tmp_path / 'cache'}", "judge.retries=0",
                "judge.timeout_s=0.2", "judge.breaker_faults=2", "judge.model=any",
            ],
            errors,
        )  # fmt: skip
        assert status == 0, errors.read_text()
        assert len(server.requests) > 6
    run = tmp_path / "published-judge"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1]
    assert max(line.get(counted, 0.0) for line in lines) > 0
    assert lines[-1]["judge/faults"] > 0.9
    assert any(line["grad_norm"] > 0 for line in lines)  # the other terms still teach
    assert (run / "report.html").is_file()


def test_a_rank_that_hangs_ends_the_run_in_one_line_that_says_who_and_where_and_it_can_go_on(
    world: list[str], tmp_path: Path
) -> None:
    """Measuring, of which the ranks have unequal shares, may take longer than the limit for a hang."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def hang() -> None:
        step, seen = DuplexVectorEnv.step, []

        def stepped(env: DuplexVectorEnv, *args: object) -> object:
            seen.append(True)
            if len(seen) == 40 + 5:  # in the second iteration
                time.sleep(600)
            return step(env, *args)  # type: ignore[arg-type]

        DuplexVectorEnv.step = stepped  # type: ignore[method-assign,assignment]

    def play_slowly() -> None:
        play = evaluation.play

        def slow(*args: object, **options: object) -> object:
            time.sleep(10)
            return play(*args, **options)  # type: ignore[arg-type]

        evaluation.play = slow  # type: ignore[assignment]

    def rank(number: int) -> Callable[[], None]:
        def prepare() -> None:
            os.environ |= {
                "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
            if number:
                hang()
            else:
                play_slowly()

        return prepare

    arguments = [
        "train", "quickstart", *world, f"runs={tmp_path}", "name=hung", "grpo.iterations=2", "grpo.num_groups=2",
        "grpo.collective_timeout=8",
    ]  # fmt: skip
    errors = [tmp_path / f"errors-{number}" for number in (0, 1)]
    ranks = [start(arguments, errors[number], rank(number)) for number in (0, 1)]
    try:
        status = ranks[0].wait()
    finally:
        ranks[1].kill()
        ranks[1].wait()
    lines = errors[0].read_text().splitlines()
    assert (status, len(lines)) == (FAILED, 1), lines
    assert re.search(r"rank 1 has been at iteration 1: conversing \d+/40 for \d+ s, and rank 0 .* waited", lines[0])
    assert "--resume" in lines[0]
    assert checkpoints.newest_whole(tmp_path / "hung" / "checkpoints").name == "iteration-000001"
    assert command([*arguments, "--resume"], tmp_path / "errors")[0] == 0, (tmp_path / "errors").read_text()

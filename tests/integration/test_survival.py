"""What a run survives, and what it says when it cannot: kills at any moment, a rank that is lost or hangs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from envs.errors import AGAIN, FAILED, MISTAKE
from tests.ranks import ROOT

RUN = """
import os, signal, sys, time
from pathlib import Path
from align.ranks import stop_ranks
from align.trainers.grpo import GrpoConfig
from launch.errors import guarded
from envs.errors import UptakeError
from tests import toy_duplex
from tests.toy_duplex import FRAMES, ToyEnv, toy_run

def mistake():
    raise UptakeError("too high a rate")

class Struck(ToyEnv):
    lived = 0

    def step(self, actions):
        Struck.lived += 1
        if os.environ["RANK"] == "1" and Struck.lived == 2 * FRAMES + 5:      # in the third iteration
            # What the others know of a rank is up to a second old: it is struck after that.
            {"killed": lambda: (time.sleep(3), os.kill(os.getpid(), signal.SIGKILL)), "hangs": lambda: time.sleep(600),
             "fails": lambda: 1 / 0, "errs": mistake}[sys.argv[2]]()
        return super().step(actions)

toy_duplex.ToyEnv = Struck
config = GrpoConfig(iterations=4, frames=FRAMES, num_groups=4, num_generations=4, save_steps=1, collective_timeout=8)
sys.exit(guarded(lambda: toy_run(Path(sys.argv[1]), config, seed=5)))
"""


def two_ranks(script, *arguments):
    """The processes, which end by themselves or are to be killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, env=env | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip


def outcome(ranks, which):
    """All that this rank wrote to stderr, and of it the lines that Uptake says; then the others are killed."""
    try:
        _, errors = ranks[which].communicate(timeout=120)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return errors, [line for line in errors.splitlines() if line.startswith("uptake: ")]


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("killed", AGAIN, r"rank 1 is gone: killed, .*, or its machine is lost; last seen at iteration \d: "),
        ("hangs", FAILED, r"rank 1 has been at iteration 2: conversing \d+/20 for \d+ s, and rank 0 .* waited \d+ s"),
        ("fails", AGAIN, "rank 1 has ended: division by zero"),
        ("errs", MISTAKE, "rank 1 has ended: too high a rate"),
    ],
)
def test_when_a_rank_is_lost_the_others_name_it_and_what_it_did_and_their_status_says_what_helps(
    tmp_path, what, status, says
):
    ranks = two_ranks(RUN, str(tmp_path), what)
    errors, lines = outcome(ranks, 0)
    assert ranks[0].returncode == status, errors
    assert len(lines) == 1, errors
    assert re.search(says, lines[0]), lines[0]
    assert "--resume" in lines[0]
    assert "Traceback" not in errors
    assert (tmp_path / "checkpoints" / "iteration-000002").is_dir()


ALONE = """
import os, signal, sys, time
from align.ranks import start_ranks, watch
from launch.errors import guarded

def work():
    start_ranks(60)
    with watch().telling():
        if os.environ["RANK"] == "0":
            time.sleep(3)
            {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "fails": lambda: 1 / 0}[sys.argv[1]]()
        watch().meet("the end of it")

sys.exit(guarded(work))
"""


@pytest.mark.parametrize(
    ("what", "says"), [("killed", "rank 0 .*killed, out of memory"), ("fails", "rank 0 has ended: division by zero")]
)
def test_ranks_that_wait_for_the_first_one_without_a_limit_are_told_when_it_ends(what, says):
    ranks = two_ranks(ALONE, what)
    errors, lines = outcome(ranks, 1)
    assert ranks[1].returncode == AGAIN, errors
    assert len(lines) == 1, errors
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in errors


BUSY = """
import threading
from align import ranks

exchange = ranks.Watch._exchange

def many(watch):
    aside = threading.current_thread() is not threading.main_thread()
    for _ in range(300 if aside else 1):
        exchange(watch)

ranks.BEAT, ranks.Watch._exchange = 0.01, many
ranks.start_ranks(60)
ranks.watch().meet("the end")
"""


def test_a_rank_that_has_done_its_work_ends_in_peace_while_it_still_hears_of_the_others():
    ranks = two_ranks(BUSY)
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors  # -6: the interpreter went under a call of the store's


def test_a_run_that_is_killed_at_random_and_inside_its_checkpoints_ends_bit_for_bit_as_in_peace():
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kill_resume", "--kills", "8"], cwd=ROOT, text=True, check=False,
        capture_output=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 8
    assert found["while_writing"] > 0
    assert found["bit_identical"] == found["runs"] > 0

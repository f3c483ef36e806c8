"""One node's share of a run: look whether the nodes fit together, start the ranks, and let them stop in peace.

    uptake launch local quickstart --ranks 2
    uptake launch local recipes/ppo --nodes 2 --node-rank 0 --master node0:29500     # and on the other with 1
    uptake launch local sft/pocket data.path=recordings --ranks 2                    # a warm start

A run that is there is gone on with. SIGTERM and SIGUSR1, which clusters send before they take a machine away, are
passed on to the ranks as SIGUSR1: while they train they write a checkpoint at the end of the iteration, on all nodes.

The exit status says what to do next, on every node: 0 nothing, it is trained; `MISTAKE` (2) a person must act, as the
line on stderr says; `AGAIN` (75) start it again, since it was asked to stop or a node is missing; anything else, this
node failed and nobody expected it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

import psutil

from align.config import TrainConfig
from envs.errors import AGAIN, MISTAKE, UptakeError
from launch.errors import INTERRUPTED
from launch.named import find
from launch.threads import shared

MEETING_SECONDS = 300
"""How long a node waits for the others."""
TORCHRUN = (sys.executable, "-m", "launch.torchrun")
ASKED = (signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1
"""prctl(2): what a process is sent when its parent has died."""


def run_local(
    config: str,
    overrides: Sequence[str],
    *,
    ranks: int = 0,
    nodes: int = 1,
    node_rank: int = 0,
    master: str = "",
) -> int:
    """Train with `ranks` ranks on each of `nodes` nodes, of which this is number `node_rank`.

    Args:
        ranks: 0: one a GPU, or a single one without.
        master: HOST:PORT of the first node, by which they find each other; needed with several nodes.

    Returns:
        The exit status, as above.

    Raises:
        UptakeError: a mistake in the configuration, or no master.
    """
    run = find(config, overrides)
    folder = run.config.folder
    if run.done.is_file():
        print(f"{folder} is finished: nothing to do")
        return 0
    if not 0 <= node_rank < nodes:
        raise UptakeError(f"--node-rank {node_rank}: with --nodes {nodes} it is 0 to {nodes - 1}")
    ranks = ranks or _gpus() or 1
    meeting = ["--standalone"]
    if nodes > 1:
        host, colon, port = master.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise UptakeError(f"--master '{master}': with several nodes, give HOST:PORT of the first one")
        meeting = [f"--nnodes={nodes}", f"--node-rank={node_rank}", f"--master-addr={host}", f"--master-port={port}"]
        meeting.append(f"--rdzv-conf=timeout={MEETING_SECONDS}")
    needed = ["--ranks", str(ranks), config, *overrides]
    train = ["-m", "launch.cli", *run.command, *overrides]
    with _Children(shared(ranks)) as children:
        # Names of their own: a node that comes back must not join what the others still have open.
        status = children.run([*TORCHRUN, *meeting, "--rdzv-id=preflight", "-m", "launch.preflight", *needed])
        if status == 0:
            if (folder / "config.yaml").is_file():
                train.append("--resume")
            status = children.run([*TORCHRUN, *meeting, "--rdzv-id=train", f"--nproc-per-node={ranks}", *train])
    return children.told(status)


def run_ranks(ranks: int, command: Sequence[str]) -> int:
    """Run a command of `uptake` in several ranks on this machine; the exit status, as above."""
    with _Children(shared(ranks)) as children:
        start = [*TORCHRUN, "--standalone", f"--nproc-per-node={ranks}", "-m", "launch.cli", *command]
        return children.told(children.run(start))


def ranks_here(config: TrainConfig) -> int:
    """How many ranks `uptake train` starts itself: as many as the configuration says, but no two on one GPU; 1 in a
    rank that a launcher has started."""
    if "RANK" in os.environ:
        return 1
    return min(config.ranks, _gpus() or config.ranks)


class _Children:
    """Runs commands one after the other and passes on the wish to stop to the processes that torchrun starts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Args:
            environment: what the commands have besides this process's own.
        """
        self.asked = self.interrupted = False
        self._environment = {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Children:
        self._before = {number: signal.signal(number, self._on_signal) for number in ASKED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, command: Sequence[str]) -> int:
        """The command's exit status; `AGAIN` and no start if there was a wish to stop."""
        if self.asked:
            return AGAIN
        # A session of its own: torchrun would take a terminal's Ctrl-C for its own end, and give the ranks 30 s.
        self._child = subprocess.Popen(command, env=self._environment, start_new_session=True, preexec_fn=_prepare)
        if self.asked:  # in between: the child may not have been there to be told
            self._stop(signal.SIGUSR1)
        while True:
            try:
                return self._child.wait()
            except KeyboardInterrupt:
                self.interrupted = True
                self._stop(signal.SIGINT)

    def told(self, status: int) -> int:
        """What to end with after a command that ended with this status: why it did may be known here alone."""
        if status in (0, MISTAKE):
            return status
        if self.interrupted:
            return INTERRUPTED
        return AGAIN if self.asked else status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._stop(signal.SIGUSR1)

    def _stop(self, number: signal.Signals) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        ranks = psutil.Process(self._child.pid).children()
        for rank in ranks:
            rank.send_signal(number)
        if not ranks:  # it waits for other nodes
            self._child.terminate()


def _prepare() -> None:
    """In the child, before it is torchrun."""
    # A cluster may send its signal to every process of the node; torchrun would die of it and take the ranks along.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # ranks must not go on unseen, and write into the folder of a run that is resumed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _gpus() -> int:
    """GPUs that this node shows, without starting CUDA in this process."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([name for name in shown.split(",") if name.strip()])
    import torch

    return torch.cuda.device_count()

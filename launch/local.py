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

from collections.abc import Sequence

from envs.errors import UptakeError
from launch.children import ALONE, TORCHRUN, Children
from launch.named import find
from launch.own_ranks import gpus
from launch.threads import shared

MEETING_SECONDS = 300
"""How long a node waits for the others."""


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
    ranks = ranks or gpus() or 1
    meeting = list(ALONE)
    if nodes > 1:
        host, colon, port = master.rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() else 0
        if not colon or not host or not 0 < number < 65536:
            raise UptakeError(f"--master '{master}': with several nodes, give HOST:PORT of the first one")
        meeting = [f"--nnodes={nodes}", f"--node-rank={node_rank}", f"--master-addr={host}", f"--master-port={port}"]
        meeting.append(f"--rdzv-conf=timeout={MEETING_SECONDS}")
    needed = ["--ranks", str(ranks), config, *overrides]
    train = ["-m", "launch.cli", *run.command, *overrides]
    with Children(shared(ranks)) as children:
        # Names of their own: a node that comes back must not join what the others still have open.
        status = children.run([*TORCHRUN, *meeting, "--rdzv-id=preflight", "-m", "launch.preflight", *needed])
        if status == 0:
            if (folder / "config.yaml").is_file():
                train.append("--resume")
            status = children.run([*TORCHRUN, *meeting, "--rdzv-id=train", f"--nproc-per-node={ranks}", *train])
    return children.told(status)

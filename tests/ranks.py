"""Start a program on several ranks and give back what each printed as its last line of JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run_ranks(code: str, *args: str, world: int = 1, timeout: float = 240.0) -> list[Any]:
    """Run `code` (its argv[1:] are `args`) on `world` ranks; the results by rank.

    Raises:
        AssertionError: a rank failed; the message holds what all of them wrote to stderr.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(world):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *args],
                env=env,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    outputs = [process.communicate(timeout=timeout) for process in processes]
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    assert not failed, f"ranks {failed} failed:\n" + "\n".join(error for _, error in outputs)
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]

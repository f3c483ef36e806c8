"""torchrun, with an exit status that says what its ranks ended with: its own is 1 whatever happened to them."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from envs.errors import AGAIN, FAILED, MISTAKE
from launch.errors import INTERRUPTED

_STOPPED = frozenset((AGAIN, INTERRUPTED, -signal.SIGTERM, -signal.SIGUSR1))
"""What a rank ends with that was asked to stop, here or on another node, or could not go on without another."""


def status_of(ranks: Sequence[int]) -> int:
    """What a node ends with whose ranks ended with these: `MISTAKE`, `FAILED` or `AGAIN`.

    torchrun ends the others with SIGTERM as soon as one has ended, so that one decides.
    """
    if MISTAKE in ranks:
        return MISTAKE
    return AGAIN if _STOPPED.issuperset(ranks) else FAILED


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with its own arguments; the exit status."""
    # What is caught here is not caught in the ranks, nor ignored: until they catch it themselves there is nothing to
    # lose, and it ends them at once, whatever library they wait in.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    logging.disable(logging.ERROR)  # what ends a rank is said by the rank, or below
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        status = status_of([failure.exitcode for failure in error.failures.values()])
        if status == FAILED:
            print(error, file=sys.stderr)
        return status
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        line = " ".join(str(error).split())[:200]
        print(f"uptake: the nodes did not meet ({line}); see that each was started, and that the port is open and free",
              file=sys.stderr)  # fmt: skip
        return AGAIN
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

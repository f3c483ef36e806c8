"""Published evaluators, as coded and with their bugs off, on the same episodes as our own measures.

    from rewards.compat import EVALUATORS
    EVALUATORS["fdb_v1"].measurement(episode, None, EVALUATORS["fdb_v1"].bugs)

Definitions and numbers are theirs, with the source named; the code is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from rewards.compat.eva import EVA
from rewards.compat.evaluator import Evaluator
from rewards.compat.fdb_v1 import FDB_V1
from rewards.compat.fdb_v15 import FDB_V15
from rewards.compat.late_stop import LATE_STOP
from rewards.compat.nvidia_duplex import NVIDIA_DUPLEX
from rewards.compat.sid_bench import SID_BENCH
from rewards.compat.tau_voice import TAU_VOICE

EVALUATORS: Mapping[str, Evaluator] = {
    one.name: one for one in (FDB_V1, FDB_V15, TAU_VOICE, SID_BENCH, EVA, NVIDIA_DUPLEX, LATE_STOP)
}

__all__ = ["EVALUATORS", "Evaluator"]

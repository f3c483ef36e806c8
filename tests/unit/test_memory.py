"""Memory that is freed stays in the process."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
if sys.argv[1] == "keep":
    from align.memory import keep_memory
    assert keep_memory()
import numpy as np
for _ in range(5):
    np.ones(6_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(6_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc only")
def test_an_array_of_the_same_size_costs_no_page_fault_the_second_time() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "not")
    }
    assert faults["keep"] < 100 < faults["not"]

"""How long `import envs` takes, in a fresh process, the files in the cache.

    python tests/benchmarks/bench_import.py

Prints one JSON line: the median and the slowest of some imports in seconds of CPU time, without the interpreter's own
start. Goal: 0.5 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

CODE = "import time; t = time.process_time(); import envs.duplex_env; print(time.process_time() - t)"


def main() -> None:
    """Import it a few times and print the figures; the first import only fills the cache."""
    runs = [subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True) for _ in range(8)]
    seconds = [float(run.stdout) for run in runs[1:]]
    print(json.dumps({"median_s": round(statistics.median(seconds), 2), "slowest_s": round(max(seconds), 2)}))


if __name__ == "__main__":
    main()

"""How many judgements a second a judge with 50 ms latency gives, one at a time and side by side.

python -m tests.judge_speed
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from rewards.judge.config import JudgeConfig
from rewards.judge.judge import Judge
from rewards.judge.rubric import PUBLISHED, Question

LATENCY = 0.05


def ask(judge: Judge, first: int, count: int) -> float:
    """Seconds for so many different questions, all put at once."""
    started = time.perf_counter()
    asked = [
        judge.ask(Question(PUBLISHED, (("USER", f"question {number}"),), "an answer"))
        for number in range(first, first + count)
    ]
    faults = {future.result().fault for future in asked}
    assert faults == {""}, faults
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each number of requests at once, and one for answers that are known."""
    command = [sys.executable, "-m", "tests.judge_server", "--port", "0", "--latency", str(LATENCY)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip().removeprefix("judge.base_url=")
        serial = 0.0
        for concurrency, count in ((1, 60), (16, 480), (64, 960)):
            with tempfile.TemporaryDirectory() as cache:
                judge = Judge(JudgeConfig(base_url=url, model="tester", concurrency=concurrency, cache=cache))
                ask(judge, 0, concurrency)  # connections are made
                cpu = time.process_time()
                rate = count / ask(judge, 1000, count)
                cpu = (time.process_time() - cpu) / count
                serial = serial or rate
                print(f"{concurrency:3d} at once: {rate:6.1f} judgements/s, {rate / serial:4.1f} x serial, "
                      f"{1e3 * cpu:.1f} ms of CPU each")  # fmt: skip
                if concurrency == 16:
                    print(f"      cached: {count / ask(judge, 1000, count):6.1f} judgements/s")
                judge.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

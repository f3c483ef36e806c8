"""An OpenAI-compatible judge on loopback that answers at once, and plays every fault that a real one has.

    python -m tests.judge_server --port 8765 --latency 0.05
    python -m tests.judge_server --port 8765 --fault prose

Its score depends on the response alone: 0 without a word in common with the last USER turn, 1 with one, 2 with more.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("slow", "trickle", "busy", "busy_date", "error", "prose", "off_scale", "truncated", "no_json", "empty",
          "wrong_model", "echo", "denied", "hang_up", "huge", "broken_gzip", "thinks")  # fmt: skip


def score(asked: str) -> int:
    """What this judge thinks of a user message of `Question`."""
    history, _, response = asked.partition("\n\nMODEL response:\n")
    said = set(re.findall(r"[a-z]{3,}", history.rpartition("USER: ")[2].lower()))
    return min(2, len(said & set(re.findall(r"[a-z]{3,}", response.lower()))))


class JudgeServer(ThreadingHTTPServer):
    """Serves `/v1/chat/completions` on 127.0.0.1 from construction on, in a thread of its own.

    Args:
        latency: seconds before each answer.
        fault: number of the request, from 0 -> the name of a fault, or "" for a right answer.
        port: 0: any that is free.
        answer: a request's body -> what is said, where nothing goes wrong; left out: the score.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        latency: float = 0.0,
        fault: Callable[[int], str] = lambda number: "",
        port: int = 0,
        answer: Callable[[dict[str, Any]], str] = lambda body: str(score(body["messages"][1]["content"])),
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.latency, self.fault, self.nap, self.answer = latency, fault, 60.0, answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        """For `judge.base_url`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that went away is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.latency)
            self._play(server.fault(number), body)
        finally:
            with server.lock:
                server.at_once -= 1

    def _play(self, fault: str, body: dict[str, Any]) -> None:
        said, model = self.server.answer(body), body["model"]
        key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if fault == "slow":
            time.sleep(self.server.nap)
        elif fault == "busy":
            return self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "1"})
        elif fault == "busy_date":
            return self._send(429, b"", {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})
        elif fault == "error":
            return self._send(500, b"out of memory")
        elif fault == "denied":
            return self._send(401, json.dumps({"error": f"Incorrect API key provided: {key}"}).encode())
        elif fault == "no_json":
            return self._send(200, b"<html>It works!</html>")
        elif fault == "empty":
            return self._send(200, b"{}")
        elif fault == "huge":
            return self._send(200, b" " * 2**21)
        elif fault == "broken_gzip":
            return self._send(200, b"no gzip", {"Content-Encoding": "gzip"})
        elif fault == "hang_up":
            self.close_connection = True
            return self.connection.close()
        elif fault == "prose":
            said = "I would give this response a 2, since it is natural and specific."
        elif fault == "off_scale":
            said = "7"
        elif fault == "wrong_model":
            model = "somebody-else"
        elif fault == "echo":
            said = f"your key is {key}"
        elif fault == "thinks":
            said = f"<think>\nIt could be 0, or 1.\n</think>\n\n{said}"
        message = {"role": "assistant", "content": said}
        content = json.dumps({"model": model, "choices": [{"index": 0, "message": message}]}).encode()
        if fault == "truncated":
            self._send(200, content, cut=len(content) // 2)
        elif fault == "trickle":
            self._send(200, content, every=0.1)
        else:
            self._send(200, content)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int = 0, every: float = 0.0
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if every:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(every)
        else:
            self.wfile.write(content[: cut or None])
        if cut:
            self.close_connection = True


def until_interrupted(server: JudgeServer, says: str) -> None:
    """Print a line, serve until Ctrl-C, and say how many requests there were."""
    print(says, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print(f"{len(server.requests)} requests", flush=True)


def started(parser: argparse.ArgumentParser, make: Callable[[], JudgeServer]) -> JudgeServer:
    """A server, or the command line's end with one line where its port is taken."""
    try:
        return make()
    except OSError as error:
        parser.error(f"no server at this port ({error.strerror}); give another with --port")


def serve(about: str | None, answer: Callable[[dict[str, Any]], str], port: int) -> None:
    """The command line of a stand-in that answers by a rule: `--port`, `--latency`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    given = parser.parse_args()
    with started(parser, lambda: JudgeServer(given.latency, port=given.port, answer=answer)) as server:
        until_interrupted(server, f"base_url: {server.url}")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--fault", choices=FAULTS, default="", help="play this fault")
    parser.add_argument("--after", type=int, default=0, help="answer so many requests rightly first")
    parser.add_argument("--for", type=int, default=10**9, dest="length", help="play it so many times, then recover")
    given = parser.parse_args()
    span = range(given.after, given.after + given.length)
    fault = lambda number: given.fault if number in span else ""  # noqa: E731
    with started(parser, lambda: JudgeServer(given.latency, fault, given.port)) as server:
        until_interrupted(server, f"judge.base_url={server.url}")


if __name__ == "__main__":
    main()

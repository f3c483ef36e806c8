"""The original server, `python -m moshi.server`, serves what `uptake export` wrote: audio and text come back."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from align.evaluation import evaluate
from align.policies.live.agent import Live
from launch import cli
from tests.packs import tiny_pack
from tests.random_policy import random_policy

pytest.importorskip("moshi")
aiohttp = pytest.importorskip("aiohttp")
sphn = pytest.importorskip("sphn")

FRAME, RATE = 1920, 24_000
PATIENCE = 1800.0
"""Seconds until a server that does not answer counts as dead; nothing is measured by it."""

#: Its warm-up waits for a GPU whether there is one or not (moshi 0.2.13, server.py), which is an error on a CPU.
WITHOUT_GPU = (
    "import runpy, sys, torch; torch.cuda.synchronize = lambda *device: None; "
    "sys.argv[0] = 'moshi.server'; runpy.run_module('moshi.server', run_name='__main__')"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Exports a policy with the command, starts the server with the line that it printed, and gives its port."""
    folder = tmp_path_factory.mktemp("server")
    random_policy().export(folder / "policy")
    out = folder / "served"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["uptake", "export", str(folder / "policy"), "--out", str(out)])
        printed = _printed(cli.main, folder / "printed")
    line = next(line for line in printed.splitlines() if line.startswith("serve it: "))
    change, _, command = line.removeprefix("serve it: ").partition(" && ")
    arguments = shlex.split(command)
    assert shlex.split(change) == ["cd", str(out)]
    assert arguments[:3] == ["python", "-m", "moshi.server"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_GPU, *arguments[3:], "--device", "cpu", "--static", "none",
         "--host", "127.0.0.1", "--port", str(port)],
        cwd=out, stdout=log, stderr=subprocess.STDOUT,
        env=os.environ | {"NO_TORCH_COMPILE": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    try:
        _wait(process, port, folder / "log")
        yield port
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _printed(run: object, file: Path) -> str:
    """What a command writes to stdout; a module's fixture has no capsys."""
    import contextlib

    with file.open("w") as stream, contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as done:
        run()  # type: ignore[operator]
    assert not done.value.code, file.read_text()
    return file.read_text()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"no server after {PATIENCE:.0f} s: {log.read_text()}")


async def _talk(port: int, frames: int) -> tuple[np.ndarray, list[str]]:
    """Say noise for `frames` frames over the WebSocket; returns what came back: samples and pieces of text."""
    writer, reader = sphn.OpusStreamWriter(RATE), sphn.OpusStreamReader(RATE)
    noise = np.random.default_rng(0).normal(0, 0.1, (frames, FRAME)).astype(np.float32)
    heard: list[np.ndarray] = []
    text: list[str] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/api/chat") as socket_:
        assert await socket_.receive_bytes(timeout=PATIENCE) == b"\x00"  # the handshake
        for frame in noise:
            await socket_.send_bytes(b"\x01" + writer.append_pcm(frame))
        while sum(map(len, heard)) < (frames // 2) * FRAME or not text:
            message = await socket_.receive_bytes(timeout=PATIENCE)
            if message[:1] == b"\x01":
                heard.append(reader.append_bytes(message[1:]))
            elif message[:1] == b"\x02":
                text.append(message[1:].decode())
    return np.concatenate(heard), text


def test_the_original_server_answers_with_audio_and_text(server: int) -> None:
    audio, text = asyncio.run(_talk(server, frames=16))
    assert len(audio) >= 8 * FRAME
    assert np.isfinite(audio).all() and np.abs(audio).max() > 1e-3
    tokenizer = random_policy().tokenizer
    pieces = {tokenizer.id_to_piece(token).replace("▁", " ") for token in range(tokenizer.get_piece_size())}
    assert text and set(text) <= pieces


def test_the_server_answers_a_second_conversation(server: int) -> None:
    first, _ = asyncio.run(_talk(server, frames=8))
    again, _ = asyncio.run(_talk(server, frames=8))
    assert len(first) >= 4 * FRAME and len(again) >= 4 * FRAME


def test_uptake_evaluates_the_running_server_and_says_what_it_cost_in_time(server: int, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    live = Live(f"ws://127.0.0.1:{server}/api/chat", patience=PATIENCE)
    ledgers = []
    evaluate(
        live, tiny_pack(tmp_path), "test", name="live", variants=4, frames=40,
        watch=lambda key, episode, words: ledgers.append(episode.meta["latency_ledger"]),
    )  # fmt: skip
    assert len(ledgers) == 4
    for ledger in ledgers:
        assert ledger["sent_frames"] == 40 and ledger["dropped_frames"] == 0
        assert ledger["network_ms"]["max"] > 0
    answered = [ledger for ledger in ledgers if not ledger["faults"]]
    assert answered, "a busy machine may answer one conversation after its end, not every one"
    for ledger in answered:
        assert ledger["received_samples"] >= FRAME and ledger["delay_ms"]["p50"] > 0

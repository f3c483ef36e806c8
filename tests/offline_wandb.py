"""Reads what a run left for `wandb sync`: the records of a `.wandb` file, without a server.

The format is LevelDB's log after a header of seven bytes: blocks of 32 KiB hold chunks of (CRC-32C, length, type), and
a record is one whole chunk or a first, middle ones and a last.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, CHUNK = 1 << 15, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def finished(file: Path, seconds: float = 60.0) -> list[Record]:
    """Every record of a run that has ended; wandb's own process may still be writing them when `finish` returns."""
    deadline = time.monotonic() + seconds
    while True:
        seen = list(_records(file.read_bytes()))
        if seen and seen[-1].WhichOneof("record_type") == "exit":
            return seen
        assert time.monotonic() < deadline, f"{file}: {len(seen)} records after {seconds} s, and the run has no end"
        time.sleep(0.05)


def _records(data: bytes) -> Iterator[Record]:
    at, parts = HEADER, b""
    assert data[:4] in (b"", b":W&B")
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK:  # padding
            at += left
            continue
        if at + CHUNK > len(data):
            return
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + CHUNK + length > len(data):
            return
        parts = data[at + CHUNK : at + CHUNK + length] if kind in (FULL, FIRST) else parts + data[at + CHUNK :][:length]
        at += CHUNK + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def history(file: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged there."""
    out: dict[int, dict[str, Any]] = {}
    for record in finished(file):
        if record.WhichOneof("record_type") == "history":
            step = out.setdefault(record.history.step.num, {})
            for item in record.history.item:
                *above, last = item.nested_key or [item.key]
                place = step
                for name in above:
                    place = place.setdefault(name, {})
                place[last] = json.loads(item.value_json)
    return out

"""What a live conversation cost in time, as measured by the client: the latency ledger of its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Ledger:
    """Times are seconds of one monotonic clock; counts are of one conversation."""

    sent: list[float] = field(default_factory=list)
    """When each frame of the microphone was sent."""
    late: list[float] = field(default_factory=list)
    """How long after it was due."""
    received: list[tuple[float, int]] = field(default_factory=list)
    """When sound arrived and how many samples."""
    responses: list[float] = field(default_factory=list)
    """How long after the end of the user's turn, when the server had told of it, the first sound came."""
    owed: float | None = None
    """When the server told of the end of a turn that is not answered yet."""
    round_trips: list[float] = field(default_factory=list)
    """Of pings."""
    dropped: int = 0
    """Frames that could not be sent."""
    starved: int = 0
    """Frames in which the agent's sound, once it had begun, was not there in time and silence was played."""
    faults: dict[str, int] = field(default_factory=dict)
    """Kind of fault -> how often."""

    def fault(self, kind: str) -> None:
        """Count one."""
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def heard(self, at: float, samples: int) -> None:
        """Sound has arrived."""
        self.received.append((at, samples))
        if self.owed is not None:
            self.responses.append(at - self.owed)
            self.owed = None

    def delays(self, frame: int) -> np.ndarray:
        """Seconds from sending the n-th frame of the microphone to having the n-th frame of the agent's sound.

        It means something where a server answers every frame with a frame (moshi.server); its own lag is inside.
        """
        total = 0
        found: list[float] = []
        for at, samples in self.received:
            total += samples
            while len(found) < min(total // frame, len(self.sent)):
                found.append(at - self.sent[len(found)])
        return np.array(found)

    def figures(self, frame: int, steady: bool) -> dict[str, Any]:
        """JSON: milliseconds and counts; a figure that was not measured is left out. `steady`: a frame for a frame.

        A conversation in which a steady server sent no sound has the fault `mute`.
        """
        mute = {"mute": 1} if steady and not self.received else {}
        found: dict[str, Any] = {
            "measured": True, "sent_frames": len(self.sent), "dropped_frames": self.dropped,
            "received_samples": sum(samples for _, samples in self.received), "starved_frames": self.starved,
            "faults": self.faults | mute,
        }  # fmt: skip
        series = {
            "send_late_ms": np.array(self.late),
            "network_ms": np.array(self.round_trips),
            "response_ms": np.array(self.responses),
        }
        if steady:
            delays = self.delays(frame)
            series |= {"delay_ms": delays, "jitter_ms": np.abs(np.diff(delays))}
        for name, values in series.items():
            if values.size:
                p50, p95 = np.percentile(1000 * values, (50, 95))
                top = 1000 * float(values.max())
                found[name] = {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "max": round(top, 2)}
        return found


def summary(ledgers: list[dict[str, Any]]) -> dict[str, Any]:
    """The conversations' figures as one: medians of medians, largest of largest, sums of counts."""
    found: dict[str, Any] = {"conversations": len(ledgers), "faults": {}}
    for name in ("sent_frames", "dropped_frames", "received_samples", "starved_frames"):
        found[name] = sum(one[name] for one in ledgers)
    for one in ledgers:
        for kind, count in one["faults"].items():
            found["faults"][kind] = found["faults"].get(kind, 0) + count
    for name in ("delay_ms", "jitter_ms", "response_ms", "send_late_ms", "network_ms"):
        known = [one[name] for one in ledgers if name in one]
        if known:
            found[name] = {
                "p50": round(float(np.median([one["p50"] for one in known])), 2),
                "p95": round(float(np.median([one["p95"] for one in known])), 2),
                "max": max(one["max"] for one in known),
            }
    return found

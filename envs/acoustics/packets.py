"""The network between the user and the agent: packets that are lost, late or just delayed, and what hides that.

Voice goes in packets of 20 ms. Losses come in bursts (Gilbert 1960, Elliott 1963); the network adds `delay_ms` and an
exponentially distributed jitter, and a jitter buffer of fixed depth plays every packet `buffer_ms` after the earliest
possible time: what arrives later is as good as lost. A missing packet is concealed as in G.711 Appendix I: the last
pitch period goes on, fades from 10 ms on and is gone after 60 ms; below it lies comfort noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.acoustics.convolution import Delay
from envs.clock import CLOCK, Clock
from envs.errors import UptakeError

PACKET_MS = 20
_SHORTEST_PERIOD, _LONGEST_PERIOD = 0.005, 0.015  # seconds: 200 to 66 Hz, G.711 Appendix I
_COMPARED = 0.02  # seconds of the past in which the period is looked for
_FULL, _GONE = 0.010, 0.060  # seconds into a loss at which concealment begins to fade, and is gone
_CROSSFADE = 0.004  # seconds from concealment to the first packet that is there again


@dataclass(frozen=True)
class Network:
    """A connection, the same both ways; each way has its own losses and jitter."""

    delay_ms: float = 0.0
    """One way, besides packetisation and jitter buffer."""
    jitter_ms: float = 0.0
    """Mean of the exponentially distributed extra delay of a packet."""
    buffer_ms: float = 40.0
    """Depth of the jitter buffer."""
    loss: float = 0.0
    """Share of packets that the network loses."""
    burst_ms: float = 60.0
    """Mean length of the bad spells in which it does."""
    loss_in_burst: float = 0.8
    """Share of packets lost within a bad spell; none is lost outside."""


def most_bad(burst_packets: float) -> float:
    """The largest share of the time that the bad state can take: it lasts so long, and is left for one packet."""
    return max(burst_packets, 1.0) / (max(burst_packets, 1.0) + 1.0)


def gilbert_elliott(
    packets: int, loss: float, burst_packets: float, loss_in_burst: float, rng: np.random.Generator
) -> np.ndarray:
    """Which packets are lost: (packets,) bool.

    A two-state chain whose bad state lasts `burst_packets` on average and holds a share `loss / loss_in_burst` of the
    time; within it a share `loss_in_burst` is lost.
    """
    bad_share = min(loss / loss_in_burst, 0.99)
    leave = min(1.0, 1.0 / max(burst_packets, 1.0))
    enter = min(1.0, leave * bad_share / (1.0 - bad_share))
    draws = rng.random((packets, 2))
    lost = np.zeros(packets, bool)
    bad = bool(rng.random() < bad_share)
    for i, (move, drop) in enumerate(draws.tolist()):
        lost[i] = bad and drop < loss_in_burst
        bad = move >= leave if bad else move < enter
    return lost


def missing_packets(network: Network, packets: int, rng: np.random.Generator) -> np.ndarray:
    """Which packets are not there when they should be played, lost or late: (packets,) bool."""
    burst = network.burst_ms / PACKET_MS
    lost = gilbert_elliott(packets, network.loss, burst, network.loss_in_burst, rng)
    jitter = rng.standard_exponential(packets) * network.jitter_ms
    return lost | (jitter > network.buffer_ms)


class Connection:
    """One way through the network; `delay_samples` late."""

    def __init__(self, network: Network, missing: np.ndarray, comfort: np.ndarray, clock: Clock = CLOCK) -> None:
        """`missing` (packets,) bool, one for every packet of the conversation; `comfort` (n,) float32 is repeated."""
        rate = clock.sample_rate
        self._packet = clock.samples(PACKET_MS / 1000.0)
        if clock.frame % self._packet:
            raise UptakeError(f"network: a frame of {clock.frame} samples is no whole number of packets of 20 ms")
        self.delay_samples = self._packet + round((network.delay_ms + network.buffer_ms) * rate / 1000.0)
        self._missing = missing.copy()
        self._missing.setflags(write=False)
        self._comfort = comfort.astype(np.float32)
        self._comfort.setflags(write=False)
        self._periods = round(_SHORTEST_PERIOD * rate), round(_LONGEST_PERIOD * rate)
        self._compared, self._fade = round(_COMPARED * rate), round(_CROSSFADE * rate)
        self._full, self._gone = round(_FULL * rate), round(_GONE * rate)
        self._delay = Delay(self.delay_samples, np.resize(self._comfort, self.delay_samples))
        self._next = 0  # packet
        self._past = np.zeros(self._compared + self._periods[1], np.float32)  # the latest audio, good or concealed
        self._period = np.zeros(1, np.float32)  # what is repeated
        self._hidden = 0  # samples of the present loss that were concealed

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32, `delay_samples` late."""
        size = self._packet
        last = self._next + len(frame) // size
        if self._hidden or self._missing[self._next : last].any():
            frame = frame.copy()
            for start in range(0, len(frame), size):
                self._receive(frame[start : start + size], bool(self._missing[self._next]))
                self._next += 1
        else:
            self._next = last
            self._past = frame[-len(self._past) :].copy()
        return self._delay.process(frame)

    def _receive(self, packet: np.ndarray, missing: bool) -> None:
        """Conceal one packet in place where it is missing, or go over into it where the one before was."""
        if missing:
            if not self._hidden:
                self._period = self._last_period()
            packet[:] = self._conceal(len(packet))
            self._hidden += len(packet)
        elif self._hidden:
            rise = (np.arange(self._fade, dtype=np.float32) + np.float32(0.5)) / np.float32(self._fade)
            packet[: self._fade] *= rise
            packet[: self._fade] += self._conceal(self._fade) * (1 - rise)
            self._hidden = 0
        self._past = np.concatenate([self._past[len(packet) :], packet])

    def _conceal(self, samples: int) -> np.ndarray:
        place = self._hidden + np.arange(samples)
        gain = np.clip((self._gone - place) / (self._gone - self._full), 0.0, 1.0).astype(np.float32)
        comfort = self._comfort[place % len(self._comfort)]
        return self._period[place % len(self._period)] * gain + comfort * (1 - gain)

    def _last_period(self) -> np.ndarray:
        """The end of the past, one period long: the lag at which the past is most like itself."""
        shortest, longest = self._periods
        recent = self._past[-self._compared :]
        alike = np.correlate(self._past[:-shortest], recent, "valid")  # lag longest ... shortest
        energy = np.convolve(np.square(self._past[:-shortest]), np.ones(self._compared, np.float32), "valid")
        lag = longest - int(np.argmax(alike / np.sqrt(np.maximum(energy, 1e-9))))
        return self._past[-lag:].copy()

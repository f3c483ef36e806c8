"""Rooms: what a shoebox room adds to a voice, by image sources (pyroomacoustics; Allen and Berkley 1979).

A response is cut to begin with the direct sound, so that a room moves no onset by a sample; what remains of distance is
the balance of direct and reverberant sound. Responses have unit energy. One takes tens of milliseconds to compute, so
reverberation time and distance are rounded (to 0.05 s and 0.25 m) and a process computes each room once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from envs.acoustics.convolution import partition
from envs.clock import CLOCK
from envs.errors import UptakeError

# Length, width, height in metres: a car, a booth, an office, a living room, a hall.
SHAPES = ((2.4, 1.4, 1.2), (3.0, 2.4, 2.4), (4.5, 3.6, 2.6), (6.2, 4.8, 2.8), (11.0, 8.2, 3.6))
_ABSORPTION = 0.12, 0.85  # mean absorption of rooms that people are in, bare to padded
_MOST_REFLECTIONS = 30
_KEPT = 0.7  # of the reverberation time: speech is 42 dB down there, below the tone of any room
_LOUDSPEAKER_DISTANCE = 0.3  # metres from the device's microphone
_OTHERS_DISTANCE = 2.0


@dataclass(frozen=True)
class Room:
    """A room and how far from the microphone the user is."""

    rt60_s: float = 0.4
    """Seconds in which sound decays by 60 dB."""
    distance_m: float = 0.5


@dataclass(frozen=True, eq=False)
class Responses:
    """What the microphone hears of a click at each place: unit energy, direct sound first; read-only."""

    user: np.ndarray
    """Spectra for `Convolution`."""
    others: np.ndarray
    """(n,) float32."""
    loudspeaker: np.ndarray
    """Spectra for `Convolution`."""


def grid(room: Room) -> Room:
    """The nearest room that is computed."""
    return Room(max(0.05, round(room.rt60_s / 0.05) * 0.05), max(0.25, round(room.distance_m / 0.25) * 0.25))


def responses(room: Room, rng: np.random.Generator) -> tuple[Responses, tuple[float, float, float]]:
    """The responses of a room of a drawn shape that can have this reverberation time, and the shape in metres."""
    room = grid(room)
    fitting = _fitting(room)
    if not fitting:
        raise UptakeError(
            f"room: no room has rt60_s {room.rt60_s:.2f} with the user at {room.distance_m:.2f} m; give a longer "
            "rt60_s or a shorter distance_m"
        )
    shape = fitting[int(rng.integers(len(fitting)))]
    return _compute(shape, room), shape


def exists(room: Room) -> bool:
    """Whether some shape can have this reverberation time and hold the user at this distance."""
    return bool(_fitting(grid(room)))


def _fitting(room: Room) -> list[tuple[float, float, float]]:
    low, high = _ABSORPTION
    return [s for s in SHAPES if low <= _absorption(s, room.rt60_s) <= high and max(s) > 2 * room.distance_m]


def _absorption(shape: tuple[float, float, float], rt60: float) -> float:
    """What share of the energy the walls absorb, by Sabine's formula."""
    x, y, z = shape
    return 0.1611 * x * y * z / (2 * (x * y + y * z + z * x)) / rt60


@lru_cache(maxsize=256)
def _compute(shape: tuple[float, float, float], room: Room) -> Responses:
    import pyroomacoustics  # over a second, most of it scipy: only where a room is asked for

    absorption, order = pyroomacoustics.inverse_sabine(room.rt60_s, shape)
    microphone = np.array([0.42 * shape[0], 0.46 * shape[1], 0.45 * shape[2]])
    box = pyroomacoustics.ShoeBox(
        shape,
        fs=CLOCK.sample_rate,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, _MOST_REFLECTIONS),
    )
    metres = box.c / CLOCK.sample_rate
    length = CLOCK.nearest_sample(_KEPT * room.rt60_s)
    found, starts = [], []
    reach = 0.5 * shape[0]
    for distance, direction in (
        (room.distance_m, (0.96, 0.2, 0.2)),
        (min(_OTHERS_DISTANCE, reach), (0.9, -0.4, 0.1)),
        (min(_LOUDSPEAKER_DISTANCE, reach), (-0.8, 0.6, 0.0)),
    ):
        samples = max(1, round(distance / metres))  # a whole number of samples: the direct sound is one sample
        box.add_source(microphone + samples * metres * np.array(direction) / np.linalg.norm(direction))
        starts.append(samples + pyroomacoustics.constants.get("frac_delay_length") // 2)
    box.add_microphone(microphone)
    box.compute_rir()
    for response, start in zip(box.rir[0], starts, strict=True):
        part = response[start : start + length].astype(np.float32)
        part /= np.sqrt(np.sum(np.square(part, dtype=np.float64)))
        part.setflags(write=False)
        found.append(part)
    user, others, loudspeaker = found
    return Responses(partition(user), others, partition(loudspeaker))

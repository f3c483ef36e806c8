"""What is heard and is no speech, made by rule: coughs, knocks, alarms, keys, hold music, a receiver put down.

Every sound has variants by number, so that no two splits of a pack share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from envs.clock import CLOCK
from envs.synthesis.engines import normalise

RATE = CLOCK.sample_rate


class Sound(NamedTuple):
    """(samples,) float32 at the level of speech, and its silences where it can be cut."""

    audio: np.ndarray
    pauses: tuple[tuple[int, int], ...] = ()


def coughs(count: int, seed: int = 7) -> list[np.ndarray]:
    """Coughs by filtered noise: two or three bursts of a sharp onset and a hoarse decay."""
    rng = np.random.default_rng(seed)
    rate, made = RATE, []
    for _ in range(count):
        bursts = []
        for _ in range(int(rng.integers(2, 4))):
            time = np.arange(int(rng.uniform(0.18, 0.3) * rate)) / rate
            envelope = np.exp(-time * rng.uniform(12, 22)) * np.minimum(time / 0.008, 1.0)
            spectrum = np.fft.rfft(rng.standard_normal(len(time)))
            hz = np.fft.rfftfreq(len(time), 1 / rate)
            centre, width = rng.uniform(600, 1200), rng.uniform(500, 900)
            shape = np.exp(-(((hz - centre) / width) ** 2)) + 0.3 * np.exp(-(((hz - 3000) / 1200) ** 2))
            bursts += [
                envelope * np.fft.irfft(spectrum * shape, len(time)),
                np.zeros(int(rng.uniform(0.05, 0.15) * rate)),
            ]
        made.append(normalise(np.concatenate(bursts) / 20))
    return made


def alarm(number: int) -> Sound:
    """A kitchen timer: three groups of three beeps."""
    pitch = (880.0, 1047.0, 988.0)[number % 3]
    beep = np.concatenate([_tone([pitch, 2 * pitch], 0.1), _silence(0.07)])
    return Sound(normalise(np.concatenate([*[beep] * 3, _silence(0.35)] * 3)))


def cough(number: int) -> Sound:
    """One cough."""
    return Sound(coughs(1, seed=100 + number)[0])


def hang_up(number: int) -> Sound:
    """A handset put down, and the tone of a line that is free again. Cut at its pause, it is the bump alone."""
    bump = _thuds([0.0, 0.09], 170.0 + 40 * (number % 3), 0.25, seed=200 + number)
    tone = np.concatenate([_tone([480.0, 620.0], 0.5), _silence(0.5)] * 4)
    pause = _silence(0.4)
    audio = np.concatenate([bump, pause, 0.5 * tone])
    level = np.float32(0.1 / np.sqrt(np.mean(np.square(audio[np.abs(audio) > 0.02]))))
    return Sound((audio * level).clip(-0.98, 0.98).astype(np.float32), ((len(bump), len(bump) + len(pause)),))


def hold_music(number: int) -> Sound:
    """Four seconds of broken chords, as queues play them."""
    roots = ((262, 220, 175, 196), (294, 247, 196, 220), (330, 277, 220, 247))[number % 3]
    notes = [root * step for root in roots for step in (1.0, 1.25, 1.5, 1.25)]
    return Sound(normalise(np.concatenate([_tone([hz, 2 * hz, 3 * hz], 0.25, decay=4.0) for hz in notes])))


def keypad(number: int) -> Sound:
    """Seven keys of a telephone (dual tones, ITU-T Q.23)."""
    digits = ("4158823", "7730916", "2069541")[number % 3]
    rows, columns = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)
    made = []
    for digit in digits:
        place = 10 if digit == "0" else int(digit) - 1
        made += [_tone([rows[place // 3], columns[place % 3]], 0.13), _silence(0.09)]
    return Sound(normalise(np.concatenate(made)))


def knock(number: int) -> Sound:
    """Somebody at the door."""
    pattern = ([0.0, 0.22, 0.44], [0.0, 0.18, 0.5, 0.68], [0.0, 0.3, 0.45])[number % 3]
    return Sound(normalise(_thuds(pattern, 210.0 + 50 * (number % 3), 0.9, seed=300 + number)))


def television(speech: np.ndarray, number: int) -> np.ndarray:
    """Speech (samples,) from a small loudspeaker over some music: (samples,) float32."""
    music = hold_music(number).audio
    mixed = speech + 0.3 * np.resize(music, len(speech))
    spectrum, hz = np.fft.rfft(mixed), np.fft.rfftfreq(len(mixed), 1 / RATE)
    spectrum *= 1 / (1 + (250 / np.maximum(hz, 1)) ** 4) / (1 + (hz / 4000) ** 6)
    dry = np.fft.irfft(spectrum, len(mixed))
    late = np.zeros_like(dry)
    for delay, gain in ((0.011, 0.4), (0.023, 0.3), (0.041, 0.2)):  # the room that it stands in
        shift = int(delay * RATE)
        late[shift:] += gain * dry[:-shift]
    return normalise(dry + late)


SOUNDS: Mapping[str, Callable[[int], Sound]] = {
    "alarm": alarm,
    "cough": cough,
    "hang_up": hang_up,
    "hold_music": hold_music,
    "keypad": keypad,
    "knock": knock,
}
"""What a pack's source may list under `sounds`."""
EFFECTS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {"television": television}
"""What a line of a pack's source may go through."""


def _tone(hertz: list[float], seconds: float, decay: float = 0.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    edge = np.minimum(1.0, np.minimum(time, seconds - time) / 0.006)
    waves = [np.sin(2 * np.pi * hz * time) / (1 + i) for i, hz in enumerate(hertz)]
    return 0.2 * edge * np.exp(-decay * time) * np.sum(waves, axis=0)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE))


def _thuds(onsets: list[float], hertz: float, seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    audio = _silence(seconds)
    for onset in onsets:
        start = int(onset * RATE)
        time = np.arange(min(int(0.15 * RATE), len(audio) - start)) / RATE
        body = np.sin(2 * np.pi * hertz * time * (1 - time)) + 0.5 * rng.standard_normal(len(time)) * np.exp(
            -time * 120
        )
        audio[start : start + len(time)] += 0.4 * body * np.exp(-time * 38) * np.minimum(1.0, time / 0.002)
    return audio

"""The way of the sound in one conversation: user, room, other sources and echo to the microphone, and on to the agent.

    agent --deadline--network--> the user's ear and loudspeaker --echo path--+
    user --room--------------------------------------------------- + --gain--clock--telephone--network--> what it hears
    noise, bursts, babble, others ---------------------------------+

One chain a row, not one for the batch: a row sounds the same to the last bit whatever is played beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.acoustics.bursts import render_bursts
from envs.acoustics.conditions import Conditions
from envs.acoustics.convolution import Convolution, convolve, partition
from envs.acoustics.drift import ClockDrift
from envs.acoustics.echo import EchoPath, synthetic_path
from envs.acoustics.fork import Block, fork
from envs.acoustics.noise import amplitude, render_noise
from envs.acoustics.packets import PACKET_MS, Connection, missing_packets
from envs.acoustics.room import Responses, grid, responses
from envs.acoustics.room_tone import coloured_bed
from envs.acoustics.talkers import Speech, render_babble, render_speaker
from envs.acoustics.telephone import TelephoneLine
from envs.acoustics.underrun import Deadline
from envs.clock import CLOCK, Clock
from envs.episode import from_pcm16, to_pcm16
from envs.seeding import Seeds

_COMFORT_DB = -62.0


class Chain:
    """What a row's conditions do to its sound, with all state that carries over from frame to frame."""

    def __init__(
        self, conditions: Conditions, seeds: Seeds, others: Sequence[Speech], samples: int, clock: Clock = CLOCK
    ) -> None:
        """Draw what is random about the effects.

        Args:
            conditions: which effects, and how much of each.
            seeds: the conversation's streams.
            others: clips of other voices of the split, for babble and a second speaker.
            samples: length of the conversation.
            clock: of the environment.
        """
        self.truth: dict[str, Any] = conditions.to_json()
        self._gain = amplitude(conditions.gain_db)
        self._room: Convolution | None = None
        self._echo: EchoPath | None = None
        self._down: Connection | None = None
        self._deadline: Deadline | None = None
        rooms = self._furnish(conditions, seeds)
        self._around = None if rooms is None else rooms.others
        if rooms is not None:
            self._room = Convolution(rooms.user)
        if conditions.echo is not None:
            tail = synthetic_path(conditions.echo.tail_ms, seeds.rng("room", "echo"), clock)
            self._echo = EchoPath(
                conditions.echo, partition(tail, clock.frame) if rooms is None else rooms.loudspeaker, clock
            )
        self._channel = self._connect(conditions, seeds, samples, clock)
        self._background = self._surround(conditions, seeds, others, samples, clock)

    # -- at the beginning ----------------------------------------------------------------------------------------------

    def _furnish(self, conditions: Conditions, seeds: Seeds) -> Responses | None:
        if conditions.room is None:
            return None
        found, shape = responses(conditions.room, seeds.rng("room", "shape"))
        room = grid(conditions.room)
        self.truth["room"] = {"rt60_s": round(room.rt60_s, 2), "distance_m": room.distance_m, "shape_m": list(shape)}
        return found

    def _connect(self, conditions: Conditions, seeds: Seeds, samples: int, clock: Clock) -> tuple[Block, ...]:
        """The blocks between the microphone and the agent, in order; the connection to the user on the way."""
        blocks: list[Block] = []
        if conditions.clock_ppm:
            blocks.append(ClockDrift(conditions.clock_ppm, samples, clock.frame))
        if conditions.telephone is not None:
            blocks.append(TelephoneLine(conditions.telephone, clock))
        if conditions.underrun is not None:
            self._deadline = Deadline(conditions.underrun, samples, seeds.rng("channel", "underrun"), clock)
            self.truth["underrun"]["missed"] = self._deadline.missed
        if conditions.network is not None:
            comfort = coloured_bed(1.0, seeds.rng("channel", "comfort"), clock.sample_rate)[: clock.sample_rate // 2]
            comfort *= amplitude(_COMFORT_DB) / np.float32(np.std(comfort))
            packets = samples // clock.samples(PACKET_MS / 1000.0)
            up, down = (
                missing_packets(conditions.network, packets, seeds.rng("channel", "packets", way))
                for way in ("up", "down")
            )
            self.truth["network"].update(missing_up=float(np.mean(up)), missing_down=float(np.mean(down)))
            blocks.append(Connection(conditions.network, up, comfort, clock))
            self._down = Connection(conditions.network, down, np.zeros(1, np.float32), clock)
        self.uplink_samples = sum(block.delay_samples for block in blocks)
        self.downlink_samples = 0 if self._down is None else self._down.delay_samples
        self.truth.update(uplink_samples=self.uplink_samples, downlink_samples=self.downlink_samples)
        return tuple(blocks)

    def _surround(
        self, conditions: Conditions, seeds: Seeds, others: Sequence[Speech], samples: int, clock: Clock
    ) -> np.ndarray | None:
        """Everything that sounds by itself: (samples,) float32, or None where nothing does."""
        sounds: list[np.ndarray] = []
        if conditions.noise is not None:
            sounds.append(render_noise(conditions.noise, samples, seeds.rng("noise", "steady"), clock))
        if conditions.bursts is not None:
            sound, spans = render_bursts(conditions.bursts, samples, seeds.rng("noise", "bursts"), clock)
            self.truth["bursts"]["spans"] = self._as_heard(spans)
            sounds.append(sound)
        if conditions.babble is not None:
            sounds.append(render_babble(conditions.babble, others, samples, seeds.rng("noise", "babble"), clock))
        if conditions.speaker is not None:
            sound, spans = render_speaker(conditions.speaker, others, samples, seeds.rng("noise", "speaker"), clock)
            self.truth["speaker"]["spans"] = self._as_heard(spans)
            sounds.append(sound if self._around is None else convolve(sound, self._around)[:samples])
        return functools.reduce(np.add, sounds) if sounds else None

    def _as_heard(self, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
        """When the agent hears what sounded then."""
        return [[on + self.uplink_samples, off + self.uplink_samples] for on, off in spans]

    def take_background(self) -> np.ndarray | None:
        """What sounds by itself, (samples,) float32, once: the caller mixes it in and the chain need not keep it."""
        background, self._background = self._background, None
        return background

    def place(self, pcm: np.ndarray) -> np.ndarray:
        """A sound of somebody or something else (n,) int16, as it arrives from across the room: (m,) int16."""
        return pcm if self._around is None else to_pcm16(convolve(from_pcm16(pcm), self._around))

    # -- every frame ---------------------------------------------------------------------------------------------------

    def step(self, agent: np.ndarray, user: np.ndarray, scene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One frame.

        Args:
            agent: (F,) float32, what the agent sends.
            user: (F,) int16, the user's voice at the mouth.
            scene: (F,) int16, everything else that sounds where the user is.

        Returns:
            What the user hears of the agent, (F,) float32, and what the agent hears, (F,) int16.
        """
        played = agent if self._deadline is None else self._deadline.process(agent)
        played = played if self._down is None else self._down.process(played)
        voice = from_pcm16(user)
        heard = voice if self._room is None else self._room.process(voice)
        heard = heard + from_pcm16(scene)
        if self._echo is not None:
            heard += self._echo.process(played)
        heard = np.clip(heard * self._gain, -1.0, 1.0)
        for block in self._channel:
            heard = block.process(heard)
        return played, to_pcm16(heard)

    def fork(self) -> Chain:
        """A chain that goes on from here by itself."""
        twin = fork(self)
        twin._channel = tuple(fork(block) for block in self._channel)
        return twin

"""How one conversation sounds: every quantity drawn. This is the truth that goes into the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from envs.acoustics.bursts import Bursts
from envs.acoustics.echo import Echo
from envs.acoustics.noise import Noise
from envs.acoustics.packets import Network
from envs.acoustics.room import Room
from envs.acoustics.talkers import Babble, Speaker
from envs.acoustics.telephone import Telephone
from envs.acoustics.underrun import Underrun

SECTIONS = {
    "noise": Noise,
    "bursts": Bursts,
    "babble": Babble,
    "speaker": Speaker,
    "room": Room,
    "echo": Echo,
    "telephone": Telephone,
    "network": Network,
    "underrun": Underrun,
}
"""Effects by the name that they have in a scenario."""
PEOPLED = frozenset({"babble", "speaker"})
"""Those in which other voices are heard."""


@dataclass(frozen=True)
class Conditions:
    """What sounds, where, and over which channel. None: that effect is off."""

    preset: str = ""
    """The preset that it was drawn from, if any."""
    noise: Noise | None = None
    bursts: Bursts | None = None
    babble: Babble | None = None
    speaker: Speaker | None = None
    room: Room | None = None
    echo: Echo | None = None
    gain_db: float = 0.0
    """Of the user's microphone."""
    telephone: Telephone | None = None
    network: Network | None = None
    underrun: Underrun | None = None
    """The agent is slower than its frames."""
    clock_ppm: float = 0.0
    """By how much the user's device counts slower than the agent's, in parts per million."""

    @property
    def clean(self) -> bool:
        """Nothing is on."""
        return not (self.gain_db or self.clock_ppm or any(getattr(self, name) for name in SECTIONS))

    @property
    def peopled(self) -> bool:
        """Other voices are heard."""
        return any(getattr(self, name) for name in PEOPLED)

    def to_json(self) -> dict[str, Any]:
        """What is on, as plain data."""
        return {name: value for name, value in asdict(self).items() if value}

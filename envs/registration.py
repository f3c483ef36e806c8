"""The environments that Gymnasium knows by name once `envs` is imported, all in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

IDS: Mapping[str, Mapping[str, Any]] = {
    "Uptake/Duplex-v0": {},  # scripted users of the core pack, clean; the action is audio
    "Uptake/DuplexReactive-v0": {"users": "reactive", "frames": 300},  # users who listen
    "Uptake/DuplexSpeakerphone-v0": {"acoustics": "speakerphone"},  # a room, and the agent's echo in the microphone
    "Uptake/DuplexTelephone-v0": {"acoustics": "telephone"},  # 8 kHz mu-law and a network, both ways late
    "Uptake/DuplexCanned-v0": {"act": "canned"},  # the action is silent, speak or backchannel: timing alone
    "Uptake/DuplexTokens-v0": {
        "act": "align.codecs.pocket:shipped"
    },  # the action is codes; give your own codec as `act`
    "Uptake/DuplexCodes-v0": {
        "act": "align.codecs.pocket:shipped",
        "obs": "align.codecs.pocket:shipped",
    },  # codes in both directions
}
"""Id -> what its constructor is given. Every argument of `DuplexVectorEnv` can be given to `gymnasium.make`, too."""


def register() -> None:
    """Tell Gymnasium; what is known already stays."""
    for name, options in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point="envs.duplex_env:DuplexEnv",
                vector_entry_point="envs.duplex_vector_env:DuplexVectorEnv",
                kwargs=dict(options),
            )

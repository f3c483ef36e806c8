"""The world: clock, audio, events, scenarios, simulated users and gymnasium environments. No torch."""

import gymnasium

if "Uptake/Duplex-v0" not in gymnasium.registry:
    gymnasium.register(
        id="Uptake/Duplex-v0",
        entry_point="envs.duplex_env:DuplexEnv",
        vector_entry_point="envs.duplex_vector_env:DuplexVectorEnv",
    )

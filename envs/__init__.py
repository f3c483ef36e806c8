"""The world: clock, audio, events, scenarios, simulated users and gymnasium environments. No torch."""

from envs.registration import register

register()

"""Simulated users: what drives the microphone."""

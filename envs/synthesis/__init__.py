"""Fills packs with speech: a build step, never part of an episode. Needs `pip install 'uptake[build]'`."""

"""Moshi-class policies: parallel text and audio streams, in the layout of the published checkpoints."""

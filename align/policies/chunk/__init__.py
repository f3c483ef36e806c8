"""A policy that decides in chunks: every 0.4 s whether to be silent or to respond, then text."""

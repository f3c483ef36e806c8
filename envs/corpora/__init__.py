"""Two-party recordings: where they lie, who speaks when, the four axes' segments in them, and how they are timed.

Nothing here needs torch. `extraction.extract` writes what `replay.load` and `laws.fit` read.
"""

"""The layouts in which Moshi-class checkpoints are published, one module each: how to read it and how to write it."""

"""Configurations, as data. `align.config.load_config("quickstart")` finds them here, installed or in a clone."""

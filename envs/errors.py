"""The one exception that means: the user can fix this."""


class UptakeError(ValueError):
    """A user's mistake (config, audio, checkpoint, scenario), told in one line; the command line exits with status 2."""

"""Errors that a user can fix.

Every message says what is wrong, where (file, key or row), what was expected and what to do next. The command line
prints it without a traceback and exits with 2; the server turns it into OpenAI's error object. `assert` is left for
our own invariants.
"""


class UserError(Exception):
    """An error that the user can fix."""


class ConfigError(UserError):
    """A setting is unknown, missing, of the wrong kind, or contradicts another."""


class DataError(UserError):
    """A file or a row of data is missing, damaged or not what it claims to be."""


class CheckpointError(UserError):
    """A checkpoint or a run folder cannot be used as it stands."""


class CapacityError(UserError):
    """The machine has too little disk, memory or time for the request."""


class RequestError(UserError):
    """A generation request asks for something that the model or the server cannot do."""


class SandboxError(UserError):
    """Code that a model wrote cannot be run here as safely as was asked."""

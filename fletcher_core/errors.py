"""The failures Fletcher reports. Each message names the thing that is wrong and what to do about it.

Everything public raises a subclass of `FletcherError`, so that one `except` clause catches all of them.
"""


class FletcherError(Exception):
    """Base of every failure that Fletcher reports on purpose."""


class ConfigError(FletcherError):
    """A setting has a value that cannot work."""


class SourceError(FletcherError):
    """A table, file or column to read from is missing, locked or damaged."""


class SourceLockedError(SourceError):
    """A writer holds the database to read from: try again later."""


class InputError(FletcherError):
    """Rows of the input cannot be embedded and the policy in force is to fail on them."""


class ModelError(FletcherError):
    """A model's files are missing, damaged or of an unsupported kind."""


class EngineError(FletcherError):
    """The device or the inference engine failed."""


class RunCancelled(FletcherError):
    """The caller asked the run to stop; what was committed stays, the next run does the rest."""


class DeadlineExceeded(FletcherError):
    """The time that the caller allowed is up; nothing of this call is returned."""


class Overloaded(FletcherError):
    """There is no room in the queue: nothing was begun, and `retry_after` seconds from now there may be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreError(FletcherError):
    """The vector store on disk cannot be read or written."""


class StoreLockedError(StoreError):
    """Another run is writing the same partition of the vector store."""


class LongbowError(FletcherError):
    """A call to a Longbow server failed."""


class LongbowUnavailable(LongbowError):
    """Longbow did not answer in time or is down: try again later; the outcome of an open put is unknown."""


class LongbowRejected(LongbowError):
    """Longbow refused the request for good: the same request will be refused again."""


class LongbowNotFound(LongbowError):
    """The dataset or row does not exist on the Longbow server."""

"""Failures as Flight tells them: a FletcherError in, the exception whose status code says what a client should do out.

| Fletcher | Flight |
|---|---|
| Overloaded | UNAVAILABLE, and `extra_info` holds `{"retry_after": seconds}` |
| LongbowUnavailable, RunCancelled (the service is stopping) | UNAVAILABLE |
| DeadlineExceeded | DEADLINE_EXCEEDED |
| ConfigError, InputError, other LongbowErrors | INVALID_ARGUMENT |
| any other | INTERNAL |
"""

import json

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import (
    ConfigError,
    DeadlineExceeded,
    FletcherError,
    InputError,
    LongbowError,
    LongbowUnavailable,
    Overloaded,
    RunCancelled,
)


def flight_error(error: FletcherError) -> Exception:
    """The exception to raise from a Flight method."""
    words = str(error)
    if isinstance(error, Overloaded):
        if "retry" not in words.lower():
            words = f"{words}; try again in {error.retry_after:.3g} seconds"
        return flight.FlightUnavailableError(words, json.dumps({"retry_after": error.retry_after}).encode())
    if isinstance(error, LongbowUnavailable | RunCancelled):
        return flight.FlightUnavailableError(words)
    if isinstance(error, DeadlineExceeded):
        return flight.FlightTimedOutError(words)
    if isinstance(error, ConfigError | InputError | LongbowError):
        return pa.ArrowInvalid(words)
    return flight.FlightInternalError(words)

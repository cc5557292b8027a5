"""The calls that run: so many at most, none once the service drains."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.flight as flight

from fletcher_core.telemetry.metrics import REJECTED


class RunningCalls:
    """Counts calls. A call beyond `most` is refused at once: each has a thread of the server's."""

    def __init__(self, most: int):
        self._most = most
        self._running = 0
        self._draining = False
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        return self._running

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call runs inside the block. Raises FlightUnavailableError when it may not."""
        with self._changed:
            if self._draining:
                REJECTED.labels("draining").inc()
                raise flight.FlightUnavailableError("the service is stopping: call another one, or try again later")
            if self._running >= self._most:
                REJECTED.labels("overload").inc()
                raise flight.FlightUnavailableError(
                    f"{self._running} calls run already, as many as the service takes at once; try again in 1 second",
                    b'{"retry_after": 1.0}',
                )
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Refuse new calls from now on, and wait so long for those that run; whether all have ended."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._draining = True
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._running

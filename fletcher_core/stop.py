"""Why work should end before it is done: somebody asks for it, or its time is up. Passed down to the device."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fletcher_core.errors import DeadlineExceeded, RunCancelled

_SLICE = 0.02  # seconds between two looks while waiting for others


@dataclass(frozen=True)
class Stop:
    """Looked at between two pieces of work, about 10 ms apart on a GPU.

    `cancelled` is set by another thread; `deadline` is a moment of `time.monotonic`, in seconds.
    """

    cancelled: threading.Event | None = None
    deadline: float | None = None

    @classmethod
    def after(cls, seconds: float | None, cancelled: threading.Event | None = None) -> "Stop":
        """Stop `seconds` from now; None is no deadline."""
        return cls(cancelled, None if seconds is None else time.monotonic() + seconds)

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            RunCancelled: `cancelled` was set.
            DeadlineExceeded: `deadline` has passed.
        """
        if self.cancelled is not None and self.cancelled.is_set():
            raise RunCancelled("the run was cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineExceeded("the deadline passed before all texts were embedded: allow more time, or send fewer")

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold `lock` inside the block; waiting for it ends as work does.

        Raises:
            RunCancelled, DeadlineExceeded: as `check`, while another thread held the lock.
        """
        while not lock.acquire(timeout=_SLICE):
            self.check()
        try:
            yield
        finally:
            lock.release()


NEVER = Stop()

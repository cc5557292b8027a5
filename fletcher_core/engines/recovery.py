"""How an engine that failed is taken back: tried again in the background, after intervals that grow with each failure.

In: word that it failed, and how it is started anew. Out: that it is well again, and a record of what became of it.
"""

import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

Attempt = Callable[[], float | None]
"""Starts the engine anew; returns seconds until the next attempt, None when none is needed."""


@dataclass(frozen=True)
class ProbeIntervals:
    """Seconds from a failure to the next start of the failed engine: `first`, doubled with each failure up to
    `longest`, shortened at random by up to a quarter. An engine that was well for as long begins anew."""

    first: float = 5.0
    longest: float = 600.0


@dataclass(frozen=True)
class EngineHealth:
    """What became of the engine so far: how often it `failed` and was `taken_back`; the `batches` that another one
    computed in its place; whether that is `standing_in` now; why, in `last_failure`. Of an engine on several `devices`,
    `devices_out` are those that compute nothing now."""

    failed: int = 0
    taken_back: int = 0
    batches: int = 0
    standing_in: bool = False
    last_failure: str = ""
    devices: int = 1
    devices_out: tuple[str, ...] = ()

    @property
    def is_impaired(self) -> bool:
        """Whether something computes now that is not the whole of the engine."""
        return self.standing_in or bool(self.devices_out)


class Recovery:
    """The attempts to take one engine back. `close` ends them for ever."""

    def __init__(self, intervals: ProbeIntervals) -> None:
        self._intervals = intervals
        self._interval = intervals.first
        self._well_since = time.monotonic()
        self._closing = threading.Event()
        weakref.finalize(self, self._closing.set)

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    def failed(self) -> float:
        """The engine failed, and was well before; seconds until it should be tried again."""
        if time.monotonic() - self._well_since > self._interval:
            self._interval = self._intervals.first
        return self.next_wait()

    def next_wait(self) -> float:
        """Seconds until the next attempt."""
        wait = self._interval * random.uniform(0.75, 1.0)
        self._interval = min(2 * self._interval, self._intervals.longest)
        return wait

    def well(self) -> None:
        """The engine is well from now on."""
        self._well_since = time.monotonic()

    def begin(self, attempt: Attempt, wait: float) -> None:
        """Make the bound method `attempt` on a thread, after `wait` seconds and then as it says. Its object is not held
        by the thread: an engine that nobody has any more is not tried again."""
        probing = (weakref.WeakMethod(attempt), self._closing, wait)
        threading.Thread(target=_probe, args=probing, name="fletcher-probe", daemon=True).start()

    def close(self) -> None:
        """Make no attempt any more; one that is under way should see that."""
        self._closing.set()


def _probe(method: "weakref.WeakMethod[Attempt]", closing: threading.Event, wait: float | None) -> None:
    while wait is not None and not closing.wait(wait):
        attempt = method()
        wait = None if attempt is None else attempt()
        del attempt

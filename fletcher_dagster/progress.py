"""Runs the pipeline on a thread of its own while the step's main thread watches it and logs how far it is.

Dagster interrupts a step by an exception in the main thread, at any instruction. Here that thread only waits and
logs, so an interrupt never lands inside the pipeline: it sets the `cancelled` event, the pipeline stops between
two batches with all that it has committed, and the interrupt goes on its way.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import dagster as dg

from fletcher_core.telemetry import Progress
from fletcher_core.telemetry.context import in_this_context

T = TypeVar("T")


class ProgressLog:
    """The latest progress as a log line: rows done, texts per second, time left."""

    def __init__(self, context: dg.AssetExecutionContext, what: str) -> None:
        self._context = context
        self._what = what
        self._latest: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Called by the pipeline, on its thread."""
        self._latest = progress

    def write(self) -> None:
        """Called by the watching thread."""
        if self._latest is not None:
            self._context.log.info(f"{self._what}: {progress_line(self._latest)}")


def progress_line(progress: Progress) -> str:
    line = f"{progress.embedded:,} of {progress.total:,} rows, {progress.texts_per_s:,.0f} texts/s"
    if progress.embedded <= 0 or progress.embedded >= progress.total:
        return line
    left = progress.seconds * (progress.total - progress.embedded) / progress.embedded
    return f"{line}, about {_duration(left)} left"


def watched(work: Callable[[threading.Event], T], tick: Callable[[], None], seconds: float = 5.0) -> T:
    """The result of `work(cancelled)`, calling `tick()` in this thread every `seconds` until it is there."""
    cancelled = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="fletcher-run") as thread:
        future = thread.submit(in_this_context(work), cancelled)
        try:
            while not wait([future], timeout=seconds).done:
                tick()
        finally:
            cancelled.set()  # a finished pipeline does not look; a running one stops before the block is left
        return future.result()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

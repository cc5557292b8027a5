"""Runs the pipeline on a thread of its own while the step's main thread watches it and shows how far it is.

Dagster interrupts a step by an exception in the main thread, at any instruction. Here that thread only waits and
reports, so an interrupt never lands inside the pipeline: it sets the `cancelled` event, the pipeline stops between
two batches with all that it has committed, and the interrupt goes on its way.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import dagster as dg

from fletcher_core.telemetry import Progress, RunReport
from fletcher_core.telemetry.context import in_this_context

T = TypeVar("T")

LOG_SECONDS = 5.0
"""Between two lines of the log."""

_OBSERVE_SECONDS = 10.0
# Of a long run an observation falls due ever later, so that ten hours of it are some 300 events.
_OBSERVE_SHARE = 0.02


class RunProgress:
    """How far an asset's run is: lines of the log, and observations that the asset's page lists and plots."""

    def __init__(self, context: dg.AssetExecutionContext, key: dg.AssetKey, what: str) -> None:
        self._context = context
        self._key = key
        self._what = what
        self._began = time.monotonic()
        self._logged = self._observed = self._began
        self.latest: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Called by the pipeline, on its thread."""
        self.latest = progress

    def show(self) -> None:
        """Called by the watching thread, again and again: says what is due."""
        now, latest = time.monotonic(), self.latest
        if latest is None:
            return
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._context.log.info(f"{self._what}: {progress_line(latest)}")
        if now - self._observed >= max(_OBSERVE_SECONDS, _OBSERVE_SHARE * (now - self._began)):
            self._observed = now
            self._context.log_event(
                dg.AssetObservation(
                    asset_key=self._key,
                    description=progress_line(latest),
                    metadata=progress_metadata(latest),
                )
            )

    def committed(self) -> str:
        """What is safe in the store by now, as half a sentence."""
        latest = self.latest
        if latest is None:
            return "nothing was committed yet"
        of_partitions = (
            f" and {latest.partitions_done:,} of {latest.partitions:,} partitions are complete"
            if latest.partitions > 1
            else ""
        )
        rows = "row is" if latest.committed == 1 else "rows are"
        return f"{latest.committed:,} {rows} committed{of_partitions}; the next run does only the rest"

    def figures(self) -> dict[str, int]:
        """The same as metadata of a failed step."""
        latest = self.latest
        if latest is None:
            return {}
        return {
            "fletcher/rows_committed": latest.committed,
            "fletcher/rows_to_embed": latest.total,
            "fletcher/partitions_committed": latest.partitions_done,
        }


def progress_line(progress: Progress) -> str:
    """Rows done, partitions done, texts per second, time left."""
    line = f"{progress.embedded:,} of {progress.total:,} rows, {progress.texts_per_s:,.0f} texts/s"
    if progress.partitions > 1:
        line = f"{progress.partitions_done:,} of {progress.partitions:,} partitions, {line} so far"
    left = seconds_left(progress)
    return line if left is None else f"{line}, about {_duration(left)} left"


def progress_metadata(progress: Progress) -> dict[str, Any]:
    """The same as numbers; keys of their own, so that a page never shows them in place of a materialization's."""
    figures: dict[str, Any] = {
        "fletcher/progress_rows": progress.embedded,
        "fletcher/progress_rows_total": progress.total,
        "fletcher/progress_rows_committed": progress.committed,
        "fletcher/progress_texts_per_s": round(progress.texts_per_s, 1),
        "fletcher/progress_seconds": round(progress.seconds, 1),
    }
    if progress.partitions > 1:
        figures["fletcher/progress_partitions"] = progress.partitions_done
        figures["fletcher/progress_partitions_total"] = progress.partitions
    left = seconds_left(progress)
    return figures if left is None else figures | {"fletcher/progress_seconds_left": round(left, 1)}


def seconds_left(progress: Progress) -> float | None:
    """Until the end at the present pace; None where nothing is known of it, or nothing is left.

    Of several partitions the later ones are not looked at yet: those that are done say how long one takes.
    """
    done, total = float(progress.embedded), float(progress.total)
    if progress.partitions > 1:
        done, total = float(progress.partitions_done), float(progress.partitions)
    return progress.seconds * (total - done) / done if 0 < done < total else None


def watched(
    work: Callable[[threading.Event, Callable[[RunReport], None]], T],
    show: Callable[[], None],
    committed: Callable[[RunReport], None],
    seconds: float = 0.5,
) -> T:
    """The result of `work(cancelled, report)`, calling `show()` in this thread every `seconds` until it is there.

    What `work` reports is handed to `committed` in this thread, also when the run fails or is interrupted.
    """
    cancelled = threading.Event()
    reports: queue.SimpleQueue[RunReport | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1, thread_name_prefix="fletcher-run") as thread:
        future = thread.submit(in_this_context(work), cancelled, reports.put)
        future.add_done_callback(lambda _: reports.put(None))
        try:
            _hand_on(reports, committed, show, seconds)
        finally:
            if not future.done():
                cancelled.set()  # the pipeline stops before the block is left, and what it committed is reported
                _hand_on(reports, committed, _nothing, seconds)
        return future.result()


def _hand_on(
    reports: "queue.SimpleQueue[RunReport | None]",
    committed: Callable[[RunReport], None],
    show: Callable[[], None],
    seconds: float,
) -> None:
    while True:
        try:
            report = reports.get(timeout=seconds)
        except queue.Empty:
            show()
            continue
        if report is None:
            return
        committed(report)
        show()


def _nothing() -> None:
    """Nothing is shown while a run ends."""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

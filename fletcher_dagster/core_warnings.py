"""What Fletcher's core warns of while a step runs, in Dagster's log of the run.

In come records of the logger `fletcher_core`, from whatever thread; out they go to the context's log, on the thread
that hands them on: Dagster's log is the step's main thread's. Without it, who waits for a locked database sees nothing.
"""

import logging
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from fletcher_core.telemetry.redaction import without_secrets

_CORE = logging.getLogger("fletcher_core")


class _Waiting(logging.Handler):
    """Keeps records until they are handed on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)

    def hand_on(self, log: Callable[[int, str], None]) -> None:
        while not self.records.empty():
            record = self.records.get()
            log(record.levelno, without_secrets(record.getMessage()))


@contextmanager
def core_warnings(context: dg.AssetExecutionContext) -> Iterator[Callable[[], None]]:
    """Within the block, what is yielded hands on the warnings that came; at its end the rest is handed on.

    Where Dagster manages the core's logger itself (`python_logs` in dagster.yaml), nothing is handed on twice.
    """
    if any(type(handler).__module__.startswith("dagster.") for handler in (*_CORE.handlers, *logging.root.handlers)):
        yield _nothing
        return
    waiting = _Waiting()
    _CORE.addHandler(waiting)
    try:
        yield lambda: waiting.hand_on(context.log.log)
    finally:
        _CORE.removeHandler(waiting)
        waiting.hand_on(context.log.log)


def _nothing() -> None:
    """Dagster has them already."""

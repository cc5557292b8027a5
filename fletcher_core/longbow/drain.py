"""Waiting for a delivery as somebody does who started it by hand: a sender in, its last report out."""

import time
from collections.abc import Callable

from fletcher_core.longbow.sender import DeliveryReport, Sender

_POLL = 0.5
_PAUSE = 0.1
_PATIENCE = 5.0  # seconds without a row delivered until an open circuit is taken for an outage


def drain(
    sender: Sender, *, timeout: float | None = None, progress: Callable[[DeliveryReport], None] | None = None
) -> DeliveryReport:
    """Wait until everything is searchable, or waiting will not help.

    That is when the server refuses rows for good or its index stays short; after `timeout` seconds; and, without a
    timeout, when the server is down for more than a moment. With one, outages are waited out. `progress` is called at
    least every half second.
    """
    started = moved = time.monotonic()
    before: dict[str, int] = {}
    while True:
        left = _POLL if timeout is None else started + timeout - time.monotonic()
        report = sender.drain(max(0.0, min(left, _POLL)))
        now = time.monotonic()
        if report.rows != before:
            before, moved = report.rows, now
        if progress is not None:
            progress(report)
        is_complete = report.is_complete and report.was_checked
        is_down = report.circuit == "open" and now - moved >= _PATIENCE
        if is_complete or report.rejected or report.not_searchable or (is_down if timeout is None else left <= 0):
            return report
        if report.circuit == "open":  # then a sender does not wait
            time.sleep(max(0.0, min(_PAUSE, left)))

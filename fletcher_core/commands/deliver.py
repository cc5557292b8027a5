"""`fletcher deliver`: what waits in a store in, the same rows searchable on a Longbow server out."""

import argparse
import sys
import time

from fletcher_core.commands.options import (
    Commands,
    add_longbow,
    add_store,
    in_options,
    longbow_settings,
    newest,
    open_store,
    seconds,
)
from fletcher_core.commands.progress_line import ProgressLine
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.sender import DeliveryReport, Sender


def add(commands: Commands) -> None:
    """Describe the arguments."""
    command = commands.add_parser("deliver", help="send to Longbow what waits in the store")
    command.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="go on for so long, through outages too; without it, until all is searchable or the server is down",
    )
    add_longbow(command)
    add_store(command)


def run(options: argparse.Namespace) -> int:
    """0 when every row is searchable; 1, with the reason, when not. Both say in a line what was done."""
    started = time.monotonic()
    with open_store(options) as store, LongbowClient(longbow_settings(options, store)) as client:
        line = ProgressLine(sys.stderr)
        with Sender(newest(store), client) as sender:
            waiting = pending_rows(sender.report())

            def show(report: DeliveryReport) -> None:
                left = pending_rows(report)
                total = max(waiting, left)
                line.show(f"{total - left} of {total} rows delivered{_hindrance(report)}")

            try:
                report = drain(sender, timeout=options.timeout, progress=show)
            finally:
                line.end()
    left = pending_rows(report)
    print(
        f"{report.dataset} to Longbow at {report.target}: {report.rows_sent} rows sent ({report.bytes_sent} bytes) in "
        f"{time.monotonic() - started:.1f} s, {report.rows_retired} outdated rows deleted; "
        f"{report.rows['searchable']} rows searchable, {left} waiting"
    )
    if report.is_complete and report.was_checked:
        return 0
    print(f"fletcher: {in_options(why_not_complete(report))}", file=sys.stderr)
    return 1


def pending_rows(report: DeliveryReport) -> int:
    """How many rows are not searchable yet."""
    return sum(count for state, count in report.rows.items() if state != "searchable")


def why_not_complete(report: DeliveryReport) -> str:
    """In a sentence."""
    said = report.rejected or report.unavailable or report.not_searchable
    return said or "Longbow was still busy when the timeout passed. Deliver again later: nothing is sent twice"


def _hindrance(report: DeliveryReport) -> str:
    return "; Longbow is down, waiting to try it again" if report.circuit == "open" else ""

"""`fletcher deliver`: what waits in a store in, the same rows searchable on a Longbow server out."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, in_options, longbow_client, newest, open_store
from fletcher_core.commands.output import counted, note, print_json
from fletcher_core.commands.progress import Progress

if TYPE_CHECKING:
    from fletcher_core.longbow.sender import DeliveryReport


def deliver(
    store: options.Store,
    collection: options.Collection,
    timeout: options.Timeout = None,
    longbow: options.Longbow = "",
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Send to Longbow what waits in the store.

    With a timeout it goes on for so long, through outages too; without one, until all is searchable or the server is
    down. The status is 0 when every row is searchable.
    """
    from fletcher_core.longbow.drain import drain
    from fletcher_core.longbow.sender import Sender
    from fletcher_core.store.status import outbox_rows

    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    started = time.monotonic()
    with (
        open_store(store, collection) as opened,
        longbow_client(said, opened, store) as client,
        Progress("rows") as progress,
        Sender(newest(opened), client) as sender,
    ):
        waiting = pending_rows(sender.report())

        def show(report: "DeliveryReport") -> None:
            left = pending_rows(report)
            total = max(waiting, left)
            progress.show(total - left, total, _hindrance(report))

        report = drain(sender, timeout=timeout, progress=show)
        live = outbox_rows(newest(opened), report.target)["searchable"]
    left, seconds = pending_rows(report), time.monotonic() - started
    is_delivered = report.is_complete and report.was_checked
    problem = ""
    if not is_delivered:
        problem = in_options(why_not_complete(report))
    if as_json:
        print_json({**asdict(report), "waiting": left, "seconds": round(seconds, 3), "problem": problem})
        return 0 if is_delivered else 1
    print(
        f"{report.dataset} to Longbow at {report.target}: "
        f"{counted(report.rows_sent, 'row', 'rows')} sent ({report.bytes_sent} bytes) in "
        f"{seconds:.1f} s, {counted(report.rows_retired, 'outdated row', 'outdated rows')} deleted; "
        f"{counted(live, 'live row', 'live rows')} searchable, {left} waiting"
    )
    if is_delivered:
        return 0
    note(problem)
    return 1


def pending_rows(report: "DeliveryReport") -> int:
    """How many rows are not searchable yet."""
    return sum(count for state, count in report.rows.items() if state != "searchable")


def why_not_complete(report: "DeliveryReport") -> str:
    """In a sentence."""
    said = report.rejected or report.unavailable or report.not_searchable
    return said or "Longbow was still busy when the timeout passed. Deliver again later: nothing is sent twice"


def _hindrance(report: "DeliveryReport") -> str:
    return "Longbow is down, waiting to try it again" if report.circuit == "open" else ""

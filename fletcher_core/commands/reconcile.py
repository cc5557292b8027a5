"""`fletcher reconcile`: store and Longbow compared, what is missing sent again, figures out."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, longbow_client, newest, open_store
from fletcher_core.commands.output import print_json
from fletcher_core.commands.progress import Progress

if TYPE_CHECKING:
    from fletcher_core.longbow.reconcile import ReconcileReport


def reconcile(
    store: options.Store,
    collection: options.Collection,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compare.")] = False,
    timeout: options.Timeout = None,
    longbow: options.Longbow = "",
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Compare store and Longbow, send again what is missing there.

    The status is 0 when the books balance: every live row of the store is on the server and searchable. A timeout is
    for sending again.
    """
    from fletcher_core.longbow.reconcile import reconcile as compare_and_send

    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    with (
        open_store(store, collection) as opened,
        longbow_client(said, opened, store) as client,
        Progress("rows") as progress,
    ):
        report = compare_and_send(newest(opened), client, dry_run=dry_run, timeout=timeout, progress=progress.say)
    if as_json:
        print_json({**asdict(report), "surplus": report.surplus, "balances": report.balances})
    else:
        print(described(report, dry_run=dry_run))
    return 0 if report.balances else 1


def described(report: "ReconcileReport", *, dry_run: bool) -> str:
    """The report in a few lines."""
    lines = [
        f"{report.dataset} and Longbow at {report.target}",
        f"store:     {report.rows} live rows in {report.segments} segments",
        f"server:    {report.on_server} rows: {report.on_server - report.surplus} of the store's live rows, "
        f"{report.surplus} surplus",
        f"missing:   {report.missing} of {report.rows} live rows",
        f"surplus:   {report.superseded} replaced or deleted in the store, {report.repeated} further copies, "
        f"{report.unknown} of no segment of the store",
    ]
    if not dry_run:
        lines.append(
            f"done:      {report.sent} rows sent again, {report.deleted} outdated rows deleted, "
            f"{report.kept} could not be deleted"
        )
    if report.balances:
        lines.append(f"balanced:  all {report.rows} live rows are on the server and searchable")
    else:
        lines.append(
            f"unbalanced: {report.still_missing} live rows are not on the server; "
            + (report.problem or f"searches look at {report.index_len} rows")
        )
    return "\n".join(lines)

"""`fletcher reconcile`: store and Longbow compared, what is missing sent again, figures out."""

import argparse
import sys

from fletcher_core.commands.options import (
    Commands,
    add_longbow,
    add_store,
    longbow_settings,
    newest,
    open_store,
    seconds,
)
from fletcher_core.commands.progress_line import ProgressLine
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.reconcile import ReconcileReport, reconcile


def add(commands: Commands) -> None:
    """Describe the arguments."""
    command = commands.add_parser("reconcile", help="compare store and Longbow, send again what is missing there")
    command.add_argument("--dry-run", action="store_true", help="only compare")
    command.add_argument("--timeout", type=seconds, metavar="SECONDS", help="of sending again; no limit by default")
    add_longbow(command)
    add_store(command)


def run(options: argparse.Namespace) -> int:
    """0 when the books balance: every live row of the store is on the server and searchable. 1 when not."""
    with open_store(options) as store, LongbowClient(longbow_settings(options, store)) as client:
        line = ProgressLine(sys.stderr)
        try:
            report = reconcile(
                newest(store), client, dry_run=options.dry_run, timeout=options.timeout, progress=line.show
            )
        finally:
            line.end()
    print(described(report, dry_run=options.dry_run))
    return 0 if report.balances else 1


def described(report: ReconcileReport, *, dry_run: bool) -> str:
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

"""`fletcher quarantine`: the rows that could not be embedded, with why; and asking that they be tried again."""

import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import open_store
from fletcher_core.commands.output import named, print_json, printable
from fletcher_core.errors import ConfigError

if TYPE_CHECKING:
    from fletcher_core.store import VectorStore

_INDENT = "    "
_LEAST_WIDTH = 60  # columns of a message, however narrow the terminal

_Partition = Annotated[str | None, typer.Option("--partition", metavar="KEY", help="Only of this partition.")]

group = typer.Typer(
    help="Rows that could not be embedded: list them, try them again.", no_args_is_help=True, rich_markup_mode=None
)


@group.command("list")
def listed(
    store: options.Store,
    collection: options.Collection,
    reason: Annotated[str | None, typer.Option("--reason", help="Only of this reason.")] = None,
    partition: _Partition = None,
    as_json: options.Json = False,
) -> int:
    """Print the rows with their reasons."""
    with open_store(store, collection) as opened:
        rows = _rows(opened, partition)
        if reason is not None:
            from fletcher_core.store.quarantine import REASONS

            known = {*REASONS, *(row["reason"] for row in rows)}
            if reason not in known:
                raise ConfigError(f"--reason is {reason!r}: there is no such reason; known are {named(known)}")
            rows = [row for row in rows if row["reason"] == reason]
    for row in rows:
        if as_json:
            print_json(row)
        else:
            print("\n".join(_lines(row)))
    if not as_json:
        counts = sorted(Counter(row["reason"] for row in rows).items())
        summary = ", ".join(f"{count} {name}" for name, count in counts)
        print(f"{len(rows)} rows in the quarantine of {collection!r}" + (f": {summary}" if summary else ""))
    return 0


@group.command("retry")
def retry(
    store: options.Store,
    collection: options.Collection,
    ids: Annotated[list[str] | None, typer.Argument(help="Which rows; all when none is named.")] = None,
    partition: _Partition = None,
    as_json: options.Json = False,
) -> int:
    """Have the next run try rows again, however often they failed."""
    with open_store(store, collection) as opened:
        rows = _rows(opened, partition)
        if unknown := sorted(set(ids or ()) - {row["id"] for row in rows}):
            raise ConfigError(
                f"not in the quarantine of {collection!r}: {', '.join(unknown)}; `fletcher quarantine list` "
                "prints the ids that are"
            )
        count = opened.quarantine.retry(ids or None, partition)
    if as_json:
        print_json({"collection": collection, "retried": count})
    else:
        print(f"{count} rows are tried again by the next run")
    return 0


def _rows(store: "VectorStore", partition: str | None) -> list[dict[str, Any]]:
    """Raises ConfigError for a partition that neither the store nor its quarantine has."""
    rows: list[dict[str, Any]] = store.quarantine.read(partition).to_pylist()
    if partition is not None and not rows:
        known = {key for generation in store.generations() for key in generation.partitions()}
        known |= set(store.quarantine.read()["partition_key"].to_pylist())
        if partition not in known:
            raise ConfigError(f"--partition is {partition!r}: there is no such partition; known are {named(known)}")
    return rows


def _lines(row: dict[str, Any]) -> list[str]:
    """The row in one line if it fits, else its message below, whole: what to do stands at the end of it."""
    where = f" in {row['partition_key']}" if row["partition_key"] else ""
    head = printable(f"{row['id']}{where}  {row['reason']}  {_tries(row['attempts'])}")
    message = printable(row["message"])
    width = max(_LEAST_WIDTH, shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120)
    if len(head) + 2 + len(message) <= width:
        return [f"{head}  {message}"]
    wrapped = textwrap.wrap(message, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)
    return [head, *wrapped]


def _tries(attempts: int) -> str:
    return {0: "to be tried again", 1: "tried once"}.get(attempts, f"tried {attempts} times")

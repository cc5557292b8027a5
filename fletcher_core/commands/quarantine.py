"""`fletcher quarantine`: the rows that could not be embedded, with why; and asking that they be tried again."""

import argparse
import json

import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.commands.options import Commands, add_store, open_store
from fletcher_core.errors import ConfigError

_WIDTH = 100  # characters of a message in a table


def add(commands: Commands) -> None:
    """Describe the arguments."""
    command = commands.add_parser("quarantine", help="rows that could not be embedded: list them, try them again")
    actions = command.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="print them with their reasons")
    listing.add_argument("--reason", help="only of this reason, as in the second column")
    listing.add_argument("--json", action="store_true", help="a JSON object a line, messages in full")
    retrying = actions.add_parser("retry", help="have the next run try them again, however often they failed")
    retrying.add_argument("ids", nargs="*", metavar="ID", help="which rows; all when none is named")
    for action in (listing, retrying):
        action.add_argument("--partition", help="only of this partition")
        add_store(action)


def run(options: argparse.Namespace) -> int:
    """Print the rows, or how many will be tried again.

    Raises:
        ConfigError: an id that is not in the quarantine.
    """
    with open_store(options) as store:
        quarantine = store.quarantine
        rows = quarantine.read(options.partition)
        if options.action == "list":
            _print(rows if options.reason is None else rows.filter(pc.equal(rows["reason"], options.reason)), options)
            return 0
        if unknown := sorted(set(options.ids) - set(rows["id"].to_pylist())):
            raise ConfigError(
                f"not in the quarantine of {options.collection!r}: {', '.join(unknown)}; `fletcher quarantine list` "
                "prints the ids that are"
            )
        count = quarantine.retry(options.ids or None, options.partition)
        print(f"{count} rows are tried again by the next run")
        return 0


def _print(rows: pa.Table, options: argparse.Namespace) -> None:
    records = rows.to_pylist()
    if options.json:
        for record in records:
            print(json.dumps(record, default=str, ensure_ascii=False))
        return
    for record in records:
        where = f" in {record['partition_key']}" if record["partition_key"] else ""
        message = record["message"] if len(record["message"]) <= _WIDTH else record["message"][: _WIDTH - 3] + "..."
        print(_printable(f"{record['id']}{where}  {record['reason']}  {_tries(record['attempts'])}  {message}"))
    counts = rows.group_by("reason").aggregate([("id", "count")]).sort_by("reason").to_pylist()
    summary = ", ".join(f"{count['id_count']} {count['reason']}" for count in counts)
    print(f"{len(records)} rows in the quarantine of {options.collection!r}" + (f": {summary}" if summary else ""))


def _printable(line: str) -> str:
    """Ids and messages come out of the data: no line of theirs breaks ours, and none speaks to the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def _tries(attempts: int) -> str:
    return {0: "to be tried again", 1: "tried once"}.get(attempts, f"tried {attempts} times")

"""The `fletcher` command: arguments in, the command's module called, its status out."""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from fletcher_core.commands import compact, deliver, quarantine, reconcile, search, selftest
from fletcher_core.commands.options import Commands, in_options
from fletcher_core.errors import FletcherError
from fletcher_core.interrupts import EXIT_STATUS, orderly_then_at_once


class _Command(Protocol):
    def add(self, commands: Commands) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


_COMMANDS: dict[str, _Command] = {
    "search": search,
    "deliver": deliver,
    "reconcile": reconcile,
    "quarantine": quarantine,
    "compact": compact,
    "selftest": selftest,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it worked, 1 with the reason on standard error when it did not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="fletcher", description="Embeddings of DuckDB and Parquet tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in _COMMANDS.values():
        module.add(commands)
    options = parser.parse_args(arguments)
    try:
        with orderly_then_at_once():
            return _COMMANDS[options.command].run(options)
    except FletcherError as error:
        print(f"fletcher: {in_options(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fletcher: interrupted; what was done so far stays", file=sys.stderr)
        return EXIT_STATUS

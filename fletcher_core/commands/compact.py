"""`fletcher compact`: a store in, the same store in fewer files out."""

import argparse

from fletcher_core.commands.options import Commands, add_store, open_store


def add(commands: Commands) -> None:
    """Describe the arguments."""
    add_store(commands.add_parser("compact", help="merge segment files, drop superseded rows"))


def run(options: argparse.Namespace) -> int:
    """Compact every generation and print what that did."""
    with open_store(options) as store:
        for generation in store.generations():
            report = generation.compact()
            print(
                f"{generation.name}: {report.files_before} -> {report.files_after} files, "
                f"{report.rows_before} -> {report.rows_after} rows, {report.bytes_before} -> {report.bytes_after} bytes"
            )
    return 0

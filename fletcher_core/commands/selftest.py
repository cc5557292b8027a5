"""`fletcher selftest`: this machine in, a report to paste out."""

from pathlib import Path
from typing import Annotated

import typer

from fletcher_core.commands import options


def selftest(
    model: options.Model = options.DEFAULT_MODEL,
    quick: Annotated[bool, typer.Option("--quick", help="Leave the benchmark out.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the figures to a JSON file, too.")
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Check this machine's GPU or CPU, print a report to paste."""
    from fletcher_core.selftest import selftest as run

    return run(model, quick=quick, json_file=output, as_json=as_json)

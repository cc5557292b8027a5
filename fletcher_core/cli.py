"""The `fletcher` command: arguments in, the command's module called, its status out.

Ctrl-C is taken care of before anything large is imported, and every failure is one line: of words, or of JSON.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise

from fletcher_core.errors import ConfigError, FletcherError
from fletcher_core.interrupts import EXIT_STATUS, orderly_then_at_once

TRACEBACK = "FLETCHER_TRACEBACK"
"""Environment variable: set, what nobody expected is raised with its traceback."""
LOG = "FLETCHER_LOG"
"""Environment variable: auto, pretty or json shows the log on standard error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it worked, 1 with the reason on standard error when it did not, 130 after Ctrl-C.

    Raises:
        SystemExit: with 2 for arguments that are none of a command's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    try:
        with orderly_then_at_once(to_the_end=arguments is None):
            return _run(given, as_json)
    except FletcherError as error:
        from fletcher_core.commands.options import in_options

        _tell(type(error).__name__, in_options(str(error)), as_json)
        return 1
    except KeyboardInterrupt:
        _tell("KeyboardInterrupt", f"interrupted{_what_stays(given)}", as_json)
        return EXIT_STATUS
    except BrokenPipeError:  # whoever read our output has enough: `fletcher ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # nobody's traceback but ours is of use to a user
        if os.environ.get(TRACEBACK):
            raise
        said = f"unexpected {type(error).__name__}: {error}. Set {TRACEBACK}=1 and report what is printed then"
        _tell(type(error).__name__, said, as_json)
        return 1


def _what_stays(given: Sequence[str]) -> str:
    """Of what an interrupted command did."""
    command = next((word for word in given if not word.startswith("-")), "")
    said = [word.removeprefix("--to=") for word in given if word.startswith("--to=")]
    to = [*said, *(after for word, after in pairwise(given) if word == "--to"), ""][0]
    if command in ("deliver", "reconcile", "compact") or (command == "embed" and to.split(":")[0] == "longbow"):
        return "; what was done so far stays"
    if command == "embed":
        return "; the output is not whole" if to == "-" else "; no file was written"
    return ""


def _run(given: list[str], as_json: bool) -> int:
    from fletcher_core.commands.app import UsageError, app

    _start_telemetry()
    try:
        status = app(given, standalone_mode=False, prog_name="fletcher") or 0
    except UsageError as error:
        if as_json:
            _tell("UsageError", error.format_message(), as_json)
        else:
            error.show()
        raise SystemExit(2) from error
    if status == EXIT_STATUS:  # what typer makes of KeyboardInterrupt
        raise KeyboardInterrupt
    sys.stdout.flush()
    return int(status)


def _start_telemetry() -> None:
    """Log and traces of the command, where the environment asks for them: without it, neither is even imported.

    The variables for traces are often other programs' too: where they cannot work here, the command is not traced.
    """
    if log_format := os.environ.get(LOG):
        from fletcher_core.telemetry.logs import start_logging

        start_logging(log_format)  # type: ignore[arg-type]  # it says what it takes
    if any(name.startswith("OTEL_") for name in os.environ):
        from fletcher_core.telemetry.tracing import start_tracing

        try:
            start_tracing()
        except ConfigError as error:
            print(f"fletcher: not traced: {error}", file=sys.stderr)


def _tell(kind: str, message: str, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"fletcher: {message}", file=sys.stderr)

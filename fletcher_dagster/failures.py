"""What a user sees when a run goes wrong: one sentence with the way out, not a stack of thirty lines.

In comes whatever ended the work; out goes a `dagster.Failure` with that sentence first. Where the disk or the device
failed, the stack goes to the debug log. Only failures that can pass by themselves let a retry policy try again.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
import duckdb

from fletcher_core.errors import (
    EngineError,
    FletcherError,
    LongbowUnavailable,
    SourceError,
    StoreError,
    StoreLockedError,
)

_NO_DATABASE = "not a valid DuckDB database file"  # DuckDB raises no error of its own for it


@dataclass
class HowFar:
    """What the block has achieved: half a sentence and figures, for the message of its failure."""

    said: Callable[[], str] = lambda: ""
    figures: Callable[[], Mapping[str, int]] = dict


@contextmanager
def reported_in_words(context: dg.AssetExecutionContext, what: str) -> Iterator[HowFar]:
    """Turns errors and interrupts of the block into a `dagster.Failure`; `what` names the work for the reader. The
    block may tell how far it got by what it is given."""
    far = HowFar()
    try:
        yield far
    except FletcherError as error:
        if isinstance(error, (EngineError, StoreError)):  # not of the user's making: where it happened matters
            context.log.debug("".join(traceback.format_exception(error)))
        raise dg.Failure(
            description=f"{error}{_sentence(far)}",
            metadata={"fletcher/error": type(error).__name__, "fletcher/while": what, **far.figures()},
            allow_retries=can_pass_by_itself(error),
        ) from None
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        # Left as it is, Dagster would retry a cancelled step that has a retry policy (dagster issue 15026).
        raise dg.Failure(
            description=f"cancelled while {what}{_sentence(far)}",
            metadata={"fletcher/error": "cancelled", "fletcher/while": what, **far.figures()},
            allow_retries=False,
        ) from None


def _sentence(far: HowFar) -> str:
    said = far.said()
    return f". {said[0].upper()}{said[1:]}" if said else ""


def can_pass_by_itself(error: FletcherError) -> bool:
    """Whether the same run may succeed a little later: a file in use elsewhere, a server that is down."""
    if isinstance(error, SourceError):
        return isinstance(error.__cause__, duckdb.IOException) and _NO_DATABASE not in str(error.__cause__)
    return isinstance(error, (StoreLockedError, LongbowUnavailable))

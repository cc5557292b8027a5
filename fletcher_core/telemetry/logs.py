"""Log lines of the standard logging in; out on standard error, for people or as JSON, with the ids of run, request and
trace, and without secrets.

Nothing changes where lines are written: `logging.getLogger(__name__).info(...)`, with figures in `extra`.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TextIO

from opentelemetry import trace

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.redaction import without_secrets

if TYPE_CHECKING:
    from structlog.typing import Processor

LogFormat = Literal["auto", "pretty", "json"]

# structlog takes a sixth of a second to import, which only a program that shows its log spends: hence a variable of our
# own, and imports inside functions.
_IDS: ContextVar[Mapping[str, str]] = ContextVar("fletcher_log_ids", default={})  # noqa: B039 - never changed in place

_FIRST = ("ts", "level", "event", "logger", "run_id", "request_id", "trace_id", "span_id")
_OF_TERMINALS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Lines logged in the block, and on threads begun in it by `in_this_context`, carry these: run_id, request_id."""
    mark = _IDS.set({**_IDS.get(), **ids})
    try:
        yield
    finally:
        _IDS.reset(mark)


def start_logging(format: LogFormat = "auto", level: str | int = "INFO", stream: TextIO | None = None) -> None:
    """Show this process's log: one line an event.

    Args:
        format: "pretty" for people; "json", an object a line with `ts` (ISO 8601, UTC), `level`, `event`, `logger`,
            `run_id`, `request_id`, `trace_id`, `span_id`, what the event has beside its words, and `exception`, the
            whole trace in one text; "auto" is pretty on a terminal and json elsewhere.
        level: the least that is shown, such as "DEBUG" or "warning".
        stream: where to; None is standard error.

    Called again, it replaces what it set up before; handlers of others stay.

    Raises:
        ConfigError: format or level is none of these.
    """
    import structlog

    if format not in ("auto", "pretty", "json"):
        raise ConfigError(f"log format is {format!r}: it is 'auto', 'pretty' or 'json'")
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.contextvars.merge_contextvars,
        _add_ids,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Processor]
    if format == "json" or (format == "auto" and not is_terminal):
        last = [_redacted, _in_order, structlog.processors.JSONRenderer(default=str, ensure_ascii=False)]
    else:
        last = [
            _redacted,
            _flat,
            structlog.dev.ConsoleRenderer(colors=is_terminal, timestamp_key="ts", pad_event_to=0),
        ]
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    structlog.configure(  # for those who log by structlog itself
        processors=[*shared[:-2], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    try:
        root.setLevel(level.upper() if isinstance(level, str) else level)
    except ValueError as error:
        raise ConfigError(f"log level is {level!r}: it is DEBUG, INFO, WARNING, ERROR or CRITICAL") from error
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours among the root logger's."""


def _add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update(_IDS.get())
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _redacted(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # What another handler's formatter has left on the record, and what libraries (Ray) put there for themselves.
    ours = {key: value for key, value in event.items() if key not in ("message", "asctime") and not key.startswith("_")}
    hidden: dict[str, Any] = without_secrets(ours)
    return hidden


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The fields that every line has come first."""
    return {**{key: event[key] for key in _FIRST if key in event}, **event}


def _flat(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For people: the figures are in the words already, and no text from outside may steer the terminal."""
    event.pop("figures", None)
    return {
        key: _OF_TERMINALS.sub(lambda found: f"\\x{ord(found.group()):02x}", value) if isinstance(value, str) else value
        for key, value in event.items()
    }

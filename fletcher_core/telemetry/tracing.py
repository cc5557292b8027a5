"""Spans of OpenTelemetry: what a run or a request did and when, and its W3C context in from and out to others.

Only OpenTelemetry's API is needed here, and it does nothing until somebody sets up the SDK: a program of the user's
own, or `start_tracing` by the standard environment variables. Nothing is recorded then, at the price of one look.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from fletcher_core.errors import ConfigError

TRACER = trace.get_tracer("fletcher")

FLUSH_SECONDS = 2.0
"""How long the end of a process may wait for a collector to take the last spans."""

# Which exporters a variable may name, as OpenTelemetry spells them.
_EXPORTERS = ("otlp", "console", "none")
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@contextmanager
def span(
    name: str, attributes: Mapping[str, AttributeValue] | None = None, *, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[Span]:
    """The block as a span under the current one; an exception makes it one of error, with the exception's words."""
    with TRACER.start_as_current_span(name, kind=kind, attributes=attributes, set_status_on_exception=False) as begun:
        try:
            yield begun
        except BaseException as error:
            begun.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            raise


def finished_span(
    name: str,
    began: float,
    ended: float,
    *,
    parent: Span | None = None,
    links: Sequence[Span] = (),
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Span:
    """A span of work that was measured anyway; it costs a check where `parent` is not recorded.

    Args:
        name: of the span.
        began, ended: moments of `time.perf_counter`.
        parent: the span that it belongs to; None takes the current one.
        links: spans that it also has to do with.
        attributes: of the span.
    """
    parent = trace.get_current_span() if parent is None else parent
    if not parent.is_recording():
        return INVALID_SPAN
    # The clocks are compared anew each time: a computer that sleeps or sets its clock moves them apart.
    epoch = time.time_ns() - time.perf_counter_ns()
    made = TRACER.start_span(
        name,
        trace.set_span_in_context(parent, Context()),
        attributes=attributes,
        links=[Link(other.get_span_context()) for other in links if other.is_recording()],
        start_time=epoch + int(began * 1e9),
    )
    made.end(epoch + int(ended * 1e9))
    return made


def batch_span(name: str, requests: Sequence[Span], attributes: Mapping[str, AttributeValue] | None = None) -> Span:
    """A span, begun and to be ended by the caller, of work that serves several requests at once.

    It is a child of the first request that is recorded and linked to all of them, and each of them is linked to it, so
    that one gets from any request to its batch. Where none is recorded it is none either, which costs a look at each.
    """
    recorded = [request for request in requests if request.is_recording()]
    if not recorded:
        return INVALID_SPAN
    batch = TRACER.start_span(
        name,
        trace.set_span_in_context(recorded[0], Context()),
        attributes=attributes,
        links=[Link(request.get_span_context()) for request in recorded],
    )
    for request in recorded:
        request.add_link(batch.get_span_context())
    return batch


def context_from(headers: Mapping[str, str | Sequence[str]]) -> Context:
    """The context that a caller sent: `traceparent`, `tracestate` and `baggage` of HTTP or Flight headers.

    Names may be in any case. What is missing or malformed is left out: a request is never refused for its trace.
    Start a span with `TRACER.start_as_current_span(name, context=...)` in it.
    """
    return propagate.extract({name.lower(): value for name, value in headers.items()})


def headers_of_current() -> dict[str, str]:
    """The headers that carry the current span's context to another service; none without a span."""
    if not trace.get_current_span().get_span_context().is_valid:
        return {}
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def trace_id(of: Span | None = None) -> str:
    """The trace that a span (None: the current one) belongs to if it is recorded, 32 hexadecimal digits; else ''."""
    of = trace.get_current_span() if of is None else of
    return trace.format_trace_id(of.get_span_context().trace_id) if of.is_recording() else ""


def start_tracing(service_name: str = "fletcher") -> Callable[[], None]:
    """Send spans to where OpenTelemetry's standard environment variables say; without any of them nothing is done.

    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER` (otlp or console) turn
    it on; `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none` off. Sampling, headers, batches, the service's name
    and other attributes come from their variables too. A collector that cannot be reached holds nothing up and is
    complained about once. Where the program has set up an SDK of its own, that is used.

    Returns what sends the last spans and ends the export, within about FLUSH_SECONDS; also called when the process
    ends. Called again, this returns the same.

    Raises:
        ConfigError: a variable has a value that cannot work, or the extra `otel` is not installed.
    """
    exporters = _wanted_exporters()
    if not exporters:
        return _nothing
    _check_protocol()
    _check_endpoint()
    _check_sampler()
    try:
        from fletcher_core.telemetry.trace_export import start_export
    except ImportError as error:
        raise ConfigError(
            f"the environment asks for traces, and the OpenTelemetry SDK cannot be imported ({error}): "
            "install Fletcher's extra `otel`, or set OTEL_SDK_DISABLED=true"
        ) from error
    return start_export(service_name, exporters)


def flush_traces(seconds: float = FLUSH_SECONDS) -> None:
    """Send what waits, in at most so many seconds and at once given up while the collector is unreachable."""
    provider = trace.get_tracer_provider()
    if not hasattr(provider, "force_flush"):  # no SDK: nothing waits
        return
    from fletcher_core.telemetry.trace_export import flush_within

    flush_within(provider, seconds)


def _nothing() -> None:
    """Ends a tracing that never began."""


def _variable(*names: str) -> tuple[str, str]:
    """The first of the variables that is set, and its value; ('', '') for none."""
    return next(((name, os.environ[name].strip()) for name in names if os.environ.get(name, "").strip()), ("", ""))


def _wanted_exporters() -> list[str]:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    name, value = _variable("OTEL_TRACES_EXPORTER")
    if not name:
        return ["otlp"] if _variable(*_ENDPOINTS)[0] else []
    wanted = [part.strip().lower() for part in value.split(",")]
    for part in wanted:
        if part not in _EXPORTERS:
            raise ConfigError(f"{name} is {value!r}: Fletcher exports traces by {', '.join(_EXPORTERS)}")
    return [part for part in dict.fromkeys(wanted) if part != "none"]


def _check_protocol() -> None:
    name, value = _variable(*_PROTOCOLS)
    if name and value != "http/protobuf":
        raise ConfigError(f"{name} is {value!r}: Fletcher speaks http/protobuf, which collectors take at port 4318")


def _check_endpoint() -> None:
    name, value = _variable(*_ENDPOINTS)
    if name and not value.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{name} is {value!r}: it is a URL, such as http://localhost:4318")


def _check_sampler() -> None:
    name, value = _variable("OTEL_TRACES_SAMPLER")
    kind = value.lower().removeprefix("parentbased_")
    if not name:
        return
    if kind not in _SAMPLERS:
        raise ConfigError(f"{name} is {value!r}: it is one of {', '.join(_SAMPLERS)}, each also after 'parentbased_'")
    name, value = _variable("OTEL_TRACES_SAMPLER_ARG")
    if kind == "traceidratio" and name:
        try:
            fits = 0.0 <= float(value) <= 1.0
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"{name} is {value!r}: the share of traces to record is between 0 and 1, such as 0.01")

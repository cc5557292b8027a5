"""Calls to Longbow in a trace: a client's span around each, and the headers that let the server continue it."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from fletcher_core.telemetry.tracing import headers_of_current, span

# What a header of gRPC may carry; the propagators of the environment may send others, of bytes.
_MAX_VALUE = 2048


@contextmanager
def flight_span(method: str, address: str, dataset: str, **figures: int) -> Iterator[None]:
    """The block as a span `longbow.<method>` of a call about a dataset; nothing where no trace is recorded.

    Args:
        method: Flight's, such as DoPut, or an action's name.
        address: of the server, host and port.
        dataset: the name of the dataset.
        figures: attributes, such as rows=8192.
    """
    if not trace.get_current_span().is_recording():
        yield
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    attributes: dict[str, AttributeValue] = {
        "rpc.system": "grpc",
        "rpc.service": "arrow.flight.protocol.FlightService",
        "rpc.method": "DoAction" if method == "VectorSearch" else method,
        "server.address": host.strip("[]"),
        "server.port": int(port),
        "longbow.dataset": dataset,
        **{f"longbow.{name}": value for name, value in figures.items()},
    }
    with span(f"longbow.{method}", attributes, kind=SpanKind.CLIENT):
        yield


def trace_headers() -> list[tuple[bytes, bytes]]:
    """`traceparent` and its companions for a call, as Flight takes them; none outside a trace."""
    return [
        (name.lower().encode(), value.encode())
        for name, value in headers_of_current().items()
        if len(value) <= _MAX_VALUE and value.isascii() and value.isprintable()
    ]

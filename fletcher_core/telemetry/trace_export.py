"""The SDK behind `start_tracing`: spans in, OTLP over HTTP to a collector out. Needs the extra `otel`.

Spans wait in a bounded queue that a thread empties: whoever ends a span never waits for the collector, and what it does
not take is lost. That is said once, not for each batch.
"""

import atexit
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

from fletcher_core.telemetry.tracing import FLUSH_SECONDS

_LOG = logging.getLogger(__name__)
_LOOK = 0.02  # seconds between two looks while waiting for the collector

_NOISY = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")

_starting = threading.Lock()
_stop: Callable[[], None] | None = None


class _Complaints(logging.Filter):
    """Stands before the exporter's log: says the first problem in our words, and nothing until spans arrived again.

    A full queue is a complaint of its own, once a process: it says nothing of whether, nor why, a collector refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self._of_failure = False
        self._of_full_queue = False
        self._saying = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if str(record.msg).startswith("Queue full"):
            self._full()
        else:
            self._failed(" ".join(record.getMessage().split()))
        return False

    def _full(self) -> None:
        with self._saying:
            known = self._of_failure or self._of_full_queue  # where nothing arrives, the queue fills by itself
            self._of_full_queue = True
        if not known:
            _LOG.warning(
                "more spans end than the collector takes, and some are dropped; everything else goes on. Record fewer "
                "with OTEL_TRACES_SAMPLER, or set OTEL_BSP_MAX_QUEUE_SIZE higher. This is said once"
            )

    def _failed(self, said: str) -> None:
        with self._saying:
            known, self._of_failure = self._of_failure, True
        if not known:
            _LOG.warning(
                "traces do not reach the collector and are dropped; everything else goes on (%s). Correct "
                "OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_SDK_DISABLED=true. This is said once",
                said[:300],
            )
        self.failing = True  # last: a process that waits for this ends at once, and with it what is not yet said

    def arrived(self) -> None:
        """Spans were taken."""
        with self._saying:
            failed, self._of_failure = self._of_failure, False
        self.failing = False
        if failed:
            _LOG.info("traces reach the collector again")


_complaints = _Complaints()


class _Watched(SpanExporter):
    """An exporter whose successes end the complaints about its failures."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            _complaints.arrived()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def start_export(service_name: str, exporters: Sequence[str]) -> Callable[[], None]:
    """Set up the SDK once a process, with exporters "otlp" and "console"; returns what ends it within FLUSH_SECONDS."""
    global _stop
    with _starting:
        if _stop is not None:
            return _stop
        if isinstance(trace.get_tracer_provider(), TracerProvider):  # the program's own, which is not ours to end
            return flush_of_another
        for name in _NOISY:
            logging.getLogger(name).addFilter(_complaints)
        provider = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
        for name in exporters:
            exporter = _Watched(OTLPSpanExporter()) if name == "otlp" else ConsoleSpanExporter()
            provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)

        def stop() -> None:
            _within(provider.shutdown, FLUSH_SECONDS)

        _stop = stop
        atexit.register(stop)
        return stop


def flush_of_another() -> None:
    """Send what waits in the SDK that the program itself has set up."""
    flush_within(trace.get_tracer_provider(), FLUSH_SECONDS)


def flush_within(provider: Any, seconds: float) -> None:
    """`provider.force_flush()`, but not longer than `seconds`, nor while the collector is unreachable."""
    _within(provider.force_flush, seconds)


def _within(work: Callable[[], object], seconds: float) -> None:
    """The SDK itself waits for as long as a collector is silent: so on a thread, which is left behind."""
    thread = threading.Thread(target=work, name="fletcher-traces", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and not _complaints.failing and (left := deadline - time.monotonic()) > 0:
        thread.join(min(_LOOK, left))


def _resource(service_name: str) -> Resource:
    """What is common to all spans; the environment's names come before ours."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {} if named else {"service.name": service_name}
    return Resource.create({**attributes, "service.version": importlib.metadata.version("fletcher")})

"""OpenTelemetry's environment variables, in processes of their own: what they turn on, off and refuse."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector import Collector

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry import trace_export
from fletcher_core.telemetry.tracing import start_tracing

ROOT = Path(__file__).parents[3]

WORK = """
import logging, os, sys, time, urllib.request
logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level="INFO")
from fletcher_core.telemetry.tracing import span, start_tracing
def release():
    urllib.request.urlopen(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/release", b"").close()
def patient():
    from fletcher_core.telemetry import trace_export
    trace_export.FLUSH_SECONDS = 60.0
stop = start_tracing("fletcher-test")
began = time.perf_counter()
for number in range(SPANS):
    with span("work", {"number": number}):
        with span("piece"):
            pass
print("worked", time.perf_counter() - began)
began = time.perf_counter()
WHAT_ENDS_IT
print("stopped", time.perf_counter() - began)
print("sdk", "opentelemetry.sdk" in sys.modules)
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    opened = Collector()
    yield opened
    opened.close()


def work(spans: int = 3, end: str = "stop()", **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that makes two spans a turn."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    script = WORK.replace("SPANS", str(spans)).replace("WHAT_ENDS_IT", end)
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, **variables},
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        check=True,
    )


def printed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("end", ["stop()", "stop(); stop()", "pass"])
def test_an_endpoint_in_the_environment_is_all_that_it_takes(collector: Collector, end: str) -> None:
    work(
        end=end,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=7",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
    )
    assert sorted(span.name for span in collector.spans) == ["piece"] * 3 + ["work"] * 3
    (resource,) = collector.resources
    assert resource["service.name"] == "fletcher-test"
    assert resource["deployment.environment"] == "test"
    assert resource["service.version"]
    assert collector.headers[0]["x-tenant"] == "7"


def test_the_environments_service_name_comes_first(collector: Collector) -> None:
    work(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.endpoint}/v1/traces", OTEL_SERVICE_NAME="ours")
    assert collector.resources[0]["service.name"] == "ours"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "there"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "there"},
    ],
)
def test_off_is_off_and_loads_no_sdk(variables: dict[str, str], collector: Collector) -> None:
    there = {name: value.replace("there", collector.endpoint) for name, value in variables.items()}
    assert printed(work(**there))["sdk"] == "False"
    assert collector.headers == []


def test_sampling_none_sends_nothing(collector: Collector) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    work(spans=200, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **variables)
    assert collector.headers == []


def test_the_console_is_an_exporter_too() -> None:
    assert '"name": "work"' in work(OTEL_TRACES_EXPORTER="console").stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))]


NO_ARRIVAL = "traces do not reach the collector"
FULL = "more spans end than the collector takes"


def test_a_collector_that_is_not_there_costs_nothing_and_is_mentioned_once() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    # Many batches of 512, and twice more than the queue holds; the exporter tries again after a second.
    done = work(spans=4000, end="time.sleep(1.5); patient(); stop()", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert sum(NO_ARRIVAL in line for line in complaints(done)) == 1, done.stderr
    assert all(NO_ARRIVAL in line or FULL in line for line in complaints(done)), done.stderr
    assert float(printed(done)["stopped"]) < 1.5 + 30.0  # of the 60 that it may take
    assert "Traceback" not in done.stderr


def test_a_collector_that_never_answers_holds_the_end_up_for_seconds_only() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = work(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="600")  # else 10 seconds
        assert float(printed(done)["stopped"]) < 30.0


# While the collector holds its answer, a batch of 8 is on its way and 8 spans wait: the queue is full by then.
SMALL = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}


@pytest.mark.parametrize("held", [True, False])
def test_a_collector_that_refuses_is_mentioned_once_and_its_answer_named(held: bool) -> None:
    collector = Collector(status=401, held=held)
    variables = SMALL if held else {"OTEL_BSP_MAX_QUEUE_SIZE": "4000"}  # of which none is full
    try:
        done = work(
            spans=1000, end="release(); patient(); stop()", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **variables
        )
    finally:
        collector.close()
    *before, last = complaints(done)
    assert NO_ARRIVAL in last, done.stderr
    assert "401" in last
    assert [FULL in line for line in before] == [True] * held


def test_a_full_queue_is_mentioned_once_and_the_end_waits_for_what_is_left() -> None:
    collector = Collector(held=True)
    try:
        done = work(
            spans=1000, end="release(); patient(); stop()", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **SMALL
        )
    finally:
        collector.close()
    (complaint,) = complaints(done)
    assert FULL in complaint
    assert "OTEL_BSP_MAX_QUEUE_SIZE" in complaint
    numbers = [attribute.value.int_value for span in collector.spans for attribute in span.attributes]
    assert max(numbers) == 999
    assert len(collector.spans) < 2000


def test_waiting_ends_with_a_refusal_but_not_with_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(message: str) -> logging.LogRecord:
        return logging.LogRecord("opentelemetry", logging.WARNING, "", 0, message, (), None)

    complaints, ended = trace_export._Complaints(), threading.Event()
    monkeypatch.setattr(trace_export, "_complaints", complaints)
    assert not complaints.filter(of("Queue full, dropping Span."))
    trace_export._within(lambda: time.sleep(0.1) or ended.set(), 60.0)
    assert ended.is_set()
    assert not complaints.filter(of("Failed to export spans batch code: 401"))
    never = threading.Event()
    began = time.monotonic()
    trace_export._within(never.wait, 60.0)
    assert time.monotonic() - began < 30.0
    never.set()
    complaints.arrived()
    assert not complaints.failing


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp, console, none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1%", "between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "between 0 and 1"),
    ],
)
def test_a_variable_that_cannot_work_is_named(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as raised:
        start_tracing()
    assert words in str(raised.value)


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "fletcher_core.telemetry.trace_export", raising=False)
    with pytest.raises(ConfigError, match="install Fletcher's extra `otel`"):
        start_tracing()

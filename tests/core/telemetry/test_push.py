"""Metrics that are pushed arrive as they are; a receiver that is down, slow or rude costs seconds and a warning."""

import base64
import gzip
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.metrics import FAILOVERS, REGISTRY, STAGE_SECONDS, VECTORS
from fletcher_core.telemetry.push import PATIENCE, Pusher, check_target, push_metrics


class Receiver(ThreadingHTTPServer):
    """Takes whatever is posted; answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.got: list[tuple[str, str, bytes]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def groups(self) -> list[dict[str, str]]:
        """The grouping key of each push, from its path, as the Pushgateway reads it."""
        found = []
        for _, path, _ in self.got:
            names = path.removeprefix("/metrics/").split("/")
            pairs = zip(names[::2], names[1::2], strict=True)
            found.append(dict(_decoded(name, value) for name, value in pairs))
        return found

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """What the last push said."""
        families = text_string_to_metric_families(self.got[-1][2].decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _decoded(name: str, value: str) -> tuple[str, str]:
    if name.endswith("@base64"):
        return name.removesuffix("@base64"), base64.urlsafe_b64decode(value + "==").decode()
    return name, unquote(value)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.got.append((self.command, self.path, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_push_says_what_a_scrape_would(receiver: Receiver) -> None:
    VECTORS.inc(3)
    FAILOVERS.labels("mlx", "openvino", "lost").inc()
    STAGE_SECONDS.labels("send").observe(0.2)
    assert push_metrics(receiver.address, job="fletcher", grouping={"asset": "db/notes"})
    assert receiver.got[0][0] == "POST"  # adds to the group, and does not empty it
    assert receiver.groups() == [{"job": "fletcher", "asset": "db/notes"}]
    samples = receiver.samples()
    expected = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in REGISTRY.collect() for s in f.samples}
    assert samples.keys() == expected.keys()
    assert samples["fletcher_vectors_total", ()] == REGISTRY.get_sample_value("fletcher_vectors_total")


def test_a_run_is_pushed_again_and_again_and_at_its_end(receiver: Receiver) -> None:
    with Pusher(receiver.address, job="fletcher", grouping={"asset": "notes"}, every=0.05):
        deadline = time.monotonic() + 10
        while len(receiver.got) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        VECTORS.inc(7)
        last = REGISTRY.get_sample_value("fletcher_vectors_total")
    assert len(receiver.got) >= 4
    assert receiver.samples()["fletcher_vectors_total", ()] == last


def test_a_run_that_fails_is_pushed_as_well(receiver: Receiver) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Pusher(receiver.address, job="fletcher", grouping={"asset": "notes"}),
    ):
        raise ZeroDivisionError
    assert len(receiver.got) == 1


def test_nowhere_is_nowhere(receiver: Receiver) -> None:
    with Pusher("", job="fletcher", grouping={}):
        pass
    assert receiver.got == []


@pytest.mark.parametrize("status", [400, 500])
def test_a_receiver_that_refuses_is_named_in_the_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    receiver.status = status
    with caplog.at_level(logging.WARNING):
        assert not push_metrics(receiver.address, job="fletcher", grouping={})
        with Pusher(receiver.address, job="fletcher", grouping={}):
            pass
    assert len(caplog.records) == 2
    assert all(receiver.address in r.message and str(status) in r.message for r in caplog.records)


def test_a_receiver_that_is_gone_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert not push_metrics(address, job="fletcher", grouping={})
    assert address in caplog.text
    assert "the work goes on" in caplog.text


def test_a_receiver_that_never_answers_costs_a_few_seconds(silent: str, caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    assert not push_metrics(silent, job="fletcher", grouping={})
    assert time.monotonic() - started < PATIENCE + 5
    assert silent in caplog.text


def test_what_holds_a_push_up_beyond_its_timeouts_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a name server does that answers no more."""
    go = threading.Event()
    monkeypatch.setattr("fletcher_core.telemetry.push.PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [go.wait(30)][1:])
    started = time.monotonic()
    assert not push_metrics("http://gateway:9091", job="fletcher", grouping={})
    with Pusher("http://gateway:9091", job="fletcher", grouping={}):
        pass
    assert time.monotonic() - started < 25  # and not the 30 s of the name server
    go.set()
    assert caplog.text.count("given up") == 2


@pytest.mark.parametrize("address", ["localhost:9091", "ftp://host:1", "http://", "http://host:99999", "gateway"])
def test_an_address_that_cannot_be_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics is .*http://host:9091"):
        Pusher(address, job="fletcher", grouping={})


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="user name") as refused:
        check_target("http://me:secret@gateway:9091")
    assert "secret" not in str(refused.value)


def test_opentelemetry_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fletcher_core.telemetry.otlp", None)
    with pytest.raises(ConfigError, match="extra `otel`"):
        check_target("otlp")


def received(receiver: Receiver) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    request.ParseFromString(receiver.got[-1][2])
    return request


def test_a_collector_gets_the_same_by_otlp(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    VECTORS.inc(2)
    STAGE_SECONDS.labels("send").observe(0.2)
    with Pusher("otlp", job="fletcher", grouping={"asset": "notes"}):
        pass
    assert [path for _, path, _ in receiver.got] == ["/v1/metrics"]
    (of_resource,) = received(receiver).resource_metrics
    attributes = {a.key: a.value.string_value for a in of_resource.resource.attributes}
    assert (attributes["service.name"], attributes["asset"]) == ("fletcher", "notes")
    metrics = {m.name: m for m in of_resource.scope_metrics[0].metrics}
    vectors = metrics["fletcher_vectors_total"].sum
    assert vectors.is_monotonic
    assert vectors.aggregation_temporality == 2  # cumulative
    assert vectors.data_points[0].as_double == REGISTRY.get_sample_value("fletcher_vectors_total")
    assert vectors.data_points[0].start_time_unix_nano < vectors.data_points[0].time_unix_nano
    stages = metrics["fletcher_stage_duration_seconds"]
    assert stages.unit == "s"
    (send,) = [p for p in stages.histogram.data_points if p.attributes[0].value.string_value == "send"]
    labels = {"stage": "send"}
    assert send.count == REGISTRY.get_sample_value("fletcher_stage_duration_seconds_count", labels)
    assert send.sum == pytest.approx(REGISTRY.get_sample_value("fletcher_stage_duration_seconds_sum", labels))
    assert sum(send.bucket_counts) == send.count
    upto = [0.0]
    for bound, count in zip(send.explicit_bounds, send.bucket_counts, strict=False):
        upto.append(upto[-1] + count)
        bucket = {"stage": "send", "le": str(bound)}
        assert REGISTRY.get_sample_value("fletcher_stage_duration_seconds_bucket", bucket) == upto[-1]
    assert len(send.bucket_counts) == len(send.explicit_bounds) + 1


def test_otlp_without_an_endpoint_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with Pusher("otlp", job="fletcher", grouping={}):
        pass
    assert "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" in caplog.text


def test_a_collector_that_is_gone_or_silent_costs_a_few_seconds(
    silent: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for endpoint in (gone, silent):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint)
        started = time.monotonic()
        with Pusher("otlp", job="fletcher", grouping={}):
            pass
        assert time.monotonic() - started < PATIENCE + 5
        assert endpoint in caplog.text


def test_every_kind_of_metric_has_its_like() -> None:
    from opentelemetry.sdk.resources import Resource

    from fletcher_core.telemetry.otlp import metrics_data

    registry = CollectorRegistry()
    Counter("sent_bytes", "Sent.", ["way"], registry=registry).labels("up").inc(5)
    Gauge("full_ratio", "Full.", registry=registry).set(0.5)
    Histogram("wait_seconds", "Waited.", buckets=(1.0, 2.0), registry=registry).observe(1.5)
    (resource,) = metrics_data(registry, Resource({})).resource_metrics
    found = {m.name: (m.unit, type(m.data).__name__) for m in resource.scope_metrics[0].metrics}
    assert found == {
        "sent_bytes_total": ("By", "Sum"),
        "full_ratio": ("1", "Gauge"),
        "wait_seconds": ("s", "Histogram"),
    }
    (point,) = resource.scope_metrics[0].metrics[2].data.data_points
    assert (point.bucket_counts, point.explicit_bounds, point.count, point.sum) == ([0, 1, 0], [1.0, 2.0], 1, 1.5)

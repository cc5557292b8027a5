"""Spans of real runs and calls: whose child each is, what it says, and how the context travels to Longbow and back."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode

from fletcher_core import Embedder
from fletcher_core.errors import InputError, LongbowNotFound
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.longbow.server.access import TokenCheck
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.search import search
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.telemetry.tracing import TRACER, batch_span, context_from, finished_span, headers_of_current, span

TOKEN = "hush-hush-7f3a"
REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recording(TokenCheck):
    """A token check that keeps the headers of every call."""

    seen: list[tuple[str, dict[str, list[str]]]] = []  # noqa: RUF012 - emptied by the fixture

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> Any:
        self.seen.append((str(info.method), headers))
        return super().start_call(info, headers)


@pytest.fixture
def longbow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongbowClient]:
    Recording.seen.clear()
    monkeypatch.setattr("fletcher_core.longbow.server.ports.TokenCheck", Recording)
    server = LongbowServer(tmp_path / "longbow", token=Secret(TOKEN))
    settings = LongbowSettings(server.address.data, server.address.meta, credentials=Credentials(token=TOKEN))
    with LongbowClient(settings) as client:
        yield client
    server.close()


def by_name(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    named: dict[str, list[ReadableSpan]] = {}
    for each in spans.get_finished_spans():
        named.setdefault(each.name, []).append(each)
    return named


def test_a_run_is_a_span_with_its_stages_and_its_calls_to_longbow_as_children(
    source: DuckDBTable, tmp_path: Path, tiny: Embedder, longbow: LongbowClient, spans: InMemorySpanExporter
) -> None:
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        report = materialize(
            source,
            embedder=tiny,
            store=store,
            longbow=longbow,
            partition=Partition("day0", value="day0"),
            run_id="run-1",
            settings=MaterializeSettings(segment_rows=64),
        )
    named = by_name(spans)
    (root,) = named["materialize"]
    assert root.parent is None
    assert root.attributes is not None
    expected = {
        "fletcher.run_id": "run-1",
        "fletcher.collection": "notes",
        "fletcher.partition": "day0",
        "fletcher.model": "bert_tiny",
        "fletcher.engine": "openvino",
        "fletcher.device": tiny.engine.device,
        "fletcher.rows_new": 150,
        "fletcher.rows_changed": 0,
        "fletcher.rows_embedded": report.embedded,
        "fletcher.texts_per_s": round(report.texts_per_s, 1),
        "fletcher.longbow_rows_searchable": 150,
    }
    assert {key: root.attributes[key] for key in expected} == expected
    assert root.status.status_code is StatusCode.UNSET
    # Of prefetch, writer and sender threads alike.
    assert {"diff", "read", "tokenize", "compute", "guard", "write", "longbow.DoPut", "longbow.DoGet"} <= set(named)
    assert "send" not in named  # which are the calls themselves
    for each in spans.get_finished_spans():
        assert each.context.trace_id == root.context.trace_id
        if each is not root:
            assert each.parent is not None
            assert each.parent.span_id == root.context.span_id
            assert root.start_time <= each.start_time <= each.end_time <= root.end_time
    seconds = {stage: sum(s.end_time - s.start_time for s in named[stage]) / 1e9 for stage in ("diff", "compute")}
    assert seconds["compute"] == pytest.approx(report.seconds.compute, rel=0.01, abs=1e-3)
    assert seconds["diff"] == pytest.approx(report.seconds.diff, rel=0.01, abs=1e-3)
    puts = named["longbow.DoPut"]
    assert sum(put.attributes["longbow.rows"] for put in puts) == 150
    assert {put.kind for put in puts} == {SpanKind.CLIENT}
    host, port = longbow.address.data.rsplit(":", 1)
    assert {
        (p.attributes["rpc.system"], p.attributes["server.address"], p.attributes["server.port"]) for p in puts
    } == {("grpc", host, int(port))}


def test_every_flight_call_of_a_run_carries_the_trace_and_none_a_secret(
    source: DuckDBTable, tmp_path: Path, tiny: Embedder, longbow: LongbowClient, spans: InMemorySpanExporter
) -> None:
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        materialize(source, embedder=tiny, store=store, longbow=longbow)
        with span("question"):
            assert search(store, longbow, tiny, "note 5", k=2)
    named = by_name(spans)
    run, question = named["materialize"][0].context, named["question"][0].context
    sent = [headers["traceparent"][0].split("-") for _, headers in Recording.seen]
    assert {trace_id for _, trace_id, _, _ in sent} == {f"{run.trace_id:032x}", f"{question.trace_id:032x}"}
    parents = {parent for _, _, parent, flags in sent if int(flags, 16) & 1}
    for call in (*named["longbow.DoPut"], *named["longbow.DoGet"], *named["longbow.VectorSearch"]):
        assert f"{call.context.span_id:016x}" in parents
    (searched,) = named["longbow.VectorSearch"]
    assert searched.parent.span_id == question.span_id
    answered = [each for each in spans.get_finished_spans() if each.parent and each.parent.span_id == question.span_id]
    assert {each.name for each in answered} == {"longbow.VectorSearch", "tokenize", "compute"}
    assert TOKEN not in "".join(each.to_json() for each in spans.get_finished_spans())


def test_without_a_trace_no_header_is_sent(longbow: LongbowClient, spans: InMemorySpanExporter) -> None:
    longbow.readiness()
    assert Recording.seen
    assert all("traceparent" not in headers for _, headers in Recording.seen)
    assert spans.get_finished_spans() == ()
    assert headers_of_current() == {}


def test_a_context_that_came_in_goes_on_to_longbow(longbow: LongbowClient, spans: InMemorySpanExporter) -> None:
    incoming = {"TraceParent": REMOTE, "tracestate": "vendor=x", "baggage": "tenant=7"}
    with TRACER.start_as_current_span("request", context_from(incoming)):
        longbow.readiness()
        passed_on = headers_of_current()
    headers = Recording.seen[-1][1]
    (request,) = spans.get_finished_spans()
    assert request.parent.span_id == 0xB7AD6B7169203331
    assert headers["traceparent"] == [f"00-0af7651916cd43dd8448eb211c80319c-{request.context.span_id:016x}-01"]
    assert headers["tracestate"] == ["vendor=x"] == [passed_on["tracestate"]]
    # Of Flight, whose headers are lists.
    again = context_from({name: [value] for name, value in passed_on.items()})
    assert trace.get_current_span(again).get_span_context().span_id == request.context.span_id


@pytest.mark.parametrize("bad", ["", "00-zz-11-01", "x" * 10_000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\x00"])
def test_a_malformed_context_is_no_context(bad: str) -> None:
    assert not trace.get_current_span(context_from({"traceparent": bad})).get_span_context().is_valid


def test_a_caller_that_does_not_record_is_followed(longbow: LongbowClient, spans: InMemorySpanExporter) -> None:
    with TRACER.start_as_current_span("request", context_from({"traceparent": REMOTE[:-2] + "00"})):
        longbow.put("docs", pa.table({"id": pa.array([1], pa.uint64()), "vector": vectors(1), "segment": ["s"]}))
    assert spans.get_finished_spans() == ()
    assert Recording.seen[-1][1]["traceparent"][0].endswith("-00")


def vectors(rows: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4 * rows, np.float32)), 4)


def test_a_failed_run_is_a_span_of_error_that_says_why(
    tmp_path: Path, tiny: Embedder, spans: InMemorySpanExporter
) -> None:
    path = tmp_path / "db.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE notes AS SELECT 1 AS id, NULL::VARCHAR AS text")
    with (
        VectorStore.open(tmp_path / "store", collection="notes") as store,
        pytest.raises(InputError) as raised,
    ):
        materialize(
            DuckDBTable(path, "notes"), embedder=tiny, store=store, settings=MaterializeSettings(on_empty="error")
        )
    (root,) = by_name(spans)["materialize"]
    assert root.status.status_code is StatusCode.ERROR
    assert root.status.description == f"InputError: {raised.value}"
    assert [event.name for event in root.events] == ["exception"]


def test_a_failed_call_is_a_span_of_error(longbow: LongbowClient, spans: InMemorySpanExporter) -> None:
    with span("question"), pytest.raises(LongbowNotFound):
        longbow.search("nothing", [[1.0, 0.0]], 1)
    (call,) = by_name(spans)["longbow.VectorSearch"]
    assert call.status.status_code is StatusCode.ERROR
    assert re.match("LongbowNotFound: .*'nothing'", call.status.description)


def test_sampled_out_nothing_is_recorded_and_a_run_works_as_ever(
    source: DuckDBTable,
    tmp_path: Path,
    tiny: Embedder,
    longbow: LongbowClient,
    spans: InMemorySpanExporter,
    sampled: Any,
) -> None:
    sampled.share = 0.0
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        assert materialize(source, embedder=tiny, store=store, longbow=longbow).embedded == 300
    assert spans.get_finished_spans() == ()


def test_one_percent_of_many_traces(spans: InMemorySpanExporter, sampled: Any) -> None:
    sampled.share = 0.01
    for _ in range(20_000):
        with span("request"):
            pass
    assert 120 <= len(spans.get_finished_spans()) <= 290  # 200 +- 6 standard deviations


def test_a_batch_belongs_to_its_first_recorded_request_and_is_linked_with_all(
    tiny: Embedder, spans: InMemorySpanExporter, sampled: Any
) -> None:
    sampled.share = 0.0
    unrecorded = TRACER.start_span("request")
    assert batch_span("batch", [unrecorded]) is INVALID_SPAN
    sampled.share = 1.0
    requests = [unrecorded, *(TRACER.start_span("request") for _ in range(3))]
    batch = batch_span("batch", requests, {"rows": 3})
    with trace.use_span(batch, end_on_exit=True):
        tiny.embed(["one", "two", "three"])
    for request in requests:
        request.end()
    named = by_name(spans)
    (made,) = named["batch"]
    served = [request.get_span_context().span_id for request in requests[1:]]
    assert made.parent.span_id == served[0]
    assert [link.context.span_id for link in made.links] == served
    assert all([link.context.span_id for link in r.links] == [made.context.span_id] for r in named["request"])
    for stage in ("tokenize", "compute", "guard"):
        assert named[stage][0].parent.span_id == made.context.span_id


def test_a_finished_span_has_the_times_that_were_measured(spans: InMemorySpanExporter) -> None:
    began, wall = time.perf_counter(), time.time_ns()
    with span("parent") as parent:
        done = threading.Event()

        def elsewhere() -> None:
            finished_span("piece", began - 2.0, began - 0.5, parent=parent, attributes={"n": 1})
            done.set()

        threading.Thread(target=elsewhere).start()
        assert done.wait(10)
    piece = by_name(spans)["piece"][0]
    assert piece.start_time == pytest.approx(wall - 2e9, abs=5e7)
    assert piece.end_time - piece.start_time == pytest.approx(1.5e9, abs=1e4)
    assert finished_span("late", began, began + 1, parent=parent) is INVALID_SPAN  # its parent has ended

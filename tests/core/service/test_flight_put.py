"""DoPut: texts in, vectors in Longbow, read back there; what Longbow did not take is never acknowledged."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from exchange import call_options, command

from fletcher_core import Embedder
from fletcher_core.longbow import LongbowClient, LongbowSettings
from fletcher_core.longbow.breaker import BreakerSettings, CircuitBreaker
from fletcher_core.longbow.server import Faults, LongbowServer
from fletcher_core.service.flight import FlightService

Serve = Callable[..., FlightService]
Connect = Callable[..., flight.FlightClient]
PATH = flight.FlightDescriptor.for_path("docs")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LongbowServer]:
    with LongbowServer(tmp_path / "rows") as running:
        yield running


def longbow_client(server: LongbowServer, **settings: Any) -> LongbowClient:
    breaker = CircuitBreaker(BreakerSettings(backoff=0.01, max_backoff=0.05))
    address = server.address
    return LongbowClient(LongbowSettings(address.data, address.meta, call_timeout=5, **settings), breaker=breaker)


@pytest.fixture
def longbow(server: LongbowServer) -> Iterator[LongbowClient]:
    with longbow_client(server) as client:
        yield client


def rows(texts: list[str | None], first: int = 0, **columns: Any) -> pa.RecordBatch:
    ids = pa.array(range(first, first + len(texts)), pa.uint64())
    return pa.record_batch({"id": ids, "text": pa.array(texts, pa.string()), **columns})


def put(
    client: flight.FlightClient, batches: list[pa.RecordBatch], descriptor: flight.FlightDescriptor = PATH
) -> list[dict[str, Any]]:
    """Batch after batch, each when the one before it is acknowledged."""
    writer, reader = client.do_put(descriptor, batches[0].schema, call_options())
    said = []
    try:
        for batch in batches:
            writer.write_batch(batch)
            said.append(json.loads(reader.read().to_pybytes()))
        writer.done_writing()
        assert reader.read() is None
    finally:
        writer.close()
    return said


def test_rows_arrive_with_their_vectors_and_columns(
    serve: Serve, connect: Connect, longbow: LongbowClient, minilm: Embedder
) -> None:
    texts = [f"the story of number {i}" for i in range(20)]
    label = pa.array([f"label {i % 3}" for i in range(10)]).dictionary_encode()
    sent = [
        rows(texts[:10], label=label, n=pa.array(range(10))),
        rows(texts[10:], 10, label=label, n=pa.array(range(10))),
    ]
    said = put(connect(serve(longbow=longbow)), sent)
    assert said == [{"rows": 10, "forwarded": 10, "errors": []}] * 2
    held = longbow.scan("docs").sort_by("id")
    assert held["id"].to_pylist() == list(range(20))
    assert held["text"].to_pylist() == texts
    assert held["label"].to_pylist() == label.to_pylist() * 2
    assert held["n"].to_pylist() == [*range(10), *range(10)]
    vectors = held["vector"].combine_chunks().flatten().to_numpy().reshape(20, 384)
    expected = minilm.embed(texts)
    assert np.einsum("nd,nd->n", vectors, expected).min() > 0.9999
    assert longbow.search("docs", expected[7:8], 1)[0]["id"].to_pylist() == [7]


def test_rows_that_cannot_be_stored_are_named_and_the_others_go(
    serve: Serve, connect: Connect, longbow: LongbowClient
) -> None:
    ids = pa.array([1, None, 2**32, 4, 2**64 - 1, 6, 7], pa.uint64())
    texts = pa.array([b"one", b"no id", b"large id", b"\xff", b"larger", None, b"seven"], pa.binary())
    (said,) = put(connect(serve(longbow=longbow)), [pa.record_batch({"id": ids, "text": texts})])
    assert (said["rows"], said["forwarded"]) == (7, 2)
    assert [(error["row"], error["id"]) for error in said["errors"]] == [
        (1, None),
        (2, None),
        (3, 4),
        (4, None),
        (5, 6),
    ]
    assert "4294967296, not from 0 to 4294967295" in said["errors"][1]["reason"]
    assert "UTF-8" in said["errors"][2]["reason"]
    assert "text is null" in said["errors"][4]["reason"]
    held = longbow.scan("docs").sort_by("id")
    assert held["text"].to_pylist() == ["one", "seven"]
    assert held["vector"].null_count == 0


def test_options_come_with_the_command_or_the_schema(serve: Serve, connect: Connect, longbow: LongbowClient) -> None:
    client = connect(serve(longbow=longbow))
    ids = pa.array([1], pa.int32())
    batch = pa.record_batch({"id": ids, "body": pa.array(["x"], pa.string_view())})
    put(client, [batch], command(dataset="small", column="body", dimension=64, keep_text=False))
    marked = batch.replace_schema_metadata({"fletcher": json.dumps({"column": "body", "dimension": 64})})
    put(client, [marked], flight.FlightDescriptor.for_path("kept"))
    assert set(longbow.scan("small").column_names) == {"id", "vector"}
    assert set(longbow.scan("kept").column_names) == {"id", "vector", "body"}
    for name in ("small", "kept"):
        assert longbow.scan(name).schema.field("vector").type == pa.list_(pa.float32(), 64)


def test_a_batch_over_longbows_limits_goes_in_several_puts(
    serve: Serve, connect: Connect, server: LongbowServer
) -> None:
    with longbow_client(server, max_put_rows=30, max_put_bytes=20_000) as narrow:
        (said,) = put(connect(serve(longbow=narrow)), [rows([f"{i % 9}" for i in range(100)])])
        assert said == {"rows": 100, "forwarded": 100, "errors": []}
        assert sorted(narrow.scan("docs")["id"].to_pylist()) == list(range(100))


def test_longbow_down_in_the_middle_is_told_with_what_was_forwarded(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    server = LongbowServer(tmp_path / "rows")
    service = serve(longbow=longbow_client(server))
    writer, reader = connect(service).do_put(PATH, rows([]).schema, call_options())
    writer.write_batch(rows(["a", "b", "c"]))
    assert json.loads(reader.read().to_pybytes())["forwarded"] == 3
    server.close()
    writer.write_batch(rows(["d", "e"], 3))
    said = json.loads(reader.read().to_pybytes())  # no client is left waiting for its acknowledgement
    assert (said["rows"], said["forwarded"]) == (2, 0)
    assert "not reachable" in said["failed"]
    with pytest.raises(flight.FlightUnavailableError, match=r"Longbow at .*Longbow took 3 rows of this put before"):
        writer.close()


def test_nothing_is_acknowledged_that_longbow_did_not_take(
    serve: Serve, connect: Connect, server: LongbowServer, longbow: LongbowClient
) -> None:
    server.faults = Faults(unavailable_mid_stream=True)
    writer, reader = connect(serve(longbow=longbow)).do_put(PATH, rows([]).schema, call_options())
    writer.write_batch(rows(["a", "b", "c"]))
    assert json.loads(reader.read().to_pybytes())["forwarded"] == 0
    with pytest.raises(flight.FlightUnavailableError, match="took 0 rows"):
        writer.close()


def test_what_longbow_refuses_for_good_is_an_invalid_argument(
    serve: Serve, connect: Connect, longbow: LongbowClient
) -> None:
    client = connect(serve(longbow=longbow))
    put(client, [rows(["a"])])
    with pytest.raises(pa.ArrowInvalid, match=r"schema mismatch.*took 0 rows"):
        put(client, [rows(["a"])], command(dataset="docs", dimension=32))


@pytest.mark.parametrize(
    ("schema", "descriptor", "words"),
    [
        ([("text", pa.string())], PATH, r"no column 'id'.*'text' \(string\)"),
        ([("id", pa.string()), ("text", pa.string())], PATH, "column 'id' is of string: Longbow needs uint64"),
        ([("id", pa.uint64()), ("body", pa.string())], PATH, "no column 'text'"),
        ([("id", pa.uint64()), ("text", pa.string()), ("vector", pa.int8())], PATH, "a column 'vector' already"),
        ([("id", pa.uint64()), ("text", pa.string())], flight.FlightDescriptor.for_path("a", "b"), "2 elements"),
        ([("id", pa.uint64()), ("text", pa.string())], command(), "needs the name of a dataset"),
        ([("id", pa.uint64()), ("text", pa.string())], command(dataset="d", output="v"), "'output', which is none of"),
    ],
)
def test_a_put_that_cannot_work_is_refused_with_words(
    serve: Serve,
    connect: Connect,
    longbow: LongbowClient,
    schema: list[tuple[str, pa.DataType]],
    descriptor: flight.FlightDescriptor,
    words: str,
) -> None:
    writer, _ = connect(serve(longbow=longbow)).do_put(descriptor, pa.schema(schema), call_options())
    writer.done_writing()
    with pytest.raises(pa.ArrowInvalid, match=words):
        writer.close()
    assert longbow.list_datasets() == []


def test_without_a_longbow_a_put_is_unimplemented(serve: Serve, connect: Connect) -> None:
    writer, _ = connect(serve()).do_put(PATH, rows([]).schema, call_options())
    with pytest.raises(NotImplementedError, match="no Longbow server is configured"):
        writer.close()

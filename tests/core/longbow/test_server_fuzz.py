"""The embedded server against bytes that no client sends, and our client against answers that no server gives."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from test_longbow_server import Wire, rows

from chaos import wire_bytes
from fletcher_core.errors import ConfigError, LongbowError, LongbowRejected
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.longbow.server.faults import faults_from

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "tests" / "data" / "fuzz" / "server"
SECONDS = os.environ.get("FLETCHER_FUZZ_SECONDS", "2")


def test_what_fuzzing_found_stays_fixed_and_nothing_new_turns_up(tmp_path: Path) -> None:
    """In processes of its own, which may crash. Seed 1; FLETCHER_FUZZ_SECONDS for longer."""
    command = [sys.executable, "-m", "chaos.fuzz_server", "--seed", "1", "--seconds", SECONDS, "--replay", str(KEPT)]
    elsewhere = {**os.environ, "CHAOS_RESULTS": str(tmp_path)}  # not among the figures of `make chaos`
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, timeout=900)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["findings"] == [], done.stderr
    assert done.returncode == 0
    assert summary["kept"] == len(list(KEPT.glob("*.json"))) > 0
    assert summary["cases"] > summary["kept"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LongbowServer]:
    with LongbowServer(tmp_path / "rows") as running:
        yield running


@pytest.fixture
def wire(server: LongbowServer) -> Wire:
    return Wire(server)


def send(server: LongbowServer, method: str, messages: list[bytes]) -> str:
    """The messages as they are; the status that the server closes with."""
    with grpc.insecure_channel(server.address.data) as channel:
        try:
            list(channel.stream_stream(wire_bytes.SERVICE + method)(iter(messages), timeout=10))
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return "OK"


def damaged_strings(*path: bytes) -> list[bytes]:
    """Flight data of two texts, the second of which is said to begin 2 GiB further on."""
    table = pa.table({"id": pa.array([1, 2], pa.uint64()), "key": ["abc", "def"]})
    schema, batch = wire_bytes.flight_data(table, *path)
    offsets = struct.pack("<3i", 0, 3, 6)
    assert batch.count(offsets) == 1
    return [schema, batch.replace(offsets, struct.pack("<3i", 0, 2**31 - 8, 6))]


def test_rows_whose_offsets_point_elsewhere_are_refused(server: LongbowServer, wire: Wire) -> None:
    """Reading such a text reads another's memory, or ends the process."""
    wire.put("d", rows([1]))
    for method in ("DoPut", "DoExchange"):
        said = send(server, method, damaged_strings(*((b"d",) if method == "DoPut" else (b"ingest", b"d"))))
        assert said.startswith("INVALID_ARGUMENT"), said
    assert wire.scan("d").num_rows == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table([[1], [2]], names=["id", "id"]), "two columns are named 'id'"),
        (pa.table({"vector": pa.array([[]], pa.list_(pa.float32(), 0))}), "'vector' is of lists of no elements"),
        (pa.table({"a": pa.array([{"b": []}], pa.struct({"b": pa.list_(pa.int8(), 0)}))}), "lists of no elements"),
    ],
)
def test_columns_that_cannot_be_are_refused_and_make_no_dataset(wire: Wire, table: pa.Table, words: str) -> None:
    """Parts of Arrow divide by a list's size: pa.FixedSizeListArray.from_arrays ends the process for 0."""
    with pytest.raises(pa.ArrowInvalid, match=words):
        wire.put("d", table)
    assert wire.ready("d")["status"] == "NOT_FOUND"


DEEP = b'{"name":' * 50_000


@pytest.mark.parametrize(
    "call",
    [
        lambda wire: wire.get(DEEP),
        lambda wire: wire.act("VectorSearch", DEEP),
        lambda wire: wire.act("check_readiness", b"[" * 100_000),
        lambda wire: wire.act("delete", b'{"dataset":"\xff"}'),
        lambda wire: wire.get({"name": 7}),
        lambda wire: wire.get({"name": "d", "columns": 1.5}),
        lambda wire: wire.get({"name": "d", "columns": [1]}),
        lambda wire: wire.get({"search": {"dataset": ["d"], "vector": [1.0, 0.0], "k": 1}}),
        lambda wire: wire.act("VectorSearch", {"dataset": "d", "vector": [10**400, 0], "k": 1}),
        lambda wire: wire.act("VectorSearch", {"dataset": "d", "vector": [1.0, 0.0], "k": 2.5}),
        lambda wire: wire.act("VectorSearch", {"dataset": "d", "vector": [[[1.0]]], "k": 1}),
        lambda wire: wire.act("fault", {"unavailable_mid_stream": -1.5}),
    ],
)
def test_a_request_of_another_form_is_invalid_and_not_an_accident(wire: Wire, call: Callable[[Wire], object]) -> None:
    wire.put("d", rows([1]))
    with pytest.raises(pa.ArrowInvalid) as refused:
        call(wire)
    code = [line.strip() for line in str(refused.value).splitlines() if set(line.strip()) - set("^~ .")]
    assert any(line.startswith("raise ") for line in code)


def test_a_huge_k_takes_no_more_memory_than_there_are_rows(wire: Wire) -> None:
    wire.put("d", rows([1, 2, 3]))
    for k in (3, 10_000_000):  # the most that the server takes
        assert len(wire.search("d", [1.0, 0.0], k)) == 3


def test_ids_that_only_look_like_numbers_are_searched(wire: Wire) -> None:
    """'²'.isdigit() holds, and int('²') fails."""
    table = rows([1, 2]).set_column(0, "id", pa.array(["²", "9" * 5000], pa.string()))
    wire.put("d", table)
    assert [row for row, _ in sorted(wire.search("d", [1.0, 0.0], 2))] == [0, 1]


def test_hits_at_an_infinite_distance_are_valid_json(wire: Wire) -> None:
    wire.put("d", pa.table({"id": pa.array([1], pa.uint64()), "vector": pa.array([[np.inf, 0.0]], FLOATS)}))
    (answer,) = wire.act("HybridSearch", {"dataset": "d", "vector": [0.0, 0.0], "k": 1})
    (hit,) = json.loads(answer, parse_constant=pytest.fail)
    assert hit == {"ID": 1, "Distance": None, "Score": 0.0, "Metadata": None, "Vector": None}


FLOATS = pa.list_(pa.field("item", pa.float32()), 2)


def test_faults_have_their_types() -> None:
    for values in ({"slow_down": 1}, {"lose_last_puts": 1.5}, {"index_delay": float("nan")}, {"index_delay": -1}):
        with pytest.raises(ConfigError, match="fault"):
            faults_from(values)  # type: ignore[arg-type]


class Liar(flight.FlightServerBase):  # type: ignore[misc]
    """Answers what a test says."""

    def __init__(self) -> None:
        self.results: Callable[[flight.ServerCallContext], Iterator[bytes]] = lambda context: iter([])
        self.table = pa.table({})
        self.batches: Callable[[flight.ServerCallContext], Iterator[pa.RecordBatch]] | None = None
        super().__init__("grpc://127.0.0.1:0")

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[bytes]:
        return self.results(context)

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        if self.batches is not None:
            return flight.GeneratorStream(self.table.schema, self.batches(context))
        return flight.RecordBatchStream(self.table)

    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> Iterator[flight.FlightInfo]:
        for made in (flight.FlightDescriptor.for_path(), flight.FlightDescriptor.for_command(b"x")):
            yield flight.FlightInfo(pa.schema([]), made, [], 0, 0)


@pytest.fixture
def liar() -> Iterator[Liar]:
    with Liar() as server:
        yield server


@pytest.fixture
def client(liar: Liar) -> Iterator[LongbowClient]:
    address = f"127.0.0.1:{liar.port}"
    settings = LongbowSettings(address, address, call_timeout=5.0, read_timeout=20.0, max_read_bytes=2**20)
    with LongbowClient(settings) as client:
        yield client


@pytest.mark.parametrize(
    "answer",
    [
        b'{"status": "PERHAPS"}',
        b'{"status": "READY", "vector_types": 5}',
        b'{"status": "READY", "vector_types": ["float32", 1]}',
        b'{"status": "READY", "index_len": "300"}',
        b'{"status": "READY", "scan_columns": "no"}',
        b'{"status": "READY", "reason": null}',
        b"[" * 100_000,
        b"\xff",
        b"[]",
    ],
)
def test_readiness_of_another_form_is_rejected(liar: Liar, client: LongbowClient, answer: bytes) -> None:
    liar.results = lambda context: iter([answer])
    with pytest.raises(LongbowRejected):
        client.readiness("d")


def hits(**columns: object) -> bytes:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    "answer",
    [
        hits(id=["a"], score=pa.array([1.0], pa.float32())),
        hits(score=pa.array([1.0], pa.float32()), id=pa.array([1], pa.uint64())),
        hits(id=pa.array([1], pa.uint64())),
        hits(),
        b"",
        b"\xff" * 100,
    ],
)
def test_hits_of_another_form_are_rejected(liar: Liar, client: LongbowClient, answer: bytes) -> None:
    liar.results = lambda context: iter([answer])
    with pytest.raises(LongbowError):
        client.search("d", [[1.0, 0.0]], 3)


def test_results_without_end_are_hung_up_on(liar: Liar, client: LongbowClient) -> None:
    def endless(context: flight.ServerCallContext) -> Iterator[bytes]:
        while not context.is_cancelled():
            yield b"{}"

    liar.results = endless
    started = time.monotonic()
    with pytest.raises(LongbowRejected, match="2 results instead of 1"):
        client.readiness()
    client.delete("d", 1)  # whose results nobody counts
    liar.results = lambda context: iter([bytes(2**21)])
    with pytest.raises(LongbowRejected, match="more than max_read_bytes"):
        client.readiness()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("count", [0, 4096])
def test_a_scan_without_end_is_hung_up_on(liar: Liar, client: LongbowClient, count: int) -> None:
    """Also one of batches without rows."""
    liar.table = pa.table({"id": pa.array(range(count), pa.uint64())})
    batch = pa.record_batch({"id": pa.array(range(count), pa.uint64())})

    def endless(context: flight.ServerCallContext) -> Iterator[pa.RecordBatch]:
        while not context.is_cancelled():
            yield batch

    liar.batches = endless
    with pytest.raises(LongbowRejected, match="more than max_read_bytes"):
        client.scan("d")


@pytest.mark.parametrize("ids", [pa.array(["1"]), pa.array([None], pa.uint64()), pa.array([{"a": 1}]), pa.array([1.5])])
def test_ids_of_another_type_are_rejected(liar: Liar, client: LongbowClient, ids: pa.Array) -> None:
    liar.table = pa.table({"id": ids})
    with pytest.raises(LongbowRejected):
        client.present_ids("d", "segment")


def test_flights_without_a_path_are_rejected(client: LongbowClient) -> None:
    with pytest.raises(LongbowRejected, match="no path"):
        client.list_datasets()


def test_damaged_rows_of_a_server_are_rejected() -> None:
    """As those of a client: a caller who reads them would read another's memory."""
    messages = damaged_strings()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.stream_stream_rpc_method_handler(lambda sent, context: iter(messages))

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with LongbowClient(LongbowSettings(address, address)) as client, pytest.raises(LongbowRejected):
            client.scan("d")
    finally:
        server.stop(None)

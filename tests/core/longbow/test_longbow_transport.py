"""How rows travel: halves as exact as they can be and never infinite, compressed, several segments at once, paced."""

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core.errors import ConfigError, LongbowRejected
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.client import LongbowClient, LongbowSettings, PutResult
from fletcher_core.longbow.lanes import side_by_side
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.longbow.server import Faults
from fletcher_core.longbow.transport import wire_vectors
from fletcher_core.models.card import ModelCard
from fletcher_core.store.generation import Generation
from fletcher_core.store.store import VectorStore

QUICK = SenderSettings(patience=0.5, slow_down_pause=0.01)
Connect = Callable[..., LongbowClient]


def deliver(generation: Generation, client: LongbowClient, settings: SenderSettings = QUICK) -> DeliveryReport:
    with Sender(generation, client, settings) as sender:
        return sender.drain(20)


def unit_vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vector_column(vectors: np.ndarray) -> pa.ChunkedArray:
    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)])


def generation_of(
    root: Path, vectors: np.ndarray, vector_type: str = "float32", segment_rows: int = 2000
) -> Generation:
    """A store's generation that holds the vectors; row n has the sequence that n has in the order of writing."""
    store = VectorStore.open(root, collection="docs")
    card = ModelCard("tiny", "ab" * 16, vectors.shape[1])
    generation = store.generation(card, pa.schema([]), vector_type)  # type: ignore[arg-type]
    for start in range(0, len(vectors), segment_rows):
        part = vectors[start : start + segment_rows]
        ids = [f"row {start + n}" for n in range(len(part))]
        rows = pa.table(
            {
                "id": ids,
                "op": ["upsert"] * len(ids),
                "content_hash": ids,
                "metadata_hash": [""] * len(ids),
                "tokens": pa.array([3] * len(ids), pa.int32()),
                "truncated": [False] * len(ids),
                "replaces": pa.nulls(len(ids), pa.int64()),
                "vector": vector_column(part),
            }
        )
        generation.write_segment("", rows, run_id="test")
    return generation


def held_ids(generation: Generation, client: LongbowClient) -> list[int]:
    """Sequences of all rows on the server, a copy each, sorted."""
    return sorted(client.scan(generation.name)["id"].to_pylist())


def committed_ids(generation: Generation) -> list[int]:
    return [n for s in generation.segments() for n in range(s.first_sequence, s.last_sequence + 1)]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"transport": "float16"}, "Longbow transport: 'float16' is neither 'fp32'"),
        ({"compression": "gzip"}, "Longbow compression: 'gzip' is none of"),
        ({"compression": ""}, "Longbow compression: '' is none of"),
        ({"streams": 0}, "Longbow streams: 0 is below 1"),
    ],
)
def test_settings_that_do_not_exist_are_named(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LongbowSettings(**setting)


@pytest.mark.parametrize(("dtype", "transport"), [(np.float32, "fp32"), (np.float16, "fp16")])
def test_vectors_of_the_transports_type_are_not_copied(dtype: type, transport: Any) -> None:
    column = vector_column(unit_vectors(10, 4).astype(dtype))
    sliced = column.slice(3, 5)
    sent = wire_vectors(sliced, pa.chunked_array([["x"] * 5]), transport)
    assert sent.to_pylist() == sliced.to_pylist()
    assert sent.type.value_field == pa.field("item", pa.from_numpy_dtype(dtype), nullable=True)
    assert sent.chunk(0).values.buffers()[1].address == column.chunk(0).values.buffers()[1].address


def test_halves_are_the_nearest_ones_and_halves_become_floats_again() -> None:
    vectors = unit_vectors(50, 16)
    keys = pa.chunked_array([[f"row {n}" for n in range(50)]])
    halves = wire_vectors(vector_column(vectors), keys, "fp16")
    assert np.array_equal(np.array(halves.to_pylist(), np.float16), vectors.astype(np.float16))
    floats = wire_vectors(halves, keys, "fp32")
    assert np.array_equal(np.array(floats.to_pylist(), np.float32), vectors.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("value", [65520.0, -1e6, float("inf"), float("nan")])
def test_a_vector_beyond_float16_is_refused_by_the_name_of_its_row(value: float) -> None:
    vectors = np.full((6, 3), 65504.0, np.float32)
    column = vector_column(vectors)
    keys = pa.chunked_array([[f"row {n}" for n in range(6)]])
    assert wire_vectors(column, keys, "fp16").to_pylist()[5] == [65504.0] * 3  # the largest there is
    vectors[4, 1] = value
    chunks = pa.chunked_array([*vector_column(vectors[:2]).chunks, *vector_column(vectors[1:]).slice(1).chunks])
    with pytest.raises(LongbowRejected, match=r"row 'row 4' has .* which a float16 cannot hold .*transport='fp32'"):
        wire_vectors(chunks, keys, "fp16")


def test_a_row_beyond_float16_is_reported_and_never_arrives(tmp_path: Path, connect: Connect) -> None:
    vectors = unit_vectors(5, 8)
    vectors[3] *= 1e6
    generation = generation_of(tmp_path / "store", vectors)
    report = deliver(generation, connect(transport="fp16"))
    assert "row 'row 3' has" in report.rejected
    assert report.puts == 0
    assert deliver(generation, connect(transport="fp32")).is_complete


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_halves_arrive_as_they_were_sent_in_half_the_bytes(tmp_path: Path, connect: Connect, vector_type: str) -> None:
    vectors = unit_vectors(300, 64)
    generation = generation_of(tmp_path / "store", vectors, vector_type)
    client = connect(transport="fp16")
    report = deliver(generation, client)
    assert report.is_complete
    held = client.scan(generation.name).sort_by("id")
    assert held["vector"].type.value_type == pa.float16()
    assert np.array_equal(np.array(held["vector"].to_pylist(), np.float16), vectors.astype(np.float16))
    assert client.readiness(generation.name).vector_type == "float16"
    client.delete_dataset(generation.name)
    whole = deliver(generation, connect(transport="fp32"))
    assert whole.bytes_sent - report.bytes_sent == 300 * 64 * 2


def test_recall_at_10_of_halves_is_that_of_floats(tmp_path: Path, connect: Connect) -> None:
    generation = generation_of(tmp_path / "store", unit_vectors(3000, 384))
    queries = unit_vectors(150, 384, seed=1)
    found = {}
    for transport in ("fp32", "fp16"):
        client = connect(transport=transport)
        assert deliver(generation, client).is_complete
        found[transport] = [set(hits["id"].to_pylist()) for hits in client.search(generation.name, queries, 10)]
        client.delete_dataset(generation.name)
    shared = sum(len(floats & halves) for floats, halves in zip(found["fp32"], found["fp16"], strict=True))
    assert shared / (10 * len(queries)) >= 0.999


def test_a_server_that_cannot_search_halves_is_refused_before_anything_is_sent(
    server: Any, tmp_path: Path, connect: Connect
) -> None:
    server.faults = Faults(no_extensions=True)
    generation = generation_of(tmp_path / "store", unit_vectors(5, 8))
    client = connect(transport="fp16")
    report = deliver(generation, client)
    assert f"Longbow at {server.address.data} cannot search float16 vectors" in report.rejected
    assert "Set transport='fp32'" in report.rejected
    assert client.list_datasets() == []
    vectors = wire_vectors(vector_column(unit_vectors(5, 8)), pa.chunked_array([["x"] * 5]), "fp16")
    client.put("docs", pa.table({"id": pa.array(range(5), pa.uint64()), "vector": vectors}))  # what it is refused for
    assert client.readiness("docs").index_len == 0
    assert deliver(generation, connect(transport="fp32")).is_complete  # reading whole rows back


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_dataset_never_gets_vectors_of_two_types(
    tmp_path: Path, collection: Any, connect: Connect, before: str, after: str
) -> None:
    collection.write(["a", "b"])
    assert deliver(collection.generation, connect(transport=before)).is_complete
    collection.write(["c"])
    client = connect(transport=after)
    report = deliver(collection.generation, client)
    assert f"transport={after!r} cannot go on with it. Set transport={before!r} again" in report.rejected
    assert report.rows["pending"] == 1
    assert client.scan(collection.generation.name).num_rows == 2
    assert deliver(collection.generation, connect(transport=before)).is_complete
    # The other way that the message names: another generation has a dataset of its own.
    other = generation_of(tmp_path / "store", unit_vectors(3, 8), "float16")
    assert other.name != collection.generation.name
    assert deliver(other, client).is_complete


class Relay:
    """A port that passes everything on to a server, and counts the bytes that go there."""

    def __init__(self, address: str) -> None:
        self.sent = 0
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink, source is client), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):  # one side hung up
            while data := source.recv(1 << 16):
                self.sent += len(data) if counted else 0
                sink.sendall(data)
        sink.close()


@pytest.fixture
def relay(server: Any) -> Iterator[Relay]:
    running = Relay(server.address.data)
    yield running
    running.close()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_rows_take_less_of_the_link_and_arrive_the_same(server: Any, relay: Relay, compression: Any) -> None:
    vectors = np.repeat(np.eye(4, 256, dtype=np.float32), 250, axis=0)
    table = pa.table({"id": pa.array(range(1000), pa.uint64()), "vector": vector_column(vectors)})
    took = {}
    for setting in (None, compression):
        before = relay.sent
        with LongbowClient(LongbowSettings(relay.address, server.address.meta, compression=setting)) as client:
            client.put(f"docs-{setting}", table)
            assert client.scan(f"docs-{setting}").equals(table)
            took[setting] = relay.sent - before
    assert took[None] > table.nbytes
    assert took[compression] < table.nbytes / 10


def test_segments_are_on_their_way_side_by_side(collection: Any, connect: Connect, monkeypatch: Any) -> None:
    for number in range(6):
        collection.write([f"row {number}"])
    client = connect(streams=3)
    together, put = threading.Barrier(3, timeout=10), client.put

    def put_together(dataset: str, table: pa.Table) -> PutResult:
        together.wait()  # breaks unless three puts are under way at the same time
        return put(dataset, table)

    monkeypatch.setattr(client, "put", put_together)
    report = deliver(collection.generation, client)
    assert (report.is_complete, report.puts, report.rows_sent) == (True, 6, 6)
    assert held_ids(collection.generation, client) == committed_ids(collection.generation)


def test_after_slow_down_no_stream_begins_a_put_before_the_pause_is_over(
    server: Any, collection: Any, connect: Connect, monkeypatch: Any
) -> None:
    for number in range(7):
        collection.write([f"row {number}"])
    server.faults = Faults(slow_down=True)
    client, pause = connect(streams=3), 0.2
    begun: list[float] = []
    asked: list[float] = []
    put = client.put

    def timed_put(dataset: str, table: pa.Table) -> PutResult:
        begun.append(time.monotonic())
        result = put(dataset, table)
        if result.slow_down:
            asked.append(time.monotonic())
        return result

    monkeypatch.setattr(client, "put", timed_put)
    settings = SenderSettings(patience=5.0, slow_down_pause=pause)
    assert deliver(collection.generation, client, settings).is_complete
    assert len(begun) == len(asked) == 7
    slack = 0.02  # between the word's arrival here and its being noted down
    assert not [(b, a) for b, a in itertools.product(begun, asked) if a + slack < b < a + pause - slack]
    assert held_ids(collection.generation, client) == committed_ids(collection.generation)


def test_lanes_run_in_order_up_to_their_number_and_stop_at_the_first_failure() -> None:
    begun: list[int] = []
    active, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> None:
        nonlocal active, most
        with lock:
            begun.append(item)
            active += 1
            most = max(most, active)
        time.sleep(0.01)
        with lock:
            active -= 1
        if item == 5:
            raise ValueError("five")

    side_by_side(work, range(5), 2)
    assert (begun, most) == ([0, 1, 2, 3, 4], 2)
    begun.clear()
    with pytest.raises(ValueError, match="five"):
        side_by_side(work, range(100), 2)
    assert active == 0
    assert 6 <= len(begun) <= 8
    side_by_side(work, [], 2)


class ServerProcess:
    """An embedded server as a process of its own, to be killed and started again on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = ["0", "0"]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(self.folder)]
        command += ["--data-port", self.ports[0], "--meta-port", self.ports[1]]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.address = LongbowAddress(ready["data"], ready["meta"])
        self.ports = [address.rpartition(":")[2] for address in (self.address.data, self.address.meta)]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.mark.parametrize("moment", ["while puts are on their way", "between an OK and the ledger"])
def test_a_server_killed_with_puts_in_flight_ends_up_with_every_row_once(
    tmp_path: Path, monkeypatch: Any, moment: str
) -> None:
    generation = generation_of(tmp_path / "store", unit_vectors(3000, 64), segment_rows=250)
    server = ServerProcess(tmp_path / "server")
    with LongbowClient(LongbowSettings(server.address.data, server.address.meta, streams=3)) as client:
        put, count, killed = client.put, itertools.count(1), threading.Event()

        def put_and_kill(dataset: str, table: pa.Table) -> PutResult:
            is_fifth = next(count) == 5
            if is_fifth and moment.startswith("while"):
                threading.Timer(0.002, server.kill).start()
                killed.set()
            result = put(dataset, table)
            if is_fifth and not killed.is_set():
                server.kill()
                killed.set()
            return result

        monkeypatch.setattr(client, "put", put_and_kill)
        try:
            with Sender(generation, client, QUICK) as sender:
                report = sender.drain(20)
                assert killed.is_set()
                assert report.unavailable
                assert report.segments["searchable"] < 12
                server.process.wait()
                server.start()
                while (report := sender.drain(20)).unavailable:
                    pass
            assert report.is_complete
            assert held_ids(generation, client) == committed_ids(generation)
        finally:
            server.kill()

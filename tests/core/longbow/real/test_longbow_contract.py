"""What Fletcher's client relies on, asked of the embedded server and of real ones alike: they give the same answers."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core.errors import LongbowNotFound, LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.wire import wire_schema, wire_table

EVERY = ["embedded", "newest", "v0.1.1"]
CURRENT = ["embedded", "newest"]
REAL = ["newest", "v0.1.1"]
Start = Callable[..., Any]
DIMENSION = 4


@pytest.fixture
def client(request: pytest.FixtureRequest, running: Any) -> Iterator[LongbowClient]:
    with running(request.param).client() as connected:
        yield connected


def on(kinds: list[str]) -> Any:
    return pytest.mark.parametrize("client", kinds, indirect=True)


def rows(ids: list[int], segment: str = "s1", dimension: int = DIMENSION, element: Any = np.float32) -> pa.Table:
    """Row i has the vector (cos i, sin i, 0, 0)."""
    vectors = np.zeros((len(ids), dimension), element)
    vectors[:, 0], vectors[:, 1] = np.cos(ids), np.sin(ids)
    kind = pa.list_(pa.field("item", pa.from_numpy_dtype(vectors.dtype)), dimension)
    return pa.table(
        {
            "id": pa.array(ids, pa.uint64()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind),
            "key": [str(row) for row in ids],
            "segment": [segment] * len(ids),
            "version": pa.array(ids, pa.int64()),
        }
    )


def point(angle: float) -> list[list[float]]:
    return [[float(np.cos(angle)), float(np.sin(angle)), 0.0, 0.0]]


def eventually(fact: Callable[[], object], expected: object, seconds: float = 20.0) -> None:
    """OK means 'queued': wait until the server shows what it was given."""
    waited = threading.Event()
    for _ in range(int(seconds / 0.02)):
        try:
            if fact() == expected:
                return
        except LongbowRejected as error:  # v0.1.1's index is there before it knows its dimension
            if "expected 0, got" not in str(error):
                raise
        waited.wait(0.02)
    assert fact() == expected


def ids_of(client: LongbowClient, name: str, segment: str = "s1", last: str = "") -> list[int]:
    return sorted(client.present_ids(name, segment, last).tolist())


@on(EVERY)
def test_a_put_says_nothing_and_its_rows_are_read_back_by_segment(client: LongbowClient, name: str) -> None:
    result = client.put(name, rows([3, 1, 2]))
    assert (result.rows, result.slow_down) == (3, False)
    client.put(name, rows([4], "s2"))
    client.put(name, rows([5], "s3"))
    eventually(lambda: ids_of(client, name), [1, 2, 3])
    eventually(lambda: ids_of(client, name, "s2", "s3"), [4, 5])
    eventually(lambda: client.scan(name).num_rows, 5)
    assert ids_of(client, name, "s9") == []


@on(EVERY)
def test_what_was_never_put_is_unknown_and_a_put_without_rows_is_empty(client: LongbowClient, name: str) -> None:
    with pytest.raises(LongbowNotFound, match=name):
        client.scan(name)
    assert ids_of(client, name) == []
    client.put(name, rows([1]).slice(0, 0))
    assert client.scan(name).num_rows == 0
    assert ids_of(client, name) == []
    client.put(name, rows([1]))
    eventually(lambda: ids_of(client, name), [1])


@on(EVERY)
def test_putting_a_row_again_adds_a_copy(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1, 2]))
    client.put(name, rows([2], "s2"))
    eventually(lambda: sorted(client.scan(name)["id"].to_pylist()), [1, 2, 2])
    eventually(lambda: sorted(client.search(name, point(2.0), 9)[0]["id"].to_pylist()), [1, 2, 2])


@on(EVERY)
def test_the_nearest_come_first_scored_by_their_distance(client: LongbowClient, name: str) -> None:
    client.put(name, rows(list(range(40))))
    eventually(lambda: client.search(name, point(0.0), 99)[0].num_rows, 40)
    first, second = client.search(name, [*point(5.0), *point(7.1)], 3)
    assert first["id"][0].as_py() == 5
    assert first["score"][0].as_py() == pytest.approx(1.0, abs=1e-6)
    angles = np.arange(40)
    nearest = np.argsort(np.hypot(np.cos(angles) - np.cos(7.1), np.sin(angles) - np.sin(7.1)))[:3]
    assert second["id"].to_pylist() == nearest.tolist()
    assert (second.schema.field("id").type, second.schema.field("score").type) == (pa.uint64(), pa.float32())
    assert second["score"].to_pylist() == sorted(second["score"].to_pylist(), reverse=True)


@on(EVERY)
def test_ids_up_to_2_to_the_32_survive_put_scan_and_search(client: LongbowClient, name: str) -> None:
    client.put(name, rows([0, 2**32 - 1]))
    eventually(lambda: ids_of(client, name), [0, 2**32 - 1])
    eventually(lambda: sorted(client.search(name, point(0.0), 9)[0]["id"].to_pylist()), [0, 2**32 - 1])


@on(EVERY)
def test_every_column_of_the_wire_comes_back_as_it_was_sent(client: LongbowClient, name: str) -> None:
    metadata = pa.schema(
        [
            ("count", pa.int32()),
            ("weight", pa.float32()),
            ("flag", pa.bool_()),
            ("day", pa.date32()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("note", pa.large_string()),
        ]
    )
    stored = pa.table(
        {
            "id": ["a", "Ümläut", ""],
            "op": ["upsert"] * 3,
            "sequence": pa.array([7, 8, 9], pa.int64()),
            "segment": ["s1"] * 3,
            "partition_key": ["monday"] * 3,
            "vector": pa.array(np.eye(3, DIMENSION, dtype=np.float32).tolist(), pa.list_(pa.float32(), DIMENSION)),
            "count": pa.array([1, None, 3], pa.int32()),
            "weight": pa.array([0.5, None, -1.0], pa.float32()),
            "flag": [True, None, False],
            "day": pa.array([0, None, 20_000], pa.date32()),
            "at": pa.array([0, None, 1_700_000_000_000_000], pa.timestamp("us", tz="UTC")),
            "note": pa.array(["x", None, "🚀"], pa.large_string()),
        }
    )
    sent = wire_table(stored)
    assert sent.schema.equals(wire_schema(metadata, DIMENSION))
    client.put(name, sent)
    eventually(lambda: client.scan(name).num_rows, 3)
    assert client.scan(name).select(sent.column_names).to_pylist() == sent.to_pylist()
    assert client.scan(name, [("segment", "=", "s1")]).select(sent.column_names).to_pylist() == sent.to_pylist()


@on(EVERY)
def test_scans_show_the_columns_of_the_first_put(client: LongbowClient, name: str) -> None:
    """Why all optional columns are there from the first put on."""
    client.put(name, rows([1]))
    client.put(name, rows([2]).append_column("later", pa.array(["x"])) if client_is_current(client) else rows([2]))
    eventually(lambda: client.scan(name).num_rows, 2)
    assert client.scan(name).column_names == rows([1]).column_names


def client_is_current(client: LongbowClient) -> bool:
    """v0.1.1 does not survive a second schema."""
    return type(client) is LongbowClient


@on(EVERY)
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_rows_arrive_the_same(client: LongbowClient, name: str, compression: Any) -> None:
    settings = LongbowSettings(client.address.data, client.address.meta, compression=compression)
    with LongbowClient(settings) as compressing:
        compressing.put(name, rows(list(range(300))))
    eventually(lambda: ids_of(client, name), list(range(300)))
    assert client.scan(name).sort_by("id").equals(rows(list(range(300))))


@on(EVERY)
def test_rows_put_side_by_side_all_arrive(client: LongbowClient, name: str) -> None:
    threads = [
        threading.Thread(target=lambda n=n: client.put(name, rows(list(range(n * 100, n * 100 + 100)), f"s{n}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    eventually(lambda: sorted(client.scan(name)["id"].to_pylist()), list(range(800)))
    assert all(len(ids_of(client, name, f"s{n}")) == 100 for n in range(8))


@on(EVERY)
def test_datasets_are_listed_on_the_meta_port_which_takes_no_rows(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1]))
    eventually(lambda: name in client.list_datasets(), True)
    swapped = LongbowSettings(client.address.meta, client.address.data)
    with LongbowClient(swapped) as wrong, pytest.raises(LongbowRejected, match="may be swapped"):
        wrong.put(name, rows([2]))


@on(EVERY)
def test_a_query_of_another_dimension_is_refused(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1]))
    eventually(lambda: client.search(name, point(1.0), 1)[0].num_rows, 1)
    with pytest.raises(LongbowRejected, match="expected 4"):
        client.search(name, [[1.0, 0.0]], 1)
    with pytest.raises(LongbowNotFound):
        client.search(f"{name} unknown", point(0.0), 1)


@on(CURRENT)
def test_readiness_of_the_server_of_a_dataset_and_of_a_stranger(client: LongbowClient, name: str) -> None:
    assert client.readiness().status in ("READY", "BUSY")
    assert client.readiness(name).status == "NOT_FOUND"
    client.put(name, rows([1, 2]))
    client.put(name, rows([2, 3], "s2"))
    eventually(lambda: client.readiness(name).index_len, 4)
    eventually(lambda: client.readiness(name).status, "READY")


@on(CURRENT)
def test_a_deleted_row_is_hidden_from_unfiltered_scans_only(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1, 2, 3]))
    eventually(lambda: client.readiness(name).index_len, 3)
    client.delete(name, 2)
    client.delete(name, 2)
    assert sorted(client.scan(name)["id"].to_pylist()) == [1, 3]
    assert ids_of(client, name) == [1, 2, 3]
    assert client.search(name, point(2.0), 1)[0]["id"].to_pylist() == [2]
    for dataset, row in ((name, 9), (f"{name} unknown", 1)):
        with pytest.raises(LongbowNotFound):
            client.delete(dataset, row)


@on(CURRENT)
def test_another_dimension_or_element_type_is_refused_for_good(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1]))
    for other in (rows([2], dimension=3), rows([2], element=np.float64)):
        with pytest.raises(LongbowRejected, match="schema mismatch"):
            client.put(name, other)
    eventually(lambda: ids_of(client, name), [1])


@on(CURRENT)
def test_float16_is_stored_but_neither_indexed_nor_said_to_be(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1, 2, 3], element=np.float16))
    eventually(lambda: ids_of(client, name), [1, 2, 3])
    ready = client.readiness(name)
    assert (ready.vector_types, ready.vector_type, ready.scan_columns) == (("float32",), "", False)
    assert client.search(name, point(2.0), 9)[0].num_rows < 3


@on(CURRENT)
def test_a_scan_that_names_columns_is_refused_unless_the_server_says_that_it_can(
    client: LongbowClient, name: str
) -> None:
    client.put(name, rows([1]))
    with pytest.raises(LongbowRejected, match="invalid ticket format"):
        client.scan(name, columns=["id"])


@on(CURRENT)
def test_a_dropped_dataset_is_unknown_until_it_is_put_again(client: LongbowClient, name: str) -> None:
    client.put(name, rows([1]))
    eventually(lambda: ids_of(client, name), [1])
    client.delete_dataset(name)
    assert client.readiness(name).status == "NOT_FOUND"
    with pytest.raises(LongbowNotFound):
        client.delete_dataset(name)
    client.put(name, rows([2]))
    eventually(lambda: ids_of(client, name), [2])


@pytest.mark.parametrize("kind", EVERY)
def test_after_sigterm_and_a_new_start_all_rows_are_there_and_searchable(start: Start, kind: str, name: str) -> None:
    served = start(kind)
    with served.client() as client:
        client.put(name, rows([1, 2]))
        client.put(name, rows([2, 3], "s2"))
        eventually(lambda: client.scan(name).num_rows, 4)
        served.process.stop()
        with pytest.raises(LongbowUnavailable, match="Start the server"):
            client.scan(name)
        served.process.start()
    with served.client() as client:
        assert sorted(client.scan(name)["id"].to_pylist()) == [1, 2, 2, 3]
        eventually(lambda: sorted(client.search(name, point(2.0), 9)[0]["id"].to_pylist()), [1, 2, 2, 3])


@pytest.mark.parametrize("kind", EVERY)
def test_after_sigkill_each_put_is_there_whole_or_not_at_all(start: Start, kind: str, name: str) -> None:
    served = start(kind)
    with served.client() as client:
        for number in range(5):
            client.put(name, rows(list(range(number * 1000, number * 1000 + 1000)), f"s{number}"))
        served.process.kill()
        served.process.start()
    with served.client() as client:
        assert {len(ids_of(client, name, f"s{number}")) for number in range(5)} <= {0, 1000}
        client.put(name, rows([9000], "s9"))
        eventually(lambda: ids_of(client, name, "s9"), [9000])


@pytest.mark.parametrize("kind", REAL)
def test_a_message_over_the_servers_limit_names_both_settings(start: Start, kind: str, name: str) -> None:
    with start(kind, GRPC_MAX_RECV_MSG_SIZE=64 * 1024).client() as client:
        with pytest.raises(LongbowRejected, match=r"max_put_bytes.*LONGBOW_GRPC_MAX_RECV_MSG_SIZE"):
            client.put(name, rows(list(range(5000))))
        client.put(name, rows([1]))
        eventually(lambda: ids_of(client, name), [1])

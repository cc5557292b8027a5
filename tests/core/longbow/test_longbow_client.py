"""The client against the embedded server: what it returns, and what it raises for each status code and fault."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from fletcher_core.errors import ConfigError, LongbowError, LongbowNotFound, LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.calls import longbow_error
from fletcher_core.longbow.client import LongbowClient, LongbowSettings, Readiness
from fletcher_core.longbow.server import Faults

Connect = Callable[..., LongbowClient]


def rows(ids: list[int], segment: str = "seg-1", dimension: int = 4) -> pa.Table:
    vectors = np.eye(dimension, dtype=np.float32)[np.array(ids) % dimension]
    return pa.table(
        {
            "id": pa.array(ids, pa.uint64()),
            "vector": pa.array(list(vectors), pa.list_(pa.float32(), dimension)),
            "segment": [segment] * len(ids),
        }
    )


def test_put_read_back_search_and_delete(client: LongbowClient) -> None:
    result = client.put("docs", rows([0, 1, 2]))
    assert (result.rows, result.slow_down) == (3, False)
    assert result.bytes == rows([0, 1, 2]).nbytes
    client.put("docs", rows([7], segment="seg-2"))
    assert client.present_ids("docs", "seg-1").tolist() == [0, 1, 2]
    assert client.present_ids("docs", "seg-2").dtype == np.uint64
    (first, second) = client.search("docs", [[0, 1, 0, 0], [0, 0, 0, 1]], 1)
    assert (first["id"].to_pylist(), second["id"].to_pylist()) == ([1], [7])
    assert first["score"].to_pylist() == [1.0]
    client.delete("docs", 2)
    assert sorted(client.scan("docs")["id"].to_pylist()) == [0, 1, 7]
    assert client.list_datasets() == ["docs"]
    assert client.readiness("docs") == Readiness("READY", "", 4, ("float32", "float16"), "float32", True)
    client.delete_dataset("docs")
    assert client.list_datasets() == []
    assert client.readiness("docs").status == "NOT_FOUND"


def test_reading_back_what_was_never_put_is_empty(client: LongbowClient) -> None:
    assert client.present_ids("docs", "seg-1").tolist() == []
    client.put("docs", rows([1]).slice(0, 0))
    assert client.present_ids("docs", "seg-1").tolist() == []
    assert client.scan("docs").num_rows == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"id": pa.array(["1", "x"])}, "column id is of string"),
        ({"id": pa.array([1, None], pa.uint64())}, "column id is of uint64, or has nulls"),
        ({"id": pa.array([1.5, 2.0])}, "column id is of double"),
        ({"segment": pa.array(["seg-1", None])}, "column segment has nulls"),
        ({"segment": pa.array([["seg-1"], ["seg-1"]])}, "refused|does not know"),
    ],
)
@pytest.mark.parametrize("ids_only", [True, False])
def test_ids_that_cannot_be_ours_are_refused(
    client: LongbowClient, changed: dict[str, pa.Array], words: str, ids_only: bool
) -> None:
    table = rows([1, 2])
    for name, column in changed.items():
        table = table.set_column(table.column_names.index(name), name, column)
    client.put("docs", table)
    with pytest.raises(LongbowRejected, match=words):
        client.labelled_ids("docs", [], ids_only=ids_only)
    if "id" in changed:
        with pytest.raises(LongbowRejected, match=words):
            client.present_ids("docs", "seg-1", ids_only=ids_only)


def test_the_memory_for_ids_is_bounded_and_not_what_travels(connect: Connect) -> None:
    client = connect(max_read_bytes=8_000)
    client.put("docs", rows(list(range(100)), dimension=64))
    assert rows(list(range(100)), dimension=64).nbytes > 3 * 8_000
    assert client.labelled_ids("docs", []).num_rows == 100
    client.put("docs", rows(list(range(1000)), dimension=64))
    with pytest.raises(LongbowRejected, match=r"more than max_read_bytes \(8000\)"):
        client.labelled_ids("docs", [])
    assert client.breaker.state == "closed"


def test_a_stream_without_any_message_is_an_empty_dataset(client: LongbowClient, monkeypatch: Any) -> None:
    class Silent:
        def do_get(self, *_: object) -> None:
            raise flight.FlightInternalError("Server never sent a data message. Detail: Internal")

        def close(self) -> None: ...

    monkeypatch.setattr(client, "_data", Silent())
    assert client.scan("docs").num_rows == 0
    assert client.present_ids("docs", "seg-1").tolist() == []


def test_slow_down_is_reported_and_the_put_goes_on(server: Any, client: LongbowClient) -> None:
    server.faults = Faults(slow_down=True)
    assert client.put("docs", rows([1])).slow_down
    assert client.present_ids("docs", "seg-1").tolist() == [1]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(stall_before_flush=True), "no answer before the deadline"),
        (Faults(unavailable_mid_stream=0), "connection reset"),
        (Faults(resource_exhausted=True), "out of a resource"),
    ],
)
@pytest.mark.parametrize("count", [3, 20_000])
def test_a_put_of_unknown_outcome_is_unavailable(
    server: Any, connect: Connect, faults: Faults, words: str, count: int
) -> None:
    client = connect(put_timeout=0.3)
    server.faults = faults
    with pytest.raises(LongbowUnavailable, match=words) as caught:
        client.put("docs", rows(list(range(count))))
    assert server.address.data in str(caught.value)
    assert f"put of {count} rows to dataset 'docs'" in str(caught.value)
    server.faults = Faults()
    client.put("docs", rows([1]))


def test_a_schema_that_changes_is_rejected_in_the_servers_words(client: LongbowClient) -> None:
    client.put("docs", rows([1]))
    with pytest.raises(LongbowRejected, match="schema mismatch: column 'vector'") as caught:
        client.put("docs", rows([1], dimension=5))
    assert "Traceback" not in str(caught.value)
    assert "debug context" not in str(caught.value)


@pytest.mark.parametrize("limit", [{"max_put_rows": 2}, {"max_put_bytes": 40}])
def test_a_put_over_the_limits_is_rejected_before_it_is_sent(connect: Connect, limit: dict[str, int]) -> None:
    client = connect(**limit)
    with pytest.raises(LongbowRejected, match="split the table"):
        client.put("docs", rows([1, 2, 3]))
    assert client.readiness("docs").status == "NOT_FOUND"


def test_unknown_things_are_not_found(client: LongbowClient) -> None:
    client.put("docs", rows([1]))
    calls: list[Callable[[], object]] = [
        lambda: client.scan("stranger"),
        lambda: client.search("stranger", [[1, 0, 0, 0]], 1),
        lambda: client.delete("stranger", 1),
        lambda: client.delete("docs", 99),
        lambda: client.delete_dataset("stranger"),
    ]
    for call in calls:
        with pytest.raises(LongbowNotFound):
            call()


def test_searches_that_cannot_work(client: LongbowClient) -> None:
    client.put("docs", rows([1]))
    client.put("empty", rows([1]).slice(0, 0).drop_columns("vector"))
    with pytest.raises(LongbowRejected, match="expected 4, got 3"):
        client.search("docs", [[1, 0, 0]], 1)
    with pytest.raises(LongbowRejected, match="finite"):
        client.search("docs", [[1, 0, 0, float("nan")]], 1)
    with pytest.raises(LongbowRejected, match="shape"):
        client.search("docs", [1, 0, 0, 0], 1)  # type: ignore[list-item]
    with pytest.raises(LongbowUnavailable, match="no index yet"):
        client.search("empty", [[1, 0, 0, 0]], 1)


def test_swapped_ports_are_named_as_a_possible_cause(server: Any) -> None:
    with (
        LongbowClient(LongbowSettings(server.address.meta, server.address.data)) as client,
        pytest.raises(LongbowRejected, match="may be swapped"),
    ):
        client.put("docs", rows([1]))


def test_a_server_that_is_down_and_one_that_is_back(server: Any, client: LongbowClient) -> None:
    client.put("docs", rows([1]))
    server.stop()
    for call in (client.readiness, client.list_datasets, lambda: client.put("docs", rows([1]))):
        with pytest.raises(LongbowUnavailable, match="not reachable"):
            call()
    server.start()
    for _ in range(200):
        try:
            assert client.readiness("docs").index_len == 1
            return
        except LongbowUnavailable:
            time.sleep(0.01)
    with LongbowClient(client.settings) as fresh:
        assert fresh.readiness("docs").index_len == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (flight.FlightUnavailableError("x"), LongbowUnavailable),
        (flight.FlightTimedOutError("x"), LongbowUnavailable),
        (flight.FlightInternalError("x"), LongbowUnavailable),
        (flight.FlightServerError("x"), LongbowUnavailable),
        (flight.FlightCancelledError("x"), LongbowUnavailable),
        (OSError("x"), LongbowUnavailable),
        (pa.ArrowInvalid("gRPC returned resource exhausted error, with message: full"), LongbowUnavailable),
        (pa.ArrowInvalid("gRPC returned precondition failed error, with message: no index"), LongbowUnavailable),
        (
            pa.ArrowInvalid("gRPC returned resource exhausted error: received message larger than max (5 vs 4)"),
            LongbowRejected,
        ),
        (pa.ArrowInvalid("Flight returned invalid argument error, with message: bad"), LongbowRejected),
        (pa.ArrowNotImplementedError("x"), LongbowRejected),
        (flight.FlightUnauthorizedError("x"), LongbowRejected),
        (pa.ArrowKeyError("x"), LongbowNotFound),
    ],
)
def test_every_exception_of_pyarrow_has_its_error(error: Exception, expected: type[LongbowError]) -> None:
    assert isinstance(longbow_error(error, "here"), expected)


@pytest.mark.parametrize(
    ("text", "data", "meta"),
    [
        ("127.0.0.1:3000", "127.0.0.1:3000", "127.0.0.1:3001"),
        ("grpc://db.local:5000", "db.local:5000", "db.local:5001"),
        ("grpc+tcp://[::1]:3000/", "[::1]:3000", "[::1]:3001"),
        ("grpc+tls://db.local:5000", "grpc+tls://db.local:5000", "grpc+tls://db.local:5001"),
        ("grpc+tls://[::1]:3000", "grpc+tls://[::1]:3000", "grpc+tls://[::1]:3001"),
    ],
)
def test_addresses(text: str, data: str, meta: str) -> None:
    assert LongbowAddress(text) == LongbowAddress(data, meta)
    assert LongbowSettings(text).address.meta == meta


@pytest.mark.parametrize(
    "text", ["", "localhost", "http://h:1", "grpc+tls://h", "https://h:1", "h:port", "h:99999", "h:1/path"]
)
def test_an_address_that_is_none_names_its_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="Longbow data address"):
        LongbowSettings(text)


@pytest.mark.parametrize("setting", [{"put_timeout": 0}, {"max_put_rows": 50_000}, {"max_put_bytes": 2**25}])
def test_settings_that_cannot_work(setting: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LongbowSettings(**setting)  # type: ignore[arg-type]

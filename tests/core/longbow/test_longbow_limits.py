"""What the embedded server takes from the network is bounded, and a client bounds what a server may answer."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fletcher_core.errors import LongbowRejected, LongbowUnavailable
from fletcher_core.longbow import LongbowClient, LongbowSettings
from fletcher_core.longbow import client as client_module
from fletcher_core.longbow.server import Limits, LongbowServer

SMALL = Limits(
    action_bytes=4000,
    ticket_bytes=1000,
    json_depth=6,
    filters=3,
    k=50,
    queries=4,
    distances=30,
    hits=20,
    dimension=8,
    name_bytes=20,
    path_elements=3,
    datasets=3,
    namespaces=3,
    columns=4,
    schema_bytes=2000,
    batch_rows=30,
    batch_bytes=2000,
)


class Wire:
    """Bare Flight calls to a server with small limits."""

    def __init__(self, server: LongbowServer) -> None:
        self.data = flight.FlightClient(f"grpc://{server.address.data}")
        self.meta = flight.FlightClient(f"grpc://{server.address.meta}")

    def put(self, table: pa.Table, *path: str) -> None:
        writer, _ = self.data.do_put(flight.FlightDescriptor.for_path(*(path or ("docs",))), table.schema)
        writer.write_table(table)
        writer.close()

    def exchange(self, table: pa.Table, *path: str) -> None:
        writer, reader = self.data.do_exchange(flight.FlightDescriptor.for_path(*path))
        writer.begin(table.schema)
        writer.write_table(table)
        writer.done_writing()
        reader.read_chunk()

    def get(self, ticket: bytes) -> pa.Table:
        return self.data.do_get(flight.Ticket(ticket)).read_all()

    def act(self, name: str, body: Any, *, meta: bool = False) -> list[bytes]:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return [result.body.to_pybytes() for result in (self.meta if meta else self.data).do_action((name, sent))]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with LongbowServer(tmp_path / "rows", limits=SMALL) as server:
        wire = Wire(server)
        wire.put(rows(10))
        yield wire


def rows(count: int, dimension: int = 2, **columns: list[Any]) -> pa.Table:
    vectors = np.arange(count * dimension, dtype=np.float32)
    return pa.table(
        {
            "id": np.arange(count, dtype=np.uint64),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dimension),
            **columns,
        }
    )


def search(**request: Any) -> Callable[[Wire], object]:
    return lambda wire: wire.act("VectorSearch", {"dataset": "docs", "vectors": [[1, 0]], "k": 1, **request})


def fill(wire: Wire, what: str) -> None:
    for number in range(4):
        if what == "datasets":
            wire.put(rows(1), f"dataset {number}")
        else:
            wire.act("CreateNamespace", {"name": f"n{number}"}, meta=True)


NULLS = pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])  # no bytes at all
NEST = b"[" * 7 + b"]" * 7
REFUSED: dict[str, tuple[Callable[[Wire], object], str]] = {
    "action_bytes": (lambda w: w.act("check_readiness", {"x": "y" * 4000}), "action body has 4009 bytes.*4000"),
    "ticket_bytes": (lambda w: w.get(b'{"name":"' + b"x" * 1000), "ticket has 1009 bytes.*1000"),
    "json_depth of an action": (lambda w: w.act("delete", NEST), "action body is JSON nested 7 deep.*limit of 6"),
    "json_depth of a ticket": (lambda w: w.get(b'{"name":' + NEST), "ticket is JSON nested 8 deep.*limit of 6"),
    "json_depth beyond the parser's": (lambda w: w.act("delete", b"[" * 3999), "nested 3999 deep"),
    "filters of a scan": (
        lambda w: w.get(json.dumps({"name": "docs", "filters": [{"field": "id"}] * 4}).encode()),
        "4 filters.*limit of 3",
    ),
    "filters of a search": (search(filters=[{"field": "id"}] * 4), "4 filters.*limit of 3"),
    "filters of a listing": (
        lambda w: list(w.meta.list_flights(json.dumps({"filters": [{"field": "name"}] * 4}).encode())),
        "4 filters.*limit of 3",
    ),
    "k": (search(k=51), "k is 51, over the limit of 50"),
    "k in a ticket": (
        lambda w: w.get(json.dumps({"search": {"dataset": "docs", "vector": [1, 0], "k": 51}}).encode()),
        "k is 51, over the limit of 50",
    ),
    "queries": (search(vectors=[[1, 0]] * 5), "5 query vectors, over the limit of 4"),
    "distances": (search(vectors=[[1, 0]] * 4), "4 query vectors over 10 rows are 40 distances.*limit of 30"),
    "hits": (search(vectors=[[1, 0]] * 3, k=10), "3 query vectors with k 10 are 30 hits.*limit of 20"),
    "dimension of a query": (search(vectors=[[1] * 9]), "9 elements, over the limit of 8"),
    "dimension of a put": (lambda w: w.put(rows(1, 9), "other"), "dimension 9, over the limit of 8"),
    "name_bytes of a put": (lambda w: w.put(rows(1), "x" * 21), "21 bytes, over the limit of 20"),
    "name_bytes of an exchange": (lambda w: w.exchange(rows(1), "ingest", "x" * 21), "21 bytes.*limit of 20"),
    "name_bytes of a scan": (lambda w: w.get(b"x" * 21), "21 bytes, over the limit of 20"),
    "name_bytes of an info": (
        lambda w: w.meta.get_flight_info(flight.FlightDescriptor.for_path("x" * 21)),
        "21 bytes, over the limit of 20",
    ),
    "name_bytes of a namespace": (lambda w: w.act("CreateNamespace", {"name": "x" * 21}, meta=True), "limit of 20"),
    "name_bytes of a column": (lambda w: w.put(rows(1, **{"x" * 21: [1]})), "a column has 21 characters.*limit of 20"),
    "a name that is no text": (lambda w: w.get(b"\xff"), "not valid UTF-8"),
    "path_elements": (lambda w: w.put(rows(1), "docs", "a", "b", "c"), "path has 4 elements.*limit of 3"),
    "datasets": (lambda w: fill(w, "datasets"), "dataset 4, over the limit of 3"),
    "namespaces": (lambda w: fill(w, "namespaces"), "namespace 4, over the limit of 3"),
    "columns of a put": (lambda w: w.put(rows(1, a=[1], b=[1], c=[1])), "5 columns, over the limit of 4"),
    "columns of a dataset": (
        lambda w: [w.put(rows(1, **{name: [1]})) for name in "abc"],
        "'docs' would have 5 columns, over the limit of 4",
    ),
    "schema_bytes": (
        lambda w: w.put(rows(1).replace_schema_metadata({"note": "x" * 3000})),
        "schema has .* bytes, over the limit of 2000",
    ),
    "batch_rows": (lambda w: w.put(rows(31)), "31 rows, over the limit of 30"),
    "batch_rows without bytes": (
        lambda w: w.put(pa.table({"n": NULLS}), "nulls"),
        "2147483647 rows, over the limit of 30",
    ),
    "batch_bytes": (lambda w: w.put(rows(3, note=["x" * 1000] * 3)), "bytes, over the limit of 2000"),
    "columns of a ticket": (lambda w: w.get(b'{"name":"docs","columns":7}'), "columns is no list of names"),
    "numbers beyond float": (search(vectors=[[10**400, 0]]), "invalid query vector"),
    "vectors without elements": (search(vectors=[[]]), "invalid query vector"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_limit_is_refused_by_name_and_the_server_goes_on(wire: Wire, case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(pa.ArrowInvalid, match=message):
        call(wire)
    assert wire.get(b"docs").num_rows >= 10


def test_every_limit_has_a_case() -> None:
    for field in dataclasses.fields(Limits):
        assert any(case.startswith(field.name) for case in REFUSED), field.name


def test_just_below_the_limits_all_goes_well(wire: Wire) -> None:
    wire.put(rows(30), "x" * 20)
    wire.put(rows(1, 8, a=[1], b=[1]), "wide")
    assert len(wire.act("VectorSearch", {"dataset": "docs", "vectors": [[1, 0]] * 2, "k": 10})) == 2
    assert len(wire.act("VectorSearch", {"dataset": "docs", "vectors": [[1, 0]], "k": 50})) == 1
    assert wire.act("check_readiness", {"dataset": "[[[[{{{{"})  # brackets in a text are no nesting


def test_a_client_sees_a_limit_as_a_refusal_for_good(tmp_path: Path) -> None:
    with (
        LongbowServer(tmp_path / "rows", limits=SMALL) as server,
        LongbowClient(LongbowSettings(server.address.data, server.address.meta)) as client,
        pytest.raises(LongbowRejected, match=r"31 rows, over the limit of 30 of this server; send less at once"),
    ):
        client.put("docs", rows(31))


def test_the_defaults_let_the_largest_put_and_a_search_to_the_end_of_the_index_pass(tmp_path: Path) -> None:
    with (
        LongbowServer(tmp_path / "rows") as server,
        LongbowClient(LongbowSettings(server.address.data, server.address.meta)) as client,
    ):
        client.put("docs", rows(49_999, 160))
        ((hits),) = client.search("docs", np.zeros((1, 160), np.float32), 1_000_000)
        assert hits.num_rows == 49_999


def test_an_answer_over_the_clients_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LongbowServer(tmp_path / "rows") as server:
        settings = LongbowSettings(server.address.data, server.address.meta)
        with LongbowClient(settings) as client:
            client.put("docs", rows(5000))
        monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 10_000)
        with LongbowClient(settings) as client:
            for _ in range(6):
                with pytest.raises(LongbowUnavailable, match="fewer rows"):
                    client.scan("docs")
                with pytest.raises(LongbowUnavailable, match="fewer rows"):
                    client.search("docs", [[1, 0]], 5000)
            assert client.breaker.state == "closed"  # the server is alive


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=300)
@example([{"}": []}], 2, False)  # what closes nothing
@example(["[[["], 1, False)
@given(JSON, st.integers(0, 5), st.booleans())
def test_json_is_taken_exactly_when_it_is_no_deeper_than_the_limit(value: object, limit: int, ascii_only: bool) -> None:
    limits, body = Limits(json_depth=limit), json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if depth(value) > limit:
        with pytest.raises(pa.ArrowInvalid, match=f"nested {depth(value)} deep"):
            limits.parse_json(body, "action body", 10**6)
    else:
        assert limits.parse_json(body, "action body", 10**6) == value


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_are_refused_by_arrows_own_error(body: bytes) -> None:
    try:
        Limits().parse_json(body, "ticket", 10**6)
    except pa.ArrowInvalid:
        return
    json.loads(body)

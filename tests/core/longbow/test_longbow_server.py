"""The embedded server against a bare Flight client: the rules of Longbow's protocol, seen from outside."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from fletcher_core.errors import LongbowError
from fletcher_core.longbow.server import Faults, LongbowServer

EXTENSIONS = {"vector_types", "vector_type", "scan_columns"}  # of check_readiness, beyond Longbow's own keys
FLOATS = pa.list_(pa.field("item", pa.float32()), 2)


class Wire:
    """Both ports of a server, spoken to with nothing but pyarrow."""

    def __init__(self, server: LongbowServer) -> None:
        self.data = flight.FlightClient(f"grpc://{server.address.data}")
        self.meta = flight.FlightClient(f"grpc://{server.address.meta}")

    def put(self, name: str, *tables: pa.Table, path: tuple[str, ...] | None = None) -> list[bytes]:
        """Put the tables as messages of one stream; what the server said meanwhile."""
        descriptor = flight.FlightDescriptor.for_path(*(path or (name,)))
        options = flight.FlightCallOptions(timeout=5)
        writer, reader = self.data.do_put(descriptor, tables[0].schema, options)
        said = []
        try:
            for table in tables:
                writer.write_table(table)
            writer.done_writing()
            while (message := reader.read()) is not None:
                said.append(message.to_pybytes())
        finally:
            writer.close()
        return said

    def scan(self, name: str, *filters: tuple[str, str, str], port: str = "data") -> pa.Table:
        conditions = [{"field": f, "operator": o, "value": v} for f, o, v in filters]
        return self.get({"name": name, "filters": conditions}, port=port)

    def get(self, ticket: object, port: str = "data") -> pa.Table:
        text = ticket if isinstance(ticket, bytes) else json.dumps(ticket).encode()
        return getattr(self, port).do_get(flight.Ticket(text)).read_all()

    def act(self, name: str, body: object = None, port: str = "data") -> list[bytes]:
        text = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return [result.body.to_pybytes() for result in getattr(self, port).do_action((name, text))]

    def search(self, name: str, vector: list[float], k: int, **more: object) -> list[tuple[int, float]]:
        (body,) = self.act("VectorSearch", {"dataset": name, "vector": vector, "k": k, **more})
        table = pa.ipc.open_stream(body).read_all()
        return list(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))

    def ready(self, name: str | None = None) -> dict[str, object]:
        (body,) = self.act("check_readiness", None if name is None else {"dataset": name})
        answer = json.loads(body)
        return {key: value for key, value in answer.items() if key not in EXTENSIONS}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LongbowServer]:
    with LongbowServer(tmp_path / "rows") as running:
        yield running


@pytest.fixture
def wire(server: LongbowServer) -> Wire:
    return Wire(server)


def rows(ids: list[int], *, id_type: pa.DataType | None = None, **columns: object) -> pa.Table:
    """Row i has the vector (cos i, sin i)."""
    vectors = [[float(np.cos(i)), float(np.sin(i))] for i in ids]
    values = [str(i) for i in ids] if id_type == pa.string() else ids
    return pa.table({"id": pa.array(values, id_type or pa.uint64()), "vector": pa.array(vectors, FLOATS), **columns})


def vectors_of(kind: pa.DataType, values: list[list[float]]) -> pa.Table:
    ids = pa.array(range(len(values)), pa.uint64())
    if kind.value_type == pa.float16():
        flat = pa.array(np.array(values, np.float16).ravel())
        return pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, kind.list_size)})
    return pa.table({"id": ids, "vector": pa.array(values, kind)})


def test_a_successful_put_says_nothing_and_its_rows_are_there(wire: Wire) -> None:
    assert wire.put("docs", rows([1, 2, 3])) == []
    assert wire.scan("docs")["id"].to_pylist() == [1, 2, 3]
    assert wire.scan("docs", port="meta")["id"].to_pylist() == [1, 2, 3]


def test_putting_an_id_again_adds_a_copy(wire: Wire) -> None:
    wire.put("docs", rows([1, 2]))
    wire.put("docs", rows([2]))
    assert sorted(wire.scan("docs")["id"].to_pylist()) == [1, 2, 2]
    assert [row for row, _ in wire.search("docs", [1.0, 0.0], 9)].count(2) == 2


def test_only_the_first_path_element_names_the_dataset(wire: Wire) -> None:
    wire.put("", rows([1]), path=("space", "ignored"))
    assert wire.scan("space").num_rows == 1
    with pytest.raises(KeyError):
        wire.scan("ignored")


def test_any_text_is_a_dataset_name(wire: Wire) -> None:
    for name in ("", "a/b", "Ümläut '; DROP TABLE batches", "../x", "/etc", "..", "a\\b", "x" * 1000, "日本語", "a\nb"):
        wire.put(name, rows([1]))
        assert wire.scan(name).num_rows == 1


def test_a_put_without_a_path_is_an_internal_error(wire: Wire) -> None:
    writer, _ = wire.data.do_put(flight.FlightDescriptor.for_command(b"x"), rows([1]).schema)
    with pytest.raises(flight.FlightInternalError):
        writer.close()


def test_many_small_messages_become_one_stored_batch(wire: Wire) -> None:
    wire.put("docs", *[rows([i]) for i in range(20)])
    info = wire.meta.get_flight_info(flight.FlightDescriptor.for_path("docs"))
    assert info.total_records == 1


def test_a_put_over_the_flush_limit_becomes_several_stored_batches(wire: Wire) -> None:
    table = pa.table({"id": pa.array(np.arange(30_000, dtype=np.uint64))})
    wire.put("docs", table, table, table)
    info = wire.meta.get_flight_info(flight.FlightDescriptor.for_path("docs"))
    assert info.total_records == 2
    assert wire.scan("docs").num_rows == 90_000


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(vectors_of(pa.list_(pa.float32(), 3), [[1, 2, 3]]), id="dimension"),
        pytest.param(vectors_of(pa.list_(pa.float64(), 2), [[1, 2]]), id="element type"),
        pytest.param(vectors_of(pa.list_(pa.field("item", pa.float32(), False), 2), [[1, 2]]), id="nullability"),
        pytest.param(rows([1], id_type=pa.int64()), id="id type"),
    ],
)
def test_a_column_that_changes_its_type_is_refused(wire: Wire, other: pa.Table) -> None:
    wire.put("docs", rows([1]))
    with pytest.raises(pa.ArrowInvalid, match="schema mismatch"):
        wire.put("docs", other)
    assert wire.scan("docs").num_rows == 1


def test_the_name_of_the_list_child_does_not_matter(wire: Wire) -> None:
    wire.put("docs", rows([1]))
    wire.put("docs", vectors_of(pa.list_(pa.field("element", pa.float32()), 2), [[1, 0]]))
    assert wire.scan("docs").num_rows == 2
    assert wire.ready("docs")["index_len"] == 2


def test_scans_show_the_columns_of_the_first_stored_batch(wire: Wire) -> None:
    wire.put("docs", rows([1], note=["a"]))
    wire.put("docs", rows([2], later=[5]))
    table = wire.scan("docs")
    assert table.column_names == ["id", "vector", "note"]
    assert table["note"].to_pylist() == ["a", None]
    with pytest.raises(pa.ArrowInvalid, match="schema mismatch"):
        wire.put("docs", rows([3], later=["text"]))


def test_schema_metadata_of_the_first_put_comes_back(wire: Wire) -> None:
    wire.put("docs", rows([1]).replace_schema_metadata({"owner": "me"}))
    wire.put("docs", rows([2]))
    assert wire.scan("docs").schema.metadata == {b"owner": b"me"}


def test_a_put_without_rows_makes_an_empty_dataset(wire: Wire) -> None:
    writer, _ = wire.data.do_put(flight.FlightDescriptor.for_path("docs"), rows([1]).schema)
    writer.close()
    assert wire.scan("docs").num_rows == 0
    assert wire.ready("docs") == {"status": "READY", "index_len": 0}


def test_readiness_of_server_dataset_and_stranger(wire: Wire) -> None:
    wire.put("docs", rows([1, 2]))
    assert wire.ready() == {"status": "READY"}
    assert wire.ready("docs") == {"status": "READY", "index_len": 2}
    assert wire.ready("stranger")["status"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (("note", "=", "b"), [2]),
        (("note", "!=", "b"), [1, 4]),
        (("rank", ">", "10"), [2, 3, 4]),
        (("rank", "le", "20"), [1, 2]),
        (("weight", "<", "0.25"), [1]),
        (("note", "~", "b"), []),
        (("stranger", "=", "b"), []),
        (("id", "=", "1"), []),
        (("rank", "=", "many"), []),
    ],
)
def test_filters_of_a_scan(wire: Wire, condition: tuple[str, str, str], expected: list[int]) -> None:
    more = {"note": ["a", "b", None, "d"], "rank": [10, 20, 30, 40], "weight": [0.125, 0.25, 0.5, 1.0]}
    wire.put("docs", rows([1, 2, 3, 4], **more))
    assert wire.scan("docs", condition)["id"].to_pylist() == expected


def test_filters_are_joined_by_and_and_unknown_columns_beside_known_ones_are_passed_over(wire: Wire) -> None:
    wire.put("docs", rows([1, 2, 3], note=["a", "a", "b"], rank=[1, 2, 3]))
    found = wire.scan("docs", ("note", "=", "a"), ("rank", ">", "1"), ("stranger", "=", "x"))
    assert found["id"].to_pylist() == [2]


@pytest.mark.parametrize("ticket", [b'{"name":', b'{"nam":"docs"}', b'{"name":"docs","filters":"all"}'])
def test_a_malformed_ticket_is_refused(wire: Wire, ticket: bytes) -> None:
    wire.put("docs", rows([1]))
    with pytest.raises(pa.ArrowInvalid, match="invalid ticket format"):
        wire.get(ticket)


def test_a_delete_hides_the_newest_copy_from_unfiltered_scans_only(wire: Wire) -> None:
    wire.put("docs", rows([1, 2], note=["old", "x"]))
    wire.put("docs", rows([1, 3], note=["new", "x"]))
    assert wire.act("delete", {"dataset": "docs", "id": "1"}) == [b"deleted"]
    assert wire.act("Delete", {"dataset": "docs", "id": "1"}, port="meta") == [b"deleted"]
    assert sorted(wire.scan("docs")["note"].to_pylist()) == ["old", "x", "x"]
    assert wire.scan("docs", ("note", "=", "new"))["id"].to_pylist() == [1]
    assert len(wire.search("docs", [1.0, 0.0], 9)) == 4


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"dataset": "docs", "id": "9"}, KeyError),
        ({"dataset": "stranger", "id": "1"}, KeyError),
        ({"dataset": "docs", "id": "one"}, KeyError),
        ({"dataset": "docs", "id": 1}, pa.ArrowInvalid),
        (b"{", pa.ArrowInvalid),
    ],
)
def test_deletes_that_fail(wire: Wire, body: object, error: type[Exception]) -> None:
    wire.put("docs", rows([1]))
    with pytest.raises(error):
        wire.act("delete", body)


@pytest.mark.parametrize(
    ("id_type", "shown", "deletable"),
    [
        (pa.uint64(), 2**32 + 5, True),
        (pa.int64(), 2**32 + 5, True),
        (pa.string(), 2**32 + 5, True),
        (pa.uint32(), 5, False),
        (pa.int32(), 5, False),
    ],
)
def test_ids_show_modulo_2_to_the_32_and_some_types_cannot_be_deleted(
    wire: Wire, id_type: pa.DataType, shown: int, deletable: bool
) -> None:
    wire.put("docs", rows([shown], id_type=id_type))
    assert [row for row, _ in wire.search("docs", [1.0, 0.0], 1)] == [5]
    request = {"dataset": "docs", "id": str(shown)}
    if deletable:
        assert wire.act("delete", request) == [b"deleted"]
    else:
        with pytest.raises(KeyError):
            wire.act("delete", request)


def test_without_a_usable_id_a_hit_shows_its_place_in_the_index(wire: Wire) -> None:
    wire.put("docs", rows([7, 8]).drop_columns("id"))
    wire.put("docs", rows([9]).drop_columns("id"))
    assert sorted(row for row, _ in wire.search("docs", [1.0, 0.0], 9)) == [0, 1, 2]
    assert wire.act("delete-vector", {"dataset": "docs", "vector_id": 2}) == [b"deleted"]
    assert wire.scan("docs").num_rows == 2


def test_search_is_exact_and_scores_are_one_over_one_plus_the_distance(wire: Wire) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal((5000, 16)).astype(np.float32)
    half = pa.FixedSizeListArray.from_arrays(pa.array(values[:2500].ravel()), 16)
    rest = pa.FixedSizeListArray.from_arrays(pa.array(values[2500:].ravel()), 16)
    ids = pa.array(np.arange(5000, dtype=np.uint64))
    wire.put("docs", pa.table({"id": ids[:2500], "vector": half}))
    wire.put("docs", pa.table({"id": ids[2500:], "vector": rest}))
    query = values[4321] + 0.25
    distances = np.linalg.norm(values.astype(np.float64) - query.astype(np.float64), axis=1)
    found = wire.search("docs", query.tolist(), 20)
    assert [row for row, _ in found] == np.argsort(distances)[:20].tolist()
    assert np.allclose([score for _, score in found], 1 / (1 + np.sort(distances)[:20]), atol=1e-6)
    assert wire.search("docs", values[17].tolist(), 1) == [(17, 1.0)]


@pytest.mark.parametrize("element", [pa.float16(), pa.float32(), pa.float64(), pa.int8()])
def test_every_element_type_is_stored_and_searchable(wire: Wire, element: pa.DataType) -> None:
    wire.put("docs", vectors_of(pa.list_(element, 2), [[1, 0], [0, 1], [3, 4]]))
    assert [row for row, _ in wire.search("docs", [3.0, 4.0], 2)] == [2, 1]
    assert wire.scan("docs")["vector"].to_pylist() == [[1, 0], [0, 1], [3, 4]]


def test_what_it_can_do_beyond_longbow_is_said_and_can_be_switched_off(server: LongbowServer, wire: Wire) -> None:
    wire.put("docs", vectors_of(pa.list_(pa.float16(), 2), [[1, 0], [0, 1]]))
    ticket = {"name": "docs", "columns": ["id", "unknown"]}

    def said() -> dict[str, object]:
        (body,) = wire.act("check_readiness", {"dataset": "docs"})
        return json.loads(body)

    assert {key: said()[key] for key in EXTENSIONS} == {
        "vector_types": ["float32", "float16"],
        "vector_type": "float16",
        "scan_columns": True,
    }
    assert said()["index_len"] == 2
    assert wire.get(ticket).to_pydict() == {"id": [0, 1]}
    assert wire.get({**ticket, "name": "docs", "filters": [{"field": "nothing", "operator": "=", "value": "x"}]}) == (
        pa.table({"id": pa.array([], pa.uint64())})
    )
    server.faults = Faults(no_extensions=True)
    assert said() == {"status": "READY", "index_len": 0}
    assert wire.search("docs", [1.0, 0.0], 2) == []
    with pytest.raises(pa.ArrowInvalid, match="invalid ticket format"):
        wire.get(ticket)


def test_a_nan_vector_comes_first_and_a_null_vector_counts_as_zeros(wire: Wire) -> None:
    values = pa.array([[1.0, 0.0], [float("nan"), 0.0], None], FLOATS)
    wire.put("docs", pa.table({"id": pa.array([1, 2, 3], pa.uint64()), "vector": values}))
    found = wire.search("docs", [1.0, 0.0], 9)
    assert [row for row, _ in found] == [2, 1, 3]
    assert np.isnan(found[0][1])
    assert found[1:] == [(1, 1.0), (3, 0.5)]


def test_lists_of_no_fixed_size_and_embedding_columns_give_no_hits(wire: Wire) -> None:
    wire.put("lists", pa.table({"id": [1], "vector": pa.array([[1.0, 0.0]], pa.list_(pa.float32()))}))
    wire.put("named", pa.table({"id": [1], "embedding": pa.array([[1.0, 0.0]], FLOATS)}))
    assert wire.search("lists", [1.0, 0.0], 1) == []
    assert wire.search("named", [1.0, 0.0], 1) == []


def test_searches_that_fail(wire: Wire) -> None:
    wire.put("docs", rows([1]))
    wire.put("bare", pa.table({"id": [1]}))
    with pytest.raises(KeyError):
        wire.search("stranger", [1.0, 0.0], 1)
    with pytest.raises(pa.ArrowInvalid, match="expected 2"):
        wire.search("docs", [1.0], 1)
    for vector, k in (([1.0, 0.0], 0), ([], 1)):
        with pytest.raises(pa.ArrowInvalid):
            wire.search("docs", vector, k)
    with pytest.raises(pa.ArrowInvalid, match="precondition failed"):
        wire.search("bare", [1.0], 1)
    with pytest.raises(flight.FlightInternalError):
        wire.search("docs", [1.0, 0.0], 1, filters=[{"field": "stranger", "operator": "=", "value": "x"}])


def test_one_result_for_each_of_several_queries(wire: Wire) -> None:
    wire.put("docs", rows([0, 1]))
    bodies = wire.act("VectorSearch", {"dataset": "docs", "vectors": [[1, 0], [0, 1]], "k": 1, "odd": 1}, port="meta")
    assert [pa.ipc.open_stream(body).read_all()["id"].to_pylist() for body in bodies] == [[0], [1]]


def test_a_search_ticket_is_answered_from_the_cache_and_the_action_is_not(wire: Wire) -> None:
    ticket = {"search": {"dataset": "docs", "vector": [1.0, 0.0], "k": 9}}
    wire.put("docs", rows([1]))
    assert wire.get(ticket)["id"].to_pylist() == [1]
    wire.put("docs", rows([2]))
    assert wire.get(ticket)["id"].to_pylist() == [1]
    assert len(wire.search("docs", [1.0, 0.0], 9)) == 2
    with pytest.raises(pa.ArrowInvalid, match="invalid ticket format"):
        wire.get({"search": {**ticket["search"], "odd": 1}})


def test_a_filtered_search_never_sees_rows_later_than_its_first_use(wire: Wire) -> None:
    same = [{"field": "note", "operator": "=", "value": "a"}]
    wire.put("docs", rows([1, 2], note=["a", "b"]))
    assert [row for row, _ in wire.search("docs", [1.0, 0.0], 9, filters=same)] == [1]
    wire.put("docs", rows([3], note=["a"]))
    assert [row for row, _ in wire.search("docs", [1.0, 0.0], 9, filters=same)] == [1]


def test_search_by_id_and_hybrid_search(wire: Wire) -> None:
    wire.put("docs", rows([0, 1, 2]))
    (answer,) = wire.act("VectorSearchByID", {"dataset": "docs", "id": "1", "k": 2})
    assert json.loads(answer)["ids"][0] == 1
    wire.act("delete", {"dataset": "docs", "id": "1"})
    with pytest.raises(KeyError):
        wire.act("VectorSearchByID", {"dataset": "docs", "id": "1", "k": 2})
    (answer,) = wire.act("HybridSearch", {"dataset": "docs", "vector": [1.0, 0.0], "k": 1, "text_query": "x"})
    assert json.loads(answer) == [{"ID": 0, "Distance": 0.0, "Score": 1.0, "Metadata": None, "Vector": None}]


def test_what_each_port_does_not_do(wire: Wire) -> None:
    docs = flight.FlightDescriptor.for_path("docs")
    with pytest.raises(NotImplementedError):
        list(wire.data.list_flights())
    with pytest.raises(NotImplementedError):
        wire.data.get_flight_info(docs)
    with pytest.raises(NotImplementedError):
        wire.meta.do_put(docs, rows([1]).schema)[0].close()
    for port in (wire.data, wire.meta):
        with pytest.raises(NotImplementedError):
            port.list_actions()
        with pytest.raises(NotImplementedError):
            list(port.do_action(("no-such-action", b"")))
        with pytest.raises(pa.ArrowInvalid):
            port.get_schema(docs).schema  # noqa: B018


def test_listings(wire: Wire) -> None:
    wire.put("docs", rows([1, 2]))
    wire.put("other", rows([1]))
    names = [info.descriptor.path[0] for info in wire.meta.list_flights()]
    assert names == [b"docs", b"other"]
    criteria = b'{"filters": [{"field": "name", "operator": "contains", "value": "oc"}]}'
    assert [info.descriptor.path[0] for info in wire.meta.list_flights(criteria)] == [b"docs"]
    criteria = b'{"filters": [{"field": "rows", "operator": ">", "value": "1"}]}'
    assert [info.descriptor.path[0] for info in wire.meta.list_flights(criteria)] == [b"docs"]
    with pytest.raises(KeyError):
        wire.meta.get_flight_info(flight.FlightDescriptor.for_path("stranger"))
    with pytest.raises(pa.ArrowInvalid):
        wire.meta.get_flight_info(flight.FlightDescriptor.for_command(b"x"))


def test_datasets_can_be_deleted_and_made_again(wire: Wire) -> None:
    wire.put("docs", rows([1]))
    assert wire.act("delete-dataset", {"dataset": "docs"}, port="meta") == [b"deleted"]
    with pytest.raises(KeyError):
        wire.scan("docs")
    with pytest.raises(KeyError):
        wire.act("delete-dataset", {"dataset": "docs"})
    wire.put("docs", vectors_of(pa.list_(pa.float32(), 3), [[1, 2, 3]]))
    assert wire.act("DeleteNamespace", {"dataset": "docs"}) == [b"deleted"]


def test_namespaces_live_on_the_meta_port_and_hold_nothing(wire: Wire) -> None:
    wire.act("CreateNamespace", {"name": "team"}, port="meta")
    wire.put("team/docs", rows([1]))
    assert json.loads(wire.act("ListNamespaces", port="meta")[0]) == {"namespaces": ["default", "team"]}
    assert json.loads(wire.act("GetTotalNamespaceCount", port="meta")[0]) == {"count": 2}
    assert json.loads(wire.act("GetNamespaceDatasetCount", {"name": "team"}, port="meta")[0]) == {"count": 0}
    for action, name in (("CreateNamespace", "team"), ("DeleteNamespace", "default"), ("DeleteNamespace", "x")):
        with pytest.raises(flight.FlightInternalError):
            wire.act(action, {"name": name}, port="meta")
    wire.act("DeleteNamespace", {"name": "team"}, port="meta")
    with pytest.raises(NotImplementedError):
        wire.act("ListNamespaces")
    with pytest.raises(flight.FlightUnavailableError):
        wire.act("cluster-status")


def test_an_exchange_acknowledges_each_batch(wire: Wire) -> None:
    descriptor = flight.FlightDescriptor.for_path("ingest", "docs")
    writer, reader = wire.data.do_exchange(descriptor)
    with writer:
        writer.begin(rows([1]).schema)
        said = []
        for ids in ([1, 2], [3]):
            writer.write_table(rows(ids))
            said.append(json.loads(reader.read_chunk().app_metadata.to_pybytes()))
        writer.done_writing()
    assert said == [
        {"batch_id": 0, "rows": 2, "status": "acked"},
        {"batch_id": 1, "rows": 1, "status": "acked"},
    ]
    assert wire.scan("docs")["id"].to_pylist() == [1, 2, 3]


def test_rows_schemas_and_deletes_survive_a_restart(tmp_path: Path) -> None:
    with LongbowServer(tmp_path) as first:
        wire = Wire(first)
        wire.put("docs", rows([1, 2], note=["a", "b"]))
        wire.put("docs", rows([3], more=[1]))
        wire.put("gone", rows([1]))
        wire.act("delete", {"dataset": "docs", "id": "2"})
        wire.act("delete-dataset", {"dataset": "gone"})
    with LongbowServer(tmp_path) as second:
        wire = Wire(second)
        assert wire.scan("docs")["note"].to_pylist() == ["a", None]
        assert wire.ready("docs") == {"status": "READY", "index_len": 3}
        assert wire.search("docs", [float(np.cos(3)), float(np.sin(3))], 1)[0][0] == 3
        with pytest.raises(pa.ArrowInvalid, match="schema mismatch"):
            wire.put("docs", rows([4], more=["text"]))
        with pytest.raises(KeyError):
            wire.scan("gone")
    assert len(list((tmp_path / "batches").iterdir())) == 2


def test_a_file_that_a_killed_server_left_without_a_catalog_entry_is_swept(tmp_path: Path) -> None:
    with LongbowServer(tmp_path) as first:
        Wire(first).put("docs", rows([1]))
    (tmp_path / "batches" / "0000000099.arrow").write_bytes(b"half a file")
    with LongbowServer(tmp_path) as second:
        assert Wire(second).scan("docs").num_rows == 1
    assert len(list((tmp_path / "batches").iterdir())) == 1


def test_a_folder_belongs_to_one_server_and_a_port_to_one(tmp_path: Path) -> None:
    with LongbowServer(tmp_path / "a") as first:
        with pytest.raises(LongbowError, match="belongs to an embedded Longbow server that is running"):
            LongbowServer(tmp_path / "a")
        with pytest.raises(LongbowError, match="cannot listen"):
            LongbowServer(tmp_path / "b", data_port=int(first.address.data.rpartition(":")[2]))
    LongbowServer(tmp_path / "a").close()


def test_a_damaged_catalog_is_named(tmp_path: Path) -> None:
    (tmp_path / "catalog.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(LongbowError, match=r"catalog\.duckdb cannot be opened"):
        LongbowServer(tmp_path)


def test_fault_slow_down(server: LongbowServer, wire: Wire) -> None:
    server.faults = Faults(slow_down=True)
    assert wire.put("docs", rows([1])) == [b'{"status": "slow_down", "reason": "wal_pressure"}']
    assert wire.scan("docs").num_rows == 1


def test_fault_stall_lasts_until_the_deadline_and_stores_nothing(server: LongbowServer, wire: Wire) -> None:
    server.faults = Faults(stall_before_flush=True)
    options = flight.FlightCallOptions(timeout=0.2)
    writer, _ = wire.data.do_put(flight.FlightDescriptor.for_path("docs"), rows([1]).schema, options)
    writer.write_table(rows([1]))
    with pytest.raises(flight.FlightTimedOutError):
        writer.close()
    server.faults = Faults()
    assert wire.scan("docs").num_rows == 0


@pytest.mark.parametrize(
    ("faults", "error", "kept"),
    [
        (Faults(unavailable_mid_stream=0), flight.FlightUnavailableError, 0),
        (Faults(unavailable_mid_stream=2), flight.FlightUnavailableError, 2),
        (Faults(resource_exhausted=True), pa.ArrowInvalid, 0),
    ],
)
def test_faults_that_fail_a_put(
    server: LongbowServer, wire: Wire, faults: Faults, error: type[Exception], kept: int
) -> None:
    wire.put("docs", rows([9]))
    server.faults = faults
    with pytest.raises(error):
        wire.put("docs", rows([1, 2, 3]))
    assert wire.scan("docs").num_rows == 1 + kept


def test_fault_drop_after_ok_hides_rows_until_a_restart(tmp_path: Path) -> None:
    with LongbowServer(tmp_path, faults=Faults(drop_after_ok=True)) as first:
        wire = Wire(first)
        wire.put("docs", rows([1]))
        assert wire.scan("docs").num_rows == 0
        assert wire.ready("docs")["index_len"] == 0
    with LongbowServer(tmp_path) as second:
        assert Wire(second).scan("docs").num_rows == 1


def test_fault_lose_last_puts(tmp_path: Path) -> None:
    with LongbowServer(tmp_path) as first:
        for number in range(5):
            Wire(first).put("docs", rows([number]))
    with LongbowServer(tmp_path, faults=Faults(lose_last_puts=2)) as second:
        assert Wire(second).scan("docs")["id"].to_pylist() == [0, 1, 2]
        assert Wire(second).ready("docs")["index_len"] == 3


def test_fault_resurrect_deletes(tmp_path: Path) -> None:
    with LongbowServer(tmp_path) as first:
        Wire(first).put("docs", rows([1, 2]))
        Wire(first).act("delete", {"dataset": "docs", "id": "1"})
    with LongbowServer(tmp_path, faults=Faults(resurrect_deletes=True)) as second:
        wire = Wire(second)
        assert wire.scan("docs").num_rows == 2
        with pytest.raises(KeyError):
            wire.act("delete", {"dataset": "docs", "id": "1"})
        wire.put("docs", rows([1]))
        assert wire.act("delete", {"dataset": "docs", "id": "1"}) == [b"deleted"]
    with LongbowServer(tmp_path) as third:
        assert Wire(third).scan("docs").num_rows == 3


def test_faults_of_the_index(server: LongbowServer, wire: Wire) -> None:
    server.faults = Faults(index_stall=True)
    wire.put("docs", rows([1]))
    assert wire.ready("docs") == {"status": "BUSY", "reason": "index queue is not empty", "index_len": 0}
    assert wire.ready()["status"] == "BUSY"
    assert wire.search("docs", [1.0, 0.0], 9) == []
    assert wire.scan("docs").num_rows == 1
    server.faults = Faults(index_delay=3600)
    assert wire.ready("docs") == {"status": "READY", "index_len": 1}
    wire.put("docs", rows([2]))
    assert wire.ready("docs") == {"status": "BUSY", "reason": "index queue is not empty", "index_len": 1}


def test_fault_index_collapse(server: LongbowServer, wire: Wire) -> None:
    server.faults = Faults(index_collapse=True)
    wire.put("docs", rows(list(range(10_000))))
    assert wire.ready("docs") == {"status": "READY", "index_len": 10_000}
    wire.put("docs", rows([10_000]))
    assert wire.ready("docs") == {"status": "READY", "index_len": 1001}


def test_fault_wholly_deleted_batch_breaks_scan(server: LongbowServer, wire: Wire) -> None:
    wire.put("docs", rows([1], note=["a"]))
    wire.put("docs", rows([2, 3], note=["a", "a"]))
    wire.act("delete", {"dataset": "docs", "id": "2"})
    server.faults = Faults(wholly_deleted_batch_breaks_scan=True)
    assert wire.scan("docs").num_rows == 2
    wire.act("delete", {"dataset": "docs", "id": "1"})
    with pytest.raises(flight.FlightInternalError, match="index out of range"):
        wire.scan("docs")
    assert wire.scan("docs", ("note", "=", "a")).num_rows == 3


def test_faults_can_be_set_by_action(server: LongbowServer, wire: Wire) -> None:
    wire.act("fault", {"slow_down": True, "index_delay": 0.5})
    assert server.faults == Faults(slow_down=True, index_delay=0.5)
    wire.act("fault")
    assert server.faults == Faults()
    with pytest.raises(pa.ArrowInvalid, match="unknown fault 'melt'"):
        wire.act("fault", {"melt": True})

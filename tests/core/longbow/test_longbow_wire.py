"""Rows as they travel: one schema a dataset whatever the values, and nothing lost on the way."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.longbow.wire import BLOCK_ROWS, blocks, split_table, wire_schema, wire_table, wire_type
from fletcher_core.store.schema import segment_schema

UTC = datetime.UTC
# A metadata type as a source may have it, its type on the wire, and values for it.
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]
TEXT = st.text(max_size=20)
KINDS: list[tuple[pa.DataType, pa.DataType, st.SearchStrategy[object]]] = [
    *[(kind, pa.int64(), st.integers(0, 100)) for kind in INTEGERS],
    (pa.int64(), pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), pa.string(), st.integers(0, 2**64 - 1)),
    (pa.float16(), pa.float64(), st.floats(width=16, allow_nan=False).map(np.float16)),
    (pa.float32(), pa.float64(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), pa.float64(), st.floats(allow_nan=False)),
    (pa.string(), pa.string(), TEXT),
    (pa.large_string(), pa.string(), TEXT),
    (pa.string_view(), pa.string(), TEXT),
    (pa.dictionary(pa.int32(), pa.string()), pa.string(), TEXT),
    (pa.dictionary(pa.int8(), pa.int16()), pa.int64(), st.integers(-5, 5)),
    (pa.bool_(), pa.bool_(), st.booleans()),
    (pa.date32(), pa.date32(), st.dates()),
    (
        pa.timestamp("us"),
        pa.timestamp("us"),
        st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)),
    ),
    (pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.decimal128(20, 4), pa.string(), st.decimals(-1000, 1000, places=4)),
    (pa.binary(), pa.string(), st.binary(max_size=8)),
    (pa.time64("us"), pa.string(), st.times()),
    (pa.duration("s"), pa.string(), st.timedeltas(max_value=datetime.timedelta(9)).map(lambda t: t // 10**6 * 10**6)),
    (pa.list_(pa.int32()), pa.string(), st.lists(st.integers(0, 9), max_size=3)),
    (pa.struct([("a", pa.string())]), pa.string(), st.fixed_dictionaries({"a": TEXT})),
    (pa.null(), pa.string(), st.none()),
]


def segment_rows(metadata: pa.Table, dimension: int = 3, vector_type: str = "float32") -> pa.Table:
    """A segment of upserts with these metadata columns, as the store reads it back."""
    count = metadata.num_rows
    schema = segment_schema(dimension, metadata.schema, vector_type)  # type: ignore[arg-type]
    values = {
        "id": [f"row {n}" for n in range(count)],
        "op": ["upsert"] * count,
        "partition_key": ["day"] * count,
        "fingerprint": ["ab"] * count,
        "sequence": list(range(100, 100 + count)),
        "segment": ["seg-100"] * count,
        "embedded_at": [datetime.datetime(2026, 1, 1, tzinfo=UTC)] * count,
        "vector": list(np.arange(count * dimension, dtype=np.float16 if vector_type == "float16" else np.float32)
                       .reshape(count, dimension)),
    }  # fmt: skip
    columns = [
        metadata[field.name]
        if field.name in metadata.column_names
        else pa.array(values.get(field.name, [None] * count), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def test_the_columns_on_the_wire() -> None:
    rows = segment_rows(pa.table({"note": ["a", "b"]}))
    table = wire_table(rows)
    assert table.schema == wire_schema(pa.schema([("note", pa.string())]), 3)
    assert table.schema.field("vector").type.value_field == pa.field("item", pa.float32(), nullable=True)
    assert table.to_pylist()[1] == {
        "id": 101,
        "vector": [3.0, 4.0, 5.0],
        "key": "row 1",
        "segment": "seg-100",
        "version": 101,
        "partition": "day",
        "note": "b",
    }


def test_deletes_do_not_travel_and_halves_become_floats() -> None:
    rows = segment_rows(pa.table({"note": ["a", "b", "c"]}), vector_type="float16")
    ops = pa.array(["upsert", "delete", "upsert"])
    table = wire_table(rows.set_column(rows.schema.get_field_index("op"), rows.schema.field("op"), ops))
    assert table["key"].to_pylist() == ["row 0", "row 2"]
    assert table["vector"].type.value_type == pa.float32()
    assert table["vector"].to_pylist() == [[0, 1, 2], [6, 7, 8]]
    assert wire_table(rows.slice(0, 0)).schema == table.schema


@pytest.mark.parametrize(("kind", "expected", "values"), KINDS, ids=[str(kind) for kind, _, _ in KINDS])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_metadata_keeps_its_values_and_the_type_follows_from_the_schema(
    kind: pa.DataType, expected: pa.DataType, values: st.SearchStrategy[object], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.none() | values, max_size=5))
    column = pa.array(wanted, kind)
    table = wire_table(segment_rows(pa.table({"extra": column})))
    assert wire_type(kind) == expected == table.schema.field("extra").type
    back = table["extra"].to_pylist()
    assert [value is None for value in back] == [value is None for value in wanted]
    if expected != pa.string():
        assert back == column.to_pylist()
    for text, value in zip(back, wanted, strict=True):
        if expected == pa.string() and value is not None:
            assert reads_as(text, value, kind)


def reads_as(text: str, value: object, kind: pa.DataType) -> bool:
    """Whether the text still says what the value said."""
    if isinstance(value, str):
        return text == value
    if isinstance(value, bytes):
        return bytes.fromhex(text) == value
    if isinstance(value, list | dict):
        return json.loads(text) == value
    if isinstance(value, decimal.Decimal):
        return decimal.Decimal(text) == value
    if isinstance(value, datetime.time):
        return datetime.time.fromisoformat(text) == value
    return text == str(value) or int(text) == getattr(value, "total_seconds", lambda: value)()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_put_is_what_a_scan_reads_back(data: st.DataObject, roundtrip: tuple[LongbowClient, list[int]]) -> None:
    client, counter = roundtrip
    counter.append(1)
    name = f"dataset {len(counter)}"
    count = data.draw(st.integers(1, 4))
    columns = {
        f"column {n}": pa.array(data.draw(st.lists(st.none() | values, min_size=count, max_size=count)), kind)
        for n, (kind, _, values) in enumerate(data.draw(st.lists(st.sampled_from(KINDS), max_size=4)))
    }
    metadata = pa.table(columns) if columns else pa.table({"none": pa.nulls(count)})
    sent = wire_table(segment_rows(metadata))
    client.put(name, sent)
    assert client.scan(name).equals(sent)
    assert client.present_ids(name, "seg-100").tolist() == sent["id"].to_pylist()


@pytest.fixture(scope="module")
def roundtrip(tmp_path_factory: pytest.TempPathFactory) -> object:
    with LongbowServer(tmp_path_factory.mktemp("rows")) as server:
        settings = LongbowSettings(server.address.data, server.address.meta)
        with LongbowClient(settings) as client:
            yield client, []


def test_extension_types_travel_as_what_they_store() -> None:
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16)))
    table = wire_table(segment_rows(pa.table({"u": uuids})))
    assert table["u"].to_pylist() == [b"0123456789abcdef".hex()]


def test_blocks_are_cut_where_the_version_is_a_multiple() -> None:
    versions = np.arange(BLOCK_ROWS - 2, 2 * BLOCK_ROWS + 3)
    table = pa.table({"version": versions})
    assert [block.num_rows for block in blocks(table)] == [2, BLOCK_ROWS, 3]
    assert pa.concat_tables(blocks(table)).equals(table)
    assert list(blocks(table.slice(0, 0))) == []


@given(lengths=st.lists(st.integers(0, 200), max_size=40), max_rows=st.integers(1, 10), max_bytes=st.integers(50, 500))
def test_pieces_keep_every_row_in_order_and_to_the_limits(lengths: list[int], max_rows: int, max_bytes: int) -> None:
    table = pa.table({"text": pa.array(["x" * length for length in lengths], pa.string())})
    pieces = list(split_table(table, max_rows=max_rows, max_bytes=max_bytes))
    assert [text for piece in pieces for text in piece["text"].to_pylist()] == table["text"].to_pylist()
    assert all(piece.num_rows <= max_rows for piece in pieces)
    assert all(piece.nbytes <= max_bytes or piece.num_rows == 1 for piece in pieces)

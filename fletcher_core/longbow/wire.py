"""Rows of a segment as they travel to Longbow: the store's columns in, the columns of the wire out.

The first put to a dataset fixes its columns for ever, so the mapping follows from the store's schema alone, never from
the values of a batch.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.longbow.transport import ELEMENTS, wire_vectors
from fletcher_core.setting_values import Transport
from fletcher_core.store.schema import ROW_FIELDS, STORE_FIELDS, UPSERT

BLOCK_ROWS = 4096
"""Rows of a put at most. Longbow scans a larger stored batch in slices of so many rows, and fails for good on a slice
whose every row is deleted; with one block a put, whoever deletes can always leave one row of each."""

_STORE_COLUMNS = {field.name for field in (*ROW_FIELDS, *STORE_FIELDS)} | {"vector"}
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_AS_THEY_ARE = (pa.types.is_boolean, pa.types.is_date, pa.types.is_timestamp)


def wire_schema(metadata: pa.Schema, dimension: int, transport: Transport = "fp32") -> pa.Schema:
    """The columns on the wire. `id` is the row's sequence: an id of its own for every version of a row."""
    vector = pa.list_(pa.field("item", ELEMENTS[transport], nullable=True), dimension)
    return pa.schema(
        [
            pa.field("id", pa.uint64()),
            pa.field("vector", vector),
            pa.field("key", pa.string()),
            pa.field("segment", pa.string()),
            pa.field("version", pa.int64()),
            pa.field("partition", pa.string()),
            *[pa.field(field.name, wire_type(field.type)) for field in metadata],
        ]
    )


def wire_type(kind: pa.DataType) -> pa.DataType:
    """Integers -> int64, floats -> float64, booleans, dates and timestamps as they are, all others -> utf8.

    Unsigned 64-bit integers go as utf8 too: their upper half does not fit an int64.
    """
    kind = _plain(kind)
    if pa.types.is_integer(kind):
        return pa.string() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    return kind if any(check(kind) for check in _AS_THEY_ARE) else pa.string()


def wire_table(rows: pa.Table, transport: Transport = "fp32") -> pa.Table:
    """The upserts among a segment's rows as a table of `wire_schema`, in their order.

    Vectors that have the transport's type already are not copied. Raises LongbowRejected, naming the row, for a vector
    that does not fit the transport.
    """
    rows = _upserts(rows)
    metadata = pa.schema([field for field in rows.schema if field.name not in _STORE_COLUMNS])
    schema = wire_schema(metadata, rows.schema.field("vector").type.list_size, transport)
    columns: dict[str, Any] = {
        "id": rows["sequence"].cast(pa.uint64()),
        "vector": wire_vectors(rows["vector"], rows["id"], transport),
        "key": rows["id"].cast(pa.string()),
        "segment": rows["segment"].cast(pa.string()),
        "version": rows["sequence"],
        "partition": rows["partition_key"].cast(pa.string()),
    }
    columns |= {field.name: _on_the_wire(rows[field.name]) for field in metadata}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def wire_ids(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """The ids alone of what `wire_table` makes of these rows: uint64 [upserts]."""
    return np.asarray(_upserts(rows.select(["op", "sequence"]))["sequence"].to_numpy(), dtype=np.uint64)


def _upserts(rows: pa.Table) -> pa.Table:
    """Deletes left out; without a copy when there are none."""
    if rows.num_rows and pc.any(pc.not_equal(rows["op"], UPSERT)).as_py():
        return rows.filter(pc.equal(rows["op"], UPSERT))
    return rows


def blocks(table: pa.Table) -> Iterator[pa.Table]:
    """Cut rows, in the order of their versions, where a version is a multiple of BLOCK_ROWS."""
    numbers = table["version"].to_numpy() // BLOCK_ROWS
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(cuts):
        if stop > start:
            yield table.slice(start, stop - start)


def split_table(table: pa.Table, *, max_rows: int, max_bytes: int) -> Iterator[pa.Table]:
    """Cut rows into pieces of at most so many rows and bytes; one row over the bytes is a piece of its own."""
    waiting = [table.slice(start, max_rows) for start in range(0, table.num_rows, max_rows)][::-1]
    while waiting:
        piece = waiting.pop()
        half = piece.num_rows // 2
        if half and piece.nbytes > max_bytes:
            waiting += [piece.slice(half), piece.slice(0, half)]
        else:
            yield piece


def _on_the_wire(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = wire_type(column.type)
    plain = pa.chunked_array([_storage(chunk) for chunk in column.chunks], type=_plain(column.type))
    if kind != pa.string() or any(check(plain.type) for check in _STRINGS):
        return plain.cast(kind)
    return pa.chunked_array([_rendered(chunk) for chunk in plain.chunks], type=pa.string())


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type under extension types and dictionaries."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _storage(array: pa.Array) -> pa.Array:
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        else:
            return array


def _rendered(array: pa.Array) -> pa.Array:
    """Any other type as text: bytes as hex digits, nested values as JSON, the rest as Arrow or Python spells it."""
    if any(check(array.type) for check in _BYTES):
        texts = [None if value is None else value.hex() for value in array.to_pylist()]
    elif pa.types.is_nested(array.type):
        texts = [
            None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in array.to_pylist()
        ]
    elif pa.types.is_null(array.type):
        texts = [None] * len(array)
    else:
        try:
            return array.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            texts = [None if value is None else str(value) for value in array.to_pylist()]
    return pa.array(texts, pa.string())

"""Checks and completes the rows that a segment is written from."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.errors import StoreError
from fletcher_core.store.schema import DELETE, STORE_FIELDS, UPSERT

_STORE_COLUMNS = frozenset(field.name for field in STORE_FIELDS)


def segment_table(
    rows: pa.Table, schema: pa.Schema, *, partition_key: str, fingerprint: str, first_sequence: int, label: str
) -> pa.Table:
    """`rows` (already `checked_rows`) with the store's own columns, in the order of `schema`."""
    count = rows.num_rows
    added = {
        "partition_key": pa.repeat(partition_key, count),
        "fingerprint": pa.repeat(fingerprint, count),
        "sequence": pa.array(np.arange(first_sequence, first_sequence + count, dtype=np.int64)),
        "segment": pa.repeat(label, count),
        "embedded_at": pa.repeat(pa.scalar(int(time.time() * 1e6), pa.timestamp("us", tz="UTC")), count),
    }
    columns = [added[name] if name in added else rows[name] for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def delete_rows(outdated: pa.Table, schema: pa.Schema) -> pa.Table:
    """`id` and `replaces` of rows to remove -> rows for the store; all that describes a text is null."""
    count = outdated.num_rows
    columns = {"id": outdated["id"], "replaces": outdated["replaces"], "op": pa.repeat(DELETE, count)}
    fields = [field for field in schema if field.name not in _STORE_COLUMNS]
    return pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in fields})


def checked_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with the types of `schema`, ready for `segment_table`.

    Raises:
        StoreError: no rows, columns missing or left over, a type or dimension that does not fit, a null id, an
            unknown op, an upsert without vector or hash, a delete with vector, the same id twice.
    """
    expected = [field for field in schema if field.name not in _STORE_COLUMNS]
    names = [field.name for field in expected]
    if sorted(rows.column_names) != sorted(names):
        missing = sorted(set(names) - set(rows.column_names))
        surplus = sorted(set(rows.column_names) - set(names))
        raise StoreError(f"rows of a segment lack the columns {missing} and have {surplus} too many")
    if rows.num_rows == 0:
        raise StoreError("a segment needs at least one row")
    columns = [_typed(rows[field.name], field) for field in expected]
    table = pa.Table.from_arrays(columns, names=names)
    _check_values(table)
    return table


def _typed(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise StoreError(
            f"column {field.name!r} of a segment must be {field.type}, and this {column.type} is not: {error}"
        ) from error


def _check_values(table: pa.Table) -> None:
    for name in ("id", "op"):
        if table[name].null_count:
            raise StoreError(f"column {name!r} of a segment has {table[name].null_count} nulls")
    upsert = pc.equal(table["op"], UPSERT)
    delete = pc.equal(table["op"], DELETE)
    if not pc.all(pc.or_(upsert, delete)).as_py():
        raise StoreError(f"column 'op' of a segment must be {UPSERT!r} or {DELETE!r}")
    for name in ("vector", "content_hash"):
        bad = pc.and_(upsert, pc.is_null(table[name]))
        if pc.any(bad).as_py():
            raise StoreError(f"row {_first_id(table, bad)!r} is an upsert without {name!r}")
    bad = pc.and_(delete, pc.is_valid(table["vector"]))
    if pc.any(bad).as_py():
        raise StoreError(f"row {_first_id(table, bad)!r} is a delete with a vector")
    if pc.count_distinct(table["id"]).as_py() != table.num_rows:
        counts = pc.value_counts(table["id"].combine_chunks())
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise StoreError(f"row {repeated[0].as_py()!r} is more than once in the same segment")


def _first_id(table: pa.Table, bad: pa.ChunkedArray) -> str:
    return str(table["id"].filter(bad)[0].as_py())

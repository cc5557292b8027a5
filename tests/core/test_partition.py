"""Slices of a source: every row is in exactly one bucket, and in exactly one slice of two dimensions."""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core.errors import ConfigError
from fletcher_core.partition import Partition
from fletcher_core.sources import DuckDBTable, filter_column, partition_condition
from fletcher_core.sql import connect

FIRST = datetime(2026, 11, 1)


SOURCE = DuckDBTable("rows.duckdb", "docs", partition_column={"day": "at", "tenant": "tenant"})
TYPES = {"id": "VARCHAR", "at": "TIMESTAMP", "tenant": "VARCHAR"}
Row = tuple[str | None, datetime, str]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(threads=1) as connection:
        yield connection


def hold(connection: duckdb.DuckDBPyConnection, rows: list[Row]) -> None:
    """Makes the table `docs`."""
    columns = {name: [row[index] for row in rows] for index, name in enumerate(TYPES)}
    types = pa.schema([("id", pa.string()), ("at", pa.timestamp("us")), ("tenant", pa.string())])
    connection.register("docs", pa.table(columns, types))


def rows_of(connection: duckdb.DuckDBPyConnection, partition: Partition) -> list[object]:
    """Ids in the partition."""
    condition = partition_condition(SOURCE, partition, TYPES)
    return [row_id for (row_id,) in connection.execute(f"SELECT id FROM docs WHERE {condition}").fetchall()]


def bucket_of(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little") % buckets


ROWS = st.lists(
    st.tuples(
        st.none() | st.text(max_size=8).filter(lambda text: "\0" not in text and text.isprintable()),
        st.datetimes(FIRST, FIRST + timedelta(days=2, microseconds=-1)),
        st.sampled_from("ab"),
    ),
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, buckets=st.integers(1, 9))
def test_every_row_is_in_the_one_bucket_that_its_md5_says(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], buckets: int
) -> None:
    """hashlib works the bucket out: another version of DuckDB that hashes otherwise would fail here."""
    hold(connection, rows)
    for number in range(buckets):
        found = rows_of(connection, Partition(str(number), bucket=(number, buckets)))
        expected = [row_id for row_id, _, _ in rows if bucket_of(row_id or "", buckets) == number]
        assert sorted(map(repr, found)) == sorted(map(repr, expected))


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, buckets=st.integers(1, 3))
def test_every_row_is_in_one_slice_of_a_product(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], buckets: int
) -> None:
    hold(connection, rows)
    days = [
        Partition(column="at", start=FIRST + timedelta(days=day), end=FIRST + timedelta(days=day + 1))
        for day in range(2)
    ]
    tenants = [Partition(column="tenant", value=tenant) for tenant in "ab"]
    shares = [Partition(bucket=(number, buckets)) for number in range(buckets)]
    found = [
        row for parts in product(days, tenants, shares) for row in rows_of(connection, Partition.all_of("k", parts))
    ]
    assert sorted(map(repr, found)) == sorted(repr(row_id) for row_id, _, _ in rows)


def test_a_bucket_is_of_the_partition_column_where_there_is_one(tmp_path: Path) -> None:
    source = DuckDBTable(tmp_path / "a.duckdb", "docs", id_column="key", partition_column="tenant")
    assert filter_column(source, Partition(bucket=(0, 2))) == "tenant"
    by_id = DuckDBTable(tmp_path / "a.duckdb", "docs", id_column="key")
    assert filter_column(by_id, Partition(bucket=(0, 2))) == "key"


def test_a_slice_of_no_parts_is_the_whole() -> None:
    assert not Partition.all_of("all", []).filtered
    assert not Partition.all_of("all", [Partition("whole")]).filtered
    assert Partition.all_of("all", [Partition(value="a", column="c")]).filtered


def test_slices_can_be_kept_in_sets() -> None:
    one = Partition.all_of("k", [Partition(value="a"), Partition(bucket=(1, 2))])
    assert {one, Partition.all_of("k", [Partition(value="a"), Partition(bucket=(1, 2))])} == {one}
    assert len({DuckDBTable("a", "t", partition_column={"day": "at"}), DuckDBTable("a", "t")}) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"value": "a", "bucket": (0, 2)}, "several conditions"),
        ({"bucket": (0, 2), "parts": (Partition(value="a"),)}, "several conditions"),
        ({"bucket": (2, 2)}, "no bucket 2 of 2"),
        ({"bucket": (-1, 2)}, "no bucket -1 of 2"),
    ],
)
def test_conditions_that_contradict_each_other_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Partition("p", **arguments)  # type: ignore[arg-type]


def test_a_mapping_leaves_no_column_for_a_slice_without_one() -> None:
    source = DuckDBTable("a.duckdb", "docs", partition_column={"day": "at"})
    with pytest.raises(ConfigError, match="set partition_column"):
        filter_column(source, Partition("p", value="a"))

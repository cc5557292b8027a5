"""Declaring sources, and what they say when something is wrong with them."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.sources import (
    DuckDBTable,
    ParquetTable,
    Partition,
    Source,
    attached,
    column_types,
    metadata_schema,
    reading_failed,
)
from fletcher_core.sql import connect

WHOLE = Partition()
DAY = datetime(2024, 3, 2)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / 'it\'s a "database".duckdb'
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE docs AS SELECT 1 AS id, 'one' AS text, 'x' AS topic")
        connection.execute("CREATE TABLE \"dotted.name\" AS SELECT 2 AS id, 'two' AS text")
        connection.execute("CREATE SCHEMA archive")
        connection.execute('CREATE SCHEMA "v1.2"')
        connection.execute('CREATE TABLE "v1.2"."a.b" AS SELECT 4 AS id, 4 AS text')
        connection.execute("CREATE TABLE archive.docs AS SELECT 3 AS id, 'three' AS text")
        connection.execute("CREATE VIEW latest AS SELECT * FROM docs")
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), path)
    return path


def ids_of(source: Source, partition: Partition = WHOLE) -> list[object]:
    """Ids in the partition, ascending."""
    with connect() as connection, attached(source, connection) as relation:
        types = column_types(source, connection, relation, partition)
        name = partition.column or source.partition_column or ""
        condition = partition.condition(name, types.get(name, ""))
        found = connection.execute(f'SELECT "{source.id_column}" FROM {relation} WHERE {condition} ORDER BY 1')
        return [row_id for (row_id,) in found.fetchall()]


@pytest.mark.parametrize(
    ("table", "row_id"),
    [("docs", 1), ("DOCS", 1), ("dotted.name", 2), ("archive.docs", 3), ("latest", 1), ("v1.2.a.b", 4)],
)
def test_a_table_is_found_by_its_name_in_any_schema(database: Path, table: str, row_id: int) -> None:
    assert ids_of(DuckDBTable(database, table)) == [row_id]


@pytest.mark.parametrize("query", ["SELECT * FROM docs", "SELECT * FROM archive.docs;\n", "FROM latest -- the view"])
def test_a_query_sees_the_tables_of_its_database(database: Path, query: str) -> None:
    assert len(ids_of(DuckDBTable(database, query=query, name="q"))) == 1


def test_a_query_that_names_nothing_in_the_database_does_not_find_our_variables(database: Path) -> None:
    with pytest.raises(SourceError, match="relation"):
        ids_of(DuckDBTable(database, query="SELECT * FROM relation", name="q"))


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    nasty = "x\" OR 'ü; DROP TABLE t"
    pq.write_table(pa.table({nasty: [7], "text": ["a"]}), tmp_path / "a.parquet")
    source = ParquetTable(tmp_path / "a.parquet", id_column=nasty, text_columns="text")
    with connect() as connection, attached(source, connection) as relation:
        assert column_types(source, connection, relation) == {nasty: "BIGINT", "text": "VARCHAR"}


def test_the_database_can_be_written_again_after_the_scan(database: Path) -> None:
    with connect() as connection, attached(DuckDBTable(database, "docs"), connection):
        pass
    with duckdb.connect(str(database)) as writer:
        writer.execute("DROP TABLE archive.docs")


def test_parquet_files_are_found_by_path_glob_and_list(tmp_path: Path) -> None:
    folder = tmp_path / "part [1]"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"id": [number], "text": ["a"]}), folder / f"{number}.parquet")
    assert ids_of(ParquetTable(folder / "1.parquet")) == [1]
    assert ids_of(ParquetTable([folder / "0.parquet", str(folder / "2.parquet")])) == [0, 2]
    assert ids_of(ParquetTable(str(tmp_path / "part*" / "*.parquet"))) == [0, 1, 2]


def test_a_query_over_parquet_files_calls_them_files(parquet: Path) -> None:
    assert ids_of(ParquetTable(parquet, query="SELECT * FROM files WHERE id > 1")) == [2]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ("a/reviews.parquet", "reviews"),
        ("a/reviews/*.parquet", "reviews"),
        ("a/reviews/**/*.parquet", "reviews"),
        (["a/first.parquet", "a/second.parquet"], "first"),
        ("*.parquet", "parquet"),
    ],
)
def test_parquet_files_give_the_collection_a_name(files: str | list[str], name: str) -> None:
    assert ParquetTable(files).name == name


def test_one_column_name_or_several_are_the_same_to_say() -> None:
    assert DuckDBTable("x", "t", text_columns="a").text_columns == ("a",)
    assert DuckDBTable("x", "t", text_columns=["a", "b"]) == DuckDBTable("x", "t", text_columns=("a", "b"))


@pytest.mark.parametrize(
    ("type_", "start", "expected"),
    [
        ("TIMESTAMP", DAY, [2]),
        ("TIMESTAMP", DAY.replace(tzinfo=timezone(timedelta(hours=5))), [2]),
        ("DATE", DAY, [2]),
        ("VARCHAR", DAY, [2]),
        ("TIMESTAMPTZ", DAY, [2]),
        ("TIMESTAMPTZ", DAY.replace(tzinfo=UTC), [2]),
        ("TIMESTAMPTZ", DAY.replace(hour=5, tzinfo=timezone(timedelta(hours=5))), [2]),
        ("TIMESTAMPTZ", DAY.replace(tzinfo=timezone(timedelta(hours=-5))), [3]),
    ],
)
def test_time_bounds_are_wall_clock_times_unless_the_column_has_a_zone(
    tmp_path: Path, type_: str, start: datetime, expected: list[int]
) -> None:
    with connect() as connection:
        connection.execute(
            "COPY (SELECT day AS id, 'a' AS text, CAST(TIMESTAMPTZ '2024-03-01 00:00:00+00' + INTERVAL (day - 1) DAY "
            f"AS {type_}) AS at FROM range(1, 4) t(day)) TO '{tmp_path}/a.parquet'"
        )
    source = ParquetTable(tmp_path / "a.parquet", partition_column="at")
    assert ids_of(source, Partition("d", start=start, end=start + timedelta(days=1))) == expected


def test_a_value_is_compared_in_text_form(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "year": [2023, 2024]}), tmp_path / "a.parquet")
    source = ParquetTable(tmp_path / "a.parquet", partition_column="year")
    assert ids_of(source, Partition("y", value="2024")) == [2]
    assert ids_of(source, Partition("y", value="2024' OR 'a'='a")) == []
    assert ids_of(source, Partition("other name for everything")) == [1, 2]


def test_metadata_columns_have_few_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with connect() as connection:
        connection.execute(
            "COPY (SELECT 1 AS id, 'a' AS text, 2::TINYINT AS small, 1.5::DECIMAL(9, 2) AS price, true AS flag, "
            "[1, 2] AS list, DATE '2024-01-01' AS day, TIMESTAMP '2024-01-01' AS moment, 1::UBIGINT AS big, "
            f"TIMESTAMPTZ '2024-01-01 00:00:00+00' AS instant, 2.5::FLOAT AS score_) TO '{path}'"
        )
    names = ["small", "price", "flag", "list", "day", "moment", "big", "instant", "score_"]
    assert metadata_schema(ParquetTable(path, metadata_columns=names)) == pa.schema(
        [
            ("small", pa.int64()),
            ("price", pa.float64()),
            ("flag", pa.bool_()),
            ("list", pa.string()),
            ("day", pa.date32()),
            ("moment", pa.timestamp("us")),
            ("big", pa.string()),
            ("instant", pa.timestamp("us", tz="UTC")),
            ("score_", pa.float32()),
        ]
    )
    assert metadata_schema(ParquetTable(path)) == pa.schema([])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DuckDBTable("x"), "either table= or query="),
        (lambda: DuckDBTable("x", "t", query="FROM t"), "either table= or query="),
        (lambda: DuckDBTable("x", query="FROM t"), "needs name="),
        (lambda: ParquetTable([]), "at least one file"),
        (lambda: DuckDBTable("x", "t", text_columns=()), "at least one column in text_columns"),
        (lambda: DuckDBTable("x", "t", metadata_columns=("Version",)), "'Version'.*query="),
        (lambda: DuckDBTable("x", "t", metadata_columns="id"), "'id'.*query="),
        (lambda: DuckDBTable("x", "t", metadata_columns=("a", "A")), "'A' is named twice"),
        (lambda: DuckDBTable("x", "t", text_columns="a", template="{a} {b}"), "'b'.*not in text_columns"),
        (lambda: DuckDBTable("x", "t", text_columns=("a", "b"), template="{a}"), "leaves out 'b'"),
        (lambda: DuckDBTable("x", "t", text_columns="a", template="{a:>3}"), "without ':' or '!'"),
        (lambda: DuckDBTable("x", "t", text_columns="a", template="{a!r}"), "without ':' or '!'"),
        (lambda: DuckDBTable("x", "t", text_columns="a", template="{a"), "cannot be read"),
        (lambda: Partition("p", value="a", start=DAY), "both a value and time bounds"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_filtering_partition_needs_a_column(parquet: Path) -> None:
    with pytest.raises(ConfigError, match="set partition_column"):
        ids_of(ParquetTable(parquet), Partition("p", value="a"))


def test_a_missing_column_is_named_with_those_that_exist(parquet: Path) -> None:
    with pytest.raises(SourceError, match=r"no column 'txet': did you mean 'text'\? It has the columns id, text"):
        ids_of(ParquetTable(parquet, text_columns="txet"))
    with pytest.raises(SourceError, match="no column 'region'"):
        ids_of(ParquetTable(parquet), Partition("p", column="region", value="a"))
    with pytest.raises(SourceError, match=r"no column 'key': .*\. Say with id_column which of them identifies a row$"):
        ids_of(ParquetTable(parquet, id_column="key"))


def test_a_time_window_over_a_column_without_times_is_named(parquet: Path) -> None:
    window = Partition("2026-01-01", column="text", start=datetime(2026, 1, 1), end=datetime(2026, 1, 2))
    with pytest.raises(duckdb.ConversionException) as raised:
        ids_of(ParquetTable(parquet), window)
    problem = str(reading_failed(ParquetTable(parquet), raised.value, window))
    assert problem.endswith(". A time window needs dates or times in its partition_column, which is 'text'")


def test_a_missing_table_is_named_with_those_that_exist(database: Path) -> None:
    with pytest.raises(SourceError, match=r"no table 'doc': did you mean 'docs'\? .*archive.docs, docs, dotted.name"):
        ids_of(DuckDBTable(database, "doc"))


def test_a_missing_database_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no DuckDB database at .*gone.duckdb"):
        ids_of(DuckDBTable(tmp_path / "gone.duckdb", "docs"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.duckdb").write_bytes(b"nothing of the kind" * 500)
    with pytest.raises(SourceError, match=r"a.duckdb.*not a valid DuckDB"):
        ids_of(DuckDBTable(tmp_path / "a.duckdb", "docs"))


@pytest.mark.parametrize("pattern", ["gone.parquet", "gone/*.parquet"])
def test_missing_parquet_files_are_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(SourceError, match=r"no Parquet file at .*gone"):
        ids_of(ParquetTable(tmp_path / pattern))


def test_a_file_that_is_no_parquet_is_named_among_good_ones(tmp_path: Path, parquet: Path) -> None:
    (tmp_path / "zz.parquet").write_bytes(b"PAR1 but not really" * 50)
    with pytest.raises(SourceError, match=r"zz.parquet' is damaged"):
        ids_of(ParquetTable(tmp_path / "*.parquet"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"bytes"], pa.binary()), "holds bytes.*decode"),
        (pa.array([["a"]]), r"VARCHAR\[\].*query="),
        (pa.array([{"a": 1}]), "STRUCT.*query="),
    ],
)
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"id": [1], "text": column}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=message):
        ids_of(ParquetTable(tmp_path / "a.parquet"))


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"


def test_a_locked_database_names_the_process_and_is_read_once_it_is_free(database: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(SourceError, match=rf"held open by process {holder.pid} .*still after 0.2 s.*lock_timeout"):
            ids_of(DuckDBTable(database, "docs", lock_timeout=0.2))
        holder.stdin.close()  # it lets go in a moment
        assert ids_of(DuckDBTable(database, "docs", lock_timeout=30)) == [1]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_database_that_this_process_has_open_is_said_to_be_so(database: Path) -> None:
    with duckdb.connect(str(database)), pytest.raises(SourceError, match=rf"this very process \({os.getpid()}\)"):
        ids_of(DuckDBTable(database, "docs", lock_timeout=0))

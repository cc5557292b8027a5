"""Names and values of any letters, in real DuckDB tables and Parquet files: quoted everywhere, never run as SQL."""

import itertools
import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core.changes import detect_changes
from fletcher_core.errors import ConfigError
from fletcher_core.models.card import ModelCard
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, Source, metadata_schema
from fletcher_core.sql import connect, identifier, literal
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.schema import RESERVED_COLUMNS

EXAMPLES = int(os.environ.get("FLETCHER_NAME_EXAMPLES", "8"))  # two a second
CARD = ModelCard("mini", "f00d", 2)
NASTY = [
    'a"b', "a'b", "a;DROP TABLE docs;--", "a\nb", "a\r\n\tb", "/*", "--", "$1", "?", "{x}", "%s", "\\", "a.b", ".", " ",
    "日本語", "É", "ẞ", "\u202e", "🦆", "select", "NULL", "*", "COLUMNS(*)", "s", "l", "scan", "work", "known", "files",
    "rowid", "filename", "file_row_number ", '""', "''", '";', "');", "fletcher_source", "memory", "earlier",
]  # fmt: skip
LETTERS = st.text(
    alphabet=st.one_of(
        st.sampled_from("\"';-.\n\\ {}%?*()"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    min_size=1,
    max_size=12,
)
NAMES = st.one_of(st.sampled_from(NASTY), LETTERS)
_counter = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


def usable(names: tuple[str, ...]) -> bool:
    """Different whatever the case of letters, and none that a metadata column must not have."""
    lowered = [name.lower().casefold() for name in names]
    return len(set(lowered)) == len(names) and not RESERVED_COLUMNS & set(lowered)


def bring_up_to_date(
    source: Source, partition: Partition, generation: Generation, store: VectorStore
) -> dict[str, int]:
    """Detects and commits; returns the counts."""
    with store.workspace("test") as workspace:
        found = detect_changes(source, partition, generation, workspace)
        rows = pq.read_table(found.changes_path)
    if rows.num_rows:
        count = rows.num_rows
        flat = pa.array(np.ones(2 * count, np.float32))
        table = rows.select(["id", "content_hash", "metadata_hash", "replaces", *generation.metadata_schema.names])
        for name, values in {
            "op": pa.repeat("upsert", count),
            "tokens": pa.repeat(pa.scalar(1, pa.int32()), count),
            "truncated": pa.repeat(False, count),
            "vector": pa.FixedSizeListArray.from_arrays(flat, 2),
        }.items():
            table = table.append_column(name, values)
        generation.write_segment(partition.key, table, "run")
    return {"new": found.new, "unchanged": found.unchanged, "source_rows": found.source_rows}


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.tuples(NAMES, NAMES, NAMES, NAMES, NAMES).filter(usable), NAMES, NAMES, NAMES, st.booleans())
def test_any_name_and_any_value_come_through(
    folder: Path, columns: tuple[str, ...], schema: str, table: str, value: str, parquet: bool
) -> None:
    """Columns: id, two texts, metadata, partition."""
    row_id, first, second, topic, part = columns
    number = next(_counter)
    quoted = f"{identifier('s' + schema)}.{identifier(table)}"
    with duckdb.connect(str(folder / f"{number}.duckdb")) as database:
        database.execute(f"CREATE SCHEMA {identifier('s' + schema)}")
        database.execute("CREATE TABLE docs AS SELECT 1 AS precious")
        database.execute(f"CREATE TABLE {quoted} ({', '.join(f'{identifier(name)} VARCHAR' for name in columns)})")
        database.execute(f"INSERT INTO {quoted} VALUES (?, ?, ?, ?, ?)", [value, "one", value, value, value])
        database.execute(f"INSERT INTO {quoted} VALUES ('other', 'two', NULL, NULL, 'other ' || ?)", [value])
        database.execute(f"COPY {quoted} TO {literal(folder / f'{number}.parquet')} (FORMAT parquet)")
    where: dict[str, object] = {
        "id_column": row_id,
        "text_columns": (first, second),
        "metadata_columns": topic,
        "partition_column": part,
    }
    source: Source = (
        ParquetTable(folder / f"{number}.parquet", **where)  # type: ignore[arg-type]
        if parquet
        else DuckDBTable(folder / f"{number}.duckdb", f"s{schema}.{table}", **where)  # type: ignore[arg-type]
    )
    partition = Partition(value, value=value)
    with VectorStore.open(folder / "store", collection=f"{number} {value}") as store:
        generation = store.generation(CARD, metadata_schema(source))
        assert bring_up_to_date(source, partition, generation, store) == {"new": 1, "unchanged": 0, "source_rows": 1}
        again = bring_up_to_date(source, partition, generation, store)
        assert again == {"new": 0, "unchanged": 1, "source_rows": 1}
        assert bring_up_to_date(source, Partition(), generation, store)["new"] == 2
        (segment,) = generation.segments(partition.key)
        (row,) = generation.resolve([segment.first_sequence]).to_pylist()
        assert (row["id"], row[topic], row["partition_key"]) == (value, value, value)
    with duckdb.connect(str(folder / f"{number}.duckdb"), read_only=True) as database:
        assert database.execute("SELECT precious FROM main.docs").fetchall() == [(1,)]


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_literal_is_the_value_and_an_identifier_the_name(value: str) -> None:
    with connect() as connection:
        relation = connection.execute(f"SELECT {literal(value)} AS {identifier('n' + value)}")
        assert relation.fetchall() == [(value,)]
        assert [column[0] for column in relation.description or ()] == [f"n{value}"]


@pytest.mark.parametrize("name", ["fletcher_kind", "Fletcher_Key", "fletcher_content", "fletcher_metadata"])
def test_names_that_change_detection_uses_are_no_metadata(name: str) -> None:
    with pytest.raises(ConfigError, match="needs for itself"):
        ParquetTable("docs.parquet", metadata_columns=name)

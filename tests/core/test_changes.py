"""What change detection finds, told by tables before and after."""

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core.changes import Changes, detect_changes
from fletcher_core.errors import (
    ConfigError,
    DeadlineExceeded,
    InputError,
    RunCancelled,
    SourceError,
    StoreError,
)
from fletcher_core.models.card import ModelCard
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, metadata_schema
from fletcher_core.sql import connect, literal
from fletcher_core.stop import Stop
from fletcher_core.store import Generation, VectorStore, ledger

DIMENSION = 2
CARD = ModelCard("mini", "f00d", DIMENSION)
NEWER_CARD = ModelCard("mini", "cafe", DIMENSION)
WHOLE = Partition()
COUNTS = [name for name, kind in Changes.__annotations__.items() if kind is int]

Rows = list[tuple[Any, ...]]


class Corpus:
    """A Parquet source (id VARCHAR, text VARCHAR, topic VARCHAR unless `columns` says otherwise) and its store."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.path = folder / "docs.parquet"
        self.settings = {"metadata_columns": "topic", **settings}
        self.columns = "id VARCHAR, text VARCHAR, topic VARCHAR"
        self.store = VectorStore.open(folder / "store", collection="docs")
        self.card = CARD
        self.vector_type: Any = "float32"

    @property
    def source(self) -> ParquetTable:
        return ParquetTable(self.path, **self.settings)

    @property
    def generation(self) -> Generation:
        return self.store.generation(self.card, metadata_schema(self.source), self.vector_type)

    def hold(self, *rows: tuple[Any, ...]) -> "Corpus":
        """Makes these the source's rows; what is missing at the end of a row is null."""
        with connect() as connection:
            connection.execute(f"CREATE TABLE docs ({self.columns})")
            width = self.columns.count(",") + 1
            for row in rows:
                values = [*row, *[None] * (width - len(row))]
                connection.execute(f"INSERT INTO docs VALUES ({', '.join('?' * width)})", values)
            connection.execute(f"COPY docs TO {literal(self.path)} (FORMAT parquet)")
        return self

    def detect(self, partition: Partition = WHOLE, **policies: Any) -> "Found":
        with self.store.workspace("test") as workspace:
            changes = detect_changes(self.source, partition, self.generation, workspace, **policies)
            return Found(changes, pq.read_table(changes.changes_path), pq.read_table(changes.deleted_path))

    def embed(self, partition: Partition = WHOLE, run_id: str = "run") -> "Found":
        """Detects, and stores what was found as a materialization would. Vectors show which text they were made of."""
        generation = self.generation
        found = self.detect(partition)
        rows = _segment_rows(found, generation)
        if rows.num_rows:
            generation.write_segment(partition.key, rows, run_id)
        return found

    def stored(self, columns: str = "id, topic") -> Rows:
        return duckdb.execute(f"SELECT {columns} FROM ({self.generation.live_sql()}) ORDER BY ALL").fetchall()


class Found:
    """Changes together with the contents of their files."""

    def __init__(self, changes: Changes, rows: pa.Table, deleted: pa.Table) -> None:
        self.changes, self.rows, self.deleted = changes, rows.sort_by("id"), deleted.sort_by("id")

    def counts(self) -> dict[str, int]:
        """All counts but zeros and the number of source rows."""
        counts = {name: getattr(self.changes, name) for name in COUNTS if getattr(self.changes, name)}
        counts.pop("source_rows", None)
        return counts

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.rows[name].to_pylist()
        return values


def vector(text: str) -> list[float]:
    return [byte / 256 for byte in hashlib.md5(text.encode()).digest()[:DIMENSION]]


def _segment_rows(found: Found, generation: Generation) -> pa.Table:
    rows, count = found.rows, found.rows.num_rows
    made = [known or vector(text) for known, text in zip(found.column("vector"), found.column("text"), strict=True)]
    upserts = (
        rows.select(["id", "content_hash", "metadata_hash", "replaces", *generation.metadata_schema.names])
        .append_column("op", pa.repeat("upsert", count))
        .append_column("tokens", pa.array([len(text) for text in found.column("text")], pa.int32()))
        .append_column("truncated", pa.repeat(False, count))
        .append_column("vector", pa.array(made, pa.list_(pa.float32(), DIMENSION)))
    )
    deletes = found.deleted.append_column("op", pa.repeat("delete", found.deleted.num_rows))
    return pa.concat_tables([upserts, deletes], promote_options="permissive")


@pytest.fixture(params=[True, False], ids=["ledger", "segments"])
def corpus(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Corpus]:
    """With and without a ledger, which small stores do not have."""
    if request.param:
        monkeypatch.setattr(ledger, "_MIN_ROWS", 1)
    corpus = Corpus(tmp_path)
    yield corpus
    corpus.store.close()


def test_new_changed_unchanged_and_deleted_rows_are_told_apart(corpus: Corpus) -> None:
    first = corpus.hold(("a", "one", "x"), ("b", "two", "x"), ("c", "three", "x")).embed()
    assert first.counts() == {"new": 3, "to_embed": 3}
    assert first.column("status") == ["new"] * 3
    assert corpus.embed().counts() == {"unchanged": 3}
    found = corpus.hold(("a", "one", "x"), ("b", "TWO", "x"), ("d", "four", "x")).embed()
    assert found.counts() == {"new": 1, "changed": 1, "unchanged": 1, "deleted": 1, "to_embed": 2}
    assert found.column("id") == ["b", "d"]
    assert found.column("text") == ["TWO", "four"]
    assert found.column("content_hash") == [hashlib.md5(text).hexdigest() for text in (b"TWO", b"four")]
    assert found.column("replaces") == [2, None]
    assert found.deleted.to_pydict() == {"id": ["c"], "replaces": [3]}
    assert corpus.stored() == [("a", "x"), ("b", "x"), ("d", "x")]
    assert corpus.embed().counts() == {"unchanged": 3}


def test_the_snapshot_has_the_promised_columns_even_when_it_is_empty(corpus: Corpus) -> None:
    expected = {
        "id": pa.string(), "text": pa.string(), "content_hash": pa.string(), "metadata_hash": pa.string(),
        "status": pa.string(), "replaces": pa.int64(), "topic": pa.string(), "tokens": pa.int32(),
        "truncated": pa.bool_(), "vector": pa.list_(pa.field("element", pa.float32())),
    }  # fmt: skip
    for rows in ([("a", "one", "x")], []):
        found = corpus.hold(*rows).detect()
        assert {field.name: field.type for field in found.rows.schema} == expected
        assert {field.name: field.type for field in found.deleted.schema} == {"id": pa.string(), "replaces": pa.int64()}


def test_changed_metadata_alone_comes_with_the_known_vector(corpus: Corpus) -> None:
    corpus.hold(("a", "one", "x"), ("b", "two", None)).embed()
    found = corpus.hold(("a", "one", None), ("b", "two", "")).embed()
    assert found.counts() == {"changed": 2}
    assert found.column("vector") == [vector("one"), vector("two")]
    assert found.column("tokens") == [3, 3]
    assert found.column("truncated") == [False, False]
    assert corpus.stored("id, topic, vector") == [("a", None, vector("one")), ("b", "", vector("two"))]


def test_metadata_columns_do_not_run_into_each_other(corpus: Corpus) -> None:
    corpus.settings["metadata_columns"] = ("topic", "place")
    corpus.columns += ", place VARCHAR"
    corpus.hold(("a", "one", "xy", "z"), ("b", "one", None, "-")).embed()
    found = corpus.hold(("a", "one", "x", "yz"), ("b", "one", "-", None)).detect()
    assert found.counts() == {"changed": 2}


def test_a_text_that_the_store_knows_from_another_row_or_partition_is_not_embedded_again(corpus: Corpus) -> None:
    corpus.settings["partition_column"] = "topic"
    corpus.hold(("a", "one", "x"), ("b", "two", "y")).embed(Partition("x", value="x"))
    found = corpus.hold(("moved", "one", "x"), ("a", "one", "y")).embed(Partition("y", value="y"))
    assert found.counts() == {"new": 1}
    assert found.column("vector") == [vector("one")]
    found = corpus.embed(Partition("x", value="x"))
    assert found.counts() == {"new": 1, "deleted": 1}
    assert corpus.stored("partition_key, id") == [("x", "moved"), ("y", "a")]


def test_the_vector_of_a_superseded_text_is_still_known(corpus: Corpus) -> None:
    corpus.hold(("a", "one")).embed()
    corpus.hold(("a", "two")).embed()
    found = corpus.hold(("a", "one")).embed()
    assert found.counts() == {"changed": 1}
    assert found.column("replaces") == [2]
    assert found.column("vector") == [vector("one")]


def test_known_vectors_are_found_in_many_row_groups_and_files(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletcher_core.store.planned.row_group_rows", lambda _: 7)
    corpus.settings["partition_column"] = "topic"
    rows = [(f"{number:03}", f"text {number}", str(number % 3)) for number in range(100)]
    for topic in ("0", "1", "2"):
        corpus.hold(*rows).embed(Partition(topic, value=topic))
    found = corpus.hold(*[(f"new {row_id}", text, "0") for row_id, text, _ in rows]).detect(Partition("0", value="0"))
    assert found.counts() == {"new": 100, "deleted": 34}
    assert found.column("vector") == [vector(text) for text in found.column("text")]


def test_row_groups_without_a_match_are_not_read(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletcher_core.store.planned.row_group_rows", lambda _: 10)
    rows = [(f"{number:03}", f"text {number}", "x") for number in range(100)]
    corpus.hold(*rows).embed()
    read: list[int] = []
    real = pq.ParquetFile.read_row_group

    def reading(file: pq.ParquetFile, group: int, **settings: Any) -> pa.Table:
        read.append(group)
        return real(file, group, **settings)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", reading)
    found = corpus.hold(*rows[:45], ("045", "text 45", "y"), *rows[46:]).detect()
    assert found.column("vector") == [vector("text 45")]
    assert len(read) == 1


def test_another_model_makes_rows_stale_and_its_vectors_are_not_mixed_in(corpus: Corpus) -> None:
    corpus.hold(("a", "one"), ("b", "two")).embed()
    corpus.card = NEWER_CARD
    found = corpus.hold(("a", "one"), ("b", "two"), ("c", "three")).embed()
    assert found.counts() == {"stale": 2, "new": 1, "to_embed": 3}
    assert found.column("status") == ["stale", "stale", "new"]
    assert found.column("replaces") == [None] * 3
    assert found.column("vector") == [None] * 3
    assert corpus.embed().counts() == {"unchanged": 3}
    corpus.card = CARD
    assert corpus.embed().counts() == {"unchanged": 2, "stale": 1, "to_embed": 1}


def test_a_generation_with_new_metadata_columns_takes_its_vectors_from_the_old_one(corpus: Corpus) -> None:
    corpus.columns += ", place VARCHAR"
    corpus.hold(("a", "one", "x", "here"), ("b", "two", "x", "there")).embed()
    corpus.settings["metadata_columns"] = ("topic", "place")
    found = corpus.hold(("a", "one", "x", "here"), ("b", "TWO", "x", "there")).embed()
    assert found.counts() == {"changed": 2, "to_embed": 1}
    assert found.column("vector") == [vector("one"), None]
    assert corpus.stored("id, place") == [("a", "here"), ("b", "there")]


def test_vectors_pass_from_a_precise_generation_to_a_coarse_one_and_not_back(corpus: Corpus) -> None:
    corpus.vector_type = "float16"
    corpus.hold(("a", "one")).embed()
    corpus.vector_type = "float32"
    assert corpus.embed().counts() == {"changed": 1, "to_embed": 1}
    corpus.vector_type = "float16"
    assert corpus.hold(("b", "one")).embed().counts() == {"new": 1, "deleted": 1}


def test_rows_without_text_or_id_are_left_out_and_counted(corpus: Corpus) -> None:
    blank = ["", " ", "\t\r\n", "\x00\x01\x7f", "\u00a0\u2003\u3000", "\u200b\u200d\ufeff", " " * 1_000_000]
    rows = [(f"blank {number}", text) for number, text in enumerate(blank)]
    found = corpus.hold(*rows, ("null", None), (None, "text"), (None, None), ("a", " . "), ("b", "\x00é")).embed()
    assert found.counts() == {"new": 2, "to_embed": 2, "empty_text": 7, "null_text": 1, "null_ids": 2}
    assert found.changes.source_rows == 12
    assert found.column("text") == [" . ", "\x00é"]


def test_a_row_that_loses_its_text_is_deleted(corpus: Corpus) -> None:
    corpus.hold(("a", "one"), ("b", "two"), ("c", "three")).embed()
    found = corpus.hold(("a", None), ("b", "  "), ("c", "three")).embed()
    assert found.counts() == {"unchanged": 1, "deleted": 2, "null_text": 1, "empty_text": 1}
    assert [row_id for row_id, _ in corpus.stored()] == ["c"]


def test_an_id_with_different_contents_is_quarantined_and_its_stored_row_deleted(corpus: Corpus) -> None:
    corpus.hold(("a", "one"), ("b", "two")).embed()
    rows = [
        ("a", "one"),
        ("a", "other"),
        ("b", "two"),
        ("n", "x"),
        ("n", "y"),
        ("n", "y"),
        ("m", "z", "1"),
        ("m", "z", "2"),
    ]
    found = corpus.hold(*rows).embed()
    assert found.counts() == {"unchanged": 1, "deleted": 1, "duplicate_ids": 7}
    assert found.changes.source_rows == 8
    quarantined = found.changes.quarantined
    assert quarantined.column_names == ["id", "reason", "message", "content_hash"]
    assert quarantined["id"].to_pylist() == ["a", "m", "n"]
    assert quarantined["message"][2].as_py() == "the id occurs 3 times with 2 different texts or metadata"
    assert quarantined["content_hash"].null_count == 0
    assert [row_id for row_id, _ in corpus.stored()] == ["b"]
    corpus.store.quarantine.write(quarantined, run_id="r")
    assert corpus.hold(("a", "one"), ("b", "two")).embed().counts() == {"new": 1, "unchanged": 1}


def test_equal_copies_of_a_row_count_once(corpus: Corpus) -> None:
    found = corpus.hold(("a", "one", "x"), ("a", "one", "x"), ("a", "one", "x"), ("b", "two")).embed()
    assert found.counts() == {"new": 2, "to_embed": 2, "duplicate_ids": 2}
    assert found.column("id") == ["a", "b"]
    assert corpus.embed().counts() == {"unchanged": 2, "duplicate_ids": 2}
    found = corpus.hold(("a", "new", "x"), ("a", "new", "x"), ("b", "two")).embed()
    assert found.counts() == {"changed": 1, "unchanged": 1, "to_embed": 1, "duplicate_ids": 1}
    assert found.changes.quarantined.num_rows == 0


def test_a_copy_without_text_does_not_make_an_id_ambiguous(corpus: Corpus) -> None:
    found = corpus.hold(("a", None), ("a", "one"), ("a", " ")).embed()
    assert found.counts() == {"new": 1, "to_embed": 1, "null_text": 1, "empty_text": 1}


def test_policies_of_error_name_rows(corpus: Corpus) -> None:
    corpus.hold(("a", "one"), ("b", None), ("c", " "))
    with pytest.raises(InputError, match=r"null or empty text, such as id 'b', 'c'.*on_empty='skip'"):
        corpus.detect(on_empty="error")
    assert corpus.detect(on_duplicate="error").changes.new == 1
    corpus.hold(("a", "one"), ("a", "two"), ("e", "one"), ("e", "one"))
    with pytest.raises(InputError, match=r"different rows of the same id, such as id 'a': .*on_duplicate='quarantine'"):
        corpus.detect(on_duplicate="error")
    assert corpus.detect(on_empty="error").changes.new == 1
    with pytest.raises(ConfigError, match="on_empty is 'ignore'"):
        corpus.detect(on_empty="ignore")


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"text_columns": ("text", "topic")}, {"both": "a\n\nb", "first": "a", "second": "b"}),
        (
            {"text_columns": ("text", "topic"), "template": "T: {topic}{{!}}\n{text}"},
            {"both": "T: b{!}\na", "first": "T: {!}\na", "second": "T: b{!}\n"},
        ),
        ({"text_columns": ("text",), "template": "it's {text}"}, {"both": "it's a", "first": "it's a"}),
    ],
)
def test_text_columns_are_joined(corpus: Corpus, settings: dict[str, Any], texts: dict[str, str]) -> None:
    corpus.settings = settings
    corpus.hold(
        ("both", "a", "b"), ("first", "a", None), ("second", None, "b"), ("none", None, None), ("blank", "", " ")
    )
    found = corpus.detect()
    assert dict(zip(found.column("id"), found.column("text"), strict=True)) == texts
    counts = found.counts()
    assert counts["null_text"] + counts["empty_text"] + len(texts) == 5


def test_columns_of_numbers_can_be_part_of_a_text(corpus: Corpus) -> None:
    corpus.columns = "id VARCHAR, text VARCHAR, year INTEGER"
    corpus.settings = {"text_columns": ("text", "year"), "template": "{text} ({year})"}
    assert corpus.hold(("a", "one", 1999), ("b", None, 2000)).detect().column("text") == ["one (1999)", " (2000)"]


@pytest.mark.parametrize(
    ("type_", "value", "row_id"),
    [
        ("BIGINT", "7", "7"),
        ("DOUBLE", "7.5", "7.5"),
        ("FLOAT", "7", "7.0"),
        ("UUID", "'d8b1ac2e-5d3e-4e4c-9c8e-1f1f1f1f1f1f'", "d8b1ac2e-5d3e-4e4c-9c8e-1f1f1f1f1f1f"),
        ("DATE", "'2024-02-29'", "2024-02-29"),
        ("TIMESTAMPTZ", "'2024-02-29 12:00:00+05'", "2024-02-29 07:00:00+00"),
        ("BLOB", "'\\x00\\x5C'", "\\x00\\x5C"),
        ("VARCHAR", "''", ""),
    ],
)
def test_ids_of_any_type_are_taken_in_text_form(tmp_path: Path, type_: str, value: str, row_id: str) -> None:
    corpus = Corpus(tmp_path, metadata_columns=())
    with connect() as connection:
        row = f"SELECT CAST({value} AS {type_}) AS id, 'one' AS text"
        connection.execute(f"COPY ({row}) TO {literal(corpus.path)} (FORMAT parquet)")
    assert corpus.embed().column("id") == [row_id]
    assert corpus.embed().counts() == {"unchanged": 1}


def test_metadata_may_have_names_that_change_detection_itself_might_use(tmp_path: Path) -> None:
    names = ["kind", "work", "row", "content", "known", "files", "filename", "l", "s", 'q"uote', "Größe", "scan"]
    corpus = Corpus(tmp_path, metadata_columns=names, partition_column="kind", id_column="the id")
    values = ["v"] * len(names)
    table = {"the id": ["a"], "text": ["one"], **{name: [value] for name, value in zip(names, values, strict=True)}}
    pq.write_table(pa.table(table), corpus.path)
    partition = Partition("k", value="v")
    assert corpus.embed(partition).counts() == {"new": 1, "to_embed": 1}
    pq.write_table(pa.table({**table, "row": ["w"]}), corpus.path)
    found = corpus.embed(partition)
    assert found.counts() == {"changed": 1}
    assert found.rows.select(names).to_pylist() == [dict(zip(names, values, strict=True)) | {"row": "w"}]


def test_a_query_may_use_any_table_name(tmp_path: Path) -> None:
    database = tmp_path / "a.duckdb"
    names = ["scan", "source", "work", "copies", "earlier", "known", "files", "s", "l"]
    with duckdb.connect(str(database)) as connection:
        for name in names:
            connection.execute(f"CREATE TABLE {name} AS SELECT '{name}' AS id, 'text' AS text")
    source = DuckDBTable(database, query=" UNION ALL ".join(f"FROM {name}" for name in names), name="docs")
    with VectorStore.open(tmp_path / "store", collection="docs") as store, store.workspace("r") as workspace:
        changes = detect_changes(source, Partition(), store.generation(CARD, pa.schema([])), workspace)
        assert changes.new == len(names)
        duckdb.connect(str(database)).close()  # it is free for writers as soon as the scan is over


def test_a_damaged_page_names_the_file(corpus: Corpus) -> None:
    corpus.hold(*[(str(number), hashlib.sha256(bytes(number)).hexdigest()) for number in range(2000)])
    damaged = corpus.folder / "docs-2.parquet"
    content = bytearray(corpus.path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    damaged.write_bytes(content)
    corpus.path = corpus.folder / "docs*.parquet"
    with pytest.raises(SourceError, match=r"docs-2.parquet' is damaged"):
        corpus.detect()


def test_a_damaged_segment_is_not_blamed_on_the_source(corpus: Corpus) -> None:
    corpus.hold(("a", "one")).embed()
    (segment,) = corpus.generation.files()
    segment.write_bytes(b"PAR1" * 100)
    with pytest.raises(StoreError, match=segment.name):
        corpus.detect()


def test_a_workspace_that_cannot_be_written_is_not_blamed_on_the_source(corpus: Corpus) -> None:
    corpus.hold(("a", "one"))
    with pytest.raises(StoreError, match="gone"):
        detect_changes(corpus.source, WHOLE, corpus.generation, corpus.folder / "gone")


def test_long_texts_and_a_low_memory_limit_go_together(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, metadata_columns=())
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(corpus.path, schema, compression="zstd", use_dictionary=False) as writer:
        for number in range(0, 250, 10):  # 250 MB of text in all
            texts = [f"{i:03}" + hashlib.md5(bytes([i % 256])).hexdigest() * 31_250 for i in range(number, number + 10)]
            writer.write_table(pa.table([range(number, number + 10), texts], schema=schema))
    with corpus.store.workspace("r") as workspace:
        found = detect_changes(
            corpus.source, Partition(), corpus.generation, workspace, memory_limit="250MB", threads=1
        )
        assert found.new == found.to_embed == 250
        file = pq.ParquetFile(found.changes_path)
        assert file.num_row_groups > 1  # so that a reader's memory is bounded too
        text = pq.read_table(found.changes_path, columns=["text"])["text"]
        assert pa.compute.min_max(pa.compute.binary_length(text)).as_py() == {"min": 1_000_003, "max": 1_000_003}


def test_too_little_memory_names_the_setting(corpus: Corpus) -> None:
    corpus.hold(*[(str(number), "text") for number in range(3000)])
    with pytest.raises(ConfigError, match="memory_limit='2MB'"):
        corpus.detect(memory_limit="2MB")
    with pytest.raises(ConfigError, match="memory_limit='plenty'"):
        corpus.detect(memory_limit="plenty")


TEXTS = st.one_of(st.none(), st.sampled_from(["", " ", "a", "b", "ä", "A"]))
TABLES = st.lists(
    st.tuples(st.one_of(st.none(), st.sampled_from("123456")), TEXTS, st.sampled_from(["x", "y"])), max_size=9
)


@settings(max_examples=12, deadline=None)
@given(st.lists(TABLES, min_size=1, max_size=3), st.sampled_from([1, 100_000]))
def test_after_every_run_the_store_holds_exactly_the_embeddable_rows(tables: list[Rows], ledger_rows: int) -> None:
    folder = Path(tempfile.mkdtemp())
    with mock.patch.object(ledger, "_MIN_ROWS", ledger_rows):
        _run_and_compare(tables, folder)


def _run_and_compare(tables: list[Rows], folder: Path) -> None:
    try:
        corpus = Corpus(folder)
        for rows in tables:
            found = corpus.hold(*rows).embed()
            counts = found.counts()
            assert found.changes.source_rows == len(rows)
            left = {name: n for name, n in counts.items() if name not in ("deleted", "to_embed")}
            assert sum(left.values()) == len(rows)
            assert corpus.stored("id, topic, content_hash, vector") == _embeddable(rows)
            assert not {"new", "changed", "stale", "deleted", "to_embed"} & set(corpus.embed().counts())
        corpus.store.close()
    finally:
        shutil.rmtree(folder)


def _embeddable(rows: Rows) -> Rows:
    contents: dict[str, set[tuple[str, str]]] = {}
    for row_id, text, topic in rows:
        if row_id is not None and text is not None and text.strip():
            contents.setdefault(row_id, set()).add((text, topic))
    return sorted(
        (row_id, topic, hashlib.md5(text.encode()).hexdigest(), vector(text))
        for row_id, [(text, topic)] in ((k, list(v)) for k, v in contents.items() if len(v) == 1)
    )


def test_a_long_scan_ends_soon_after_the_word_to_stop(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.hold(("1", "a text"))
    # A query over the file that would take very long.
    corpus.settings["query"] = (
        "SELECT id, text, topic FROM files WHERE (SELECT count(*) FROM range(10000000) a, range(1000000) b "
        "WHERE a.range * b.range % 7 = 3) > 0"
    )
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    started = time.monotonic()
    with pytest.raises(RunCancelled):
        corpus.detect(stop=Stop(cancelled))
    assert cancelled.is_set()
    assert time.monotonic() - started < 30.0  # it would take hours
    with pytest.raises(DeadlineExceeded):
        corpus.detect(stop=Stop.after(0.5))
    del corpus.settings["query"]
    assert corpus.detect(stop=Stop(threading.Event())).changes.new == 1

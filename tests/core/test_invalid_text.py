"""Parquet files with bytes that are no UTF-8 in text columns: such rows are set aside, the others lose nothing."""

import hashlib
import os
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core import Embedder
from fletcher_core.changes import Changes, detect_changes
from fletcher_core.errors import SourceError
from fletcher_core.models.card import ModelCard
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, metadata_schema
from fletcher_core.store import Generation, VectorStore

COUNTS = [name for name, kind in Changes.__annotations__.items() if kind is int]
CARD = ModelCard("mini", "f00d", 2)
BAD = b"x\xff\xfe y"


def strings(values: Sequence[bytes | None]) -> pa.Array:
    """A string column of any bytes, as writers that do not check make it."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers(), binary.null_count)


def write_file(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    arrays = {
        name: strings(values) if any(isinstance(value, bytes) for value in values) else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path, **options)
    return path


class Corpus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = VectorStore.open(folder / "store", collection="docs")

    def generation(self, source: ParquetTable) -> Generation:
        return self.store.generation(CARD, metadata_schema(source))

    def changes(self, source: ParquetTable, partition: Partition | None = None) -> Changes:
        with self.store.workspace("test") as workspace:
            found = detect_changes(source, partition or Partition(), self.generation(source), workspace)
            self.snapshot = pq.read_table(found.changes_path)
            self.deleted = pq.read_table(found.deleted_path)
        summands = set(COUNTS) - {"source_rows", "deleted", "to_embed"}
        assert found.source_rows == sum(getattr(found, name) for name in summands)
        return found

    def embed(self, source: ParquetTable, partition: Partition | None = None) -> Changes:
        """Commits what changed with vectors of no meaning."""
        partition = partition or Partition()
        found = self.changes(source, partition)
        generation = self.generation(source)
        rows = self.snapshot.num_rows
        flat = pa.array(np.ones(2 * rows, np.float32))
        table = (
            self.snapshot.drop_columns(["status", "vector", "text", "tokens", "truncated"])
            .append_column("op", pa.repeat("upsert", rows))
            .append_column("tokens", pa.repeat(pa.scalar(1, pa.int32()), rows))
            .append_column("truncated", pa.repeat(False, rows))
            .append_column("vector", pa.FixedSizeListArray.from_arrays(flat, 2))
        )
        if rows:
            generation.write_segment(partition.key, table, "run")
        return found


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_the_row_is_set_aside_with_its_id_file_and_column_and_the_others_go_on(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet",
        {"id": [1, 2, 3, 4], "text": [b"one", BAD, None, b"four"], "unused": [b"\xff"] * 4},
    )
    found = corpus.changes(ParquetTable(path))
    assert (found.source_rows, found.new, found.invalid_text, found.null_text) == (4, 2, 1, 1)
    assert sorted(corpus.snapshot["text"].to_pylist()) == ["four", "one"]
    hashes = sorted(corpus.snapshot["content_hash"].to_pylist())
    assert hashes == sorted(hashlib.md5(text).hexdigest() for text in (b"one", b"four"))
    (row,) = found.quarantined.to_pylist()
    assert (row["id"], row["reason"], row["content_hash"]) == ("2", "invalid_text", None)
    assert row["message"] == (
        f"id 2: row 2 of {path} holds bytes in column text that are not valid UTF-8, ? in: x?? y. Write the file "
        "again with this text in UTF-8"
    )


def test_a_column_that_nobody_reads_may_hold_anything(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet", {"id": [1, 2], "text": [b"one", b"two"], "unused": [b"\xff", b""]}
    )
    found = corpus.changes(ParquetTable(path))
    assert (found.new, found.invalid_text, found.quarantined.num_rows) == (2, 0, 0)


def test_an_invalid_id_is_named_by_what_can_be_read_of_it_and_its_place(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet",
        {"id": [b"d\xff", b"d\xfe", b"fine", b"d?", None], "text": [b"a", b"b", b"c", b"d", BAD]},
    )
    found = corpus.changes(ParquetTable(path))
    assert (found.new, found.invalid_text, found.null_ids) == (2, 2, 1)
    assert sorted(corpus.snapshot["id"].to_pylist()) == ["d?", "fine"]
    assert found.quarantined["id"].to_pylist() == [f"d? (row {row} of {path})" for row in (1, 2)]
    assert all("in column id" in message for message in found.quarantined["message"].to_pylist())


def test_metadata_is_not_delivered_with_other_letters_than_it_had(corpus: Corpus) -> None:
    path = corpus.folder / "docs.parquet"
    tags = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), strings([b"a", b"\xff\xff", b"c"]))
    table = pa.table(
        {"id": ["1", "2", "3"], "text": ["a", "b", "c"], "topic": strings([b"\xff", b"t", b"t"]), "tags": tags}
    )
    pq.write_table(table, path)
    found = corpus.changes(ParquetTable(path, metadata_columns=("topic", "tags")))
    assert (found.new, found.invalid_text) == (1, 2)
    assert corpus.snapshot.select(["id", "topic", "tags"]).to_pylist() == [{"id": "3", "topic": "t", "tags": "[c]"}]
    assert [message.split("column ")[1].split()[0] for message in found.quarantined["message"].to_pylist()] == [
        "topic",
        "tags",
    ]


def test_columns_and_files_may_have_any_name(corpus: Corpus) -> None:
    names = ['i"d', "te'xt; --", "to\npic", "n\"ested'"]
    path = corpus.folder / 'it\'s "a"; file.parquet'
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), strings([b"a", b"\xff"]))
    columns = [strings([b"1", b"2\xff"]), strings([BAD, b"b"]), strings([b"t", b"\xff"]), nested]
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    found = corpus.changes(ParquetTable(path, id_column=names[0], text_columns=names[1], metadata_columns=names[2:]))
    assert found.invalid_text == 2
    assert found.quarantined["id"].to_pylist() == ["1", f"2? (row 2 of {path})"]
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names[:2])
    renamed = ParquetTable(path, query=f"SELECT {quoted} FROM files", id_column=names[0], text_columns=names[1])
    assert corpus.changes(renamed).invalid_text == 2


def test_several_files_whose_columns_differ(corpus: Corpus) -> None:
    write_file(corpus.folder / "a.parquet", {"id": [1, 2], "Text": [b"one", b"\xc3"], "extra": [b"\xff", b"e"]})
    write_file(corpus.folder / "b.parquet", {"text": [b"three", b"four"], "id": [3, 4]})
    write_file(corpus.folder / "c.parquet", {"id": [5, 6], "text": [b"\x80", b"six"]}, row_group_size=1)
    write_file(corpus.folder / "d.parquet", {"id": [7]})
    found = corpus.changes(ParquetTable(corpus.folder / "?.parquet"))
    assert (found.new, found.invalid_text, found.null_text) == (4, 2, 1)
    assert sorted(corpus.snapshot["text"].to_pylist()) == ["four", "one", "six", "three"]
    assert found.quarantined["id"].to_pylist() == ["2", "5"]
    assert "row 2 of " in found.quarantined["message"][0].as_py()
    assert "a.parquet" in found.quarantined["message"][0].as_py()
    assert "row 1 of " in found.quarantined["message"][1].as_py()


def test_rows_of_one_id_are_one_entry_that_says_how_many(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet",
        {"id": ["a", "a", "a", "b", "b", "b"], "text": [BAD, BAD, b"valid", b"one", b"two", BAD]},
    )
    found = corpus.changes(ParquetTable(path))
    assert (found.new, found.invalid_text, found.duplicate_ids) == (1, 3, 2)
    assert corpus.snapshot.select(["id", "text"]).to_pylist() == [{"id": "a", "text": "valid"}]
    reasons = found.quarantined.select(["id", "reason"]).to_pylist()
    assert [(row["id"], row["reason"]) for row in reasons] == [
        ("a", "invalid_text"), ("b", "duplicate_id"), ("b", "invalid_text")
    ]  # fmt: skip
    assert "(and 1 more rows of this id)" in found.quarantined["message"][0].as_py()


def test_the_vector_of_a_text_that_became_invalid_leaves_and_comes_back(corpus: Corpus) -> None:
    path = corpus.folder / "docs.parquet"
    source = ParquetTable(path)
    write_file(path, {"id": ["a", "b"], "text": [b"one", b"two"]})
    corpus.embed(source)
    write_file(path, {"id": ["a", "b"], "text": [b"one", b"two\xff"]})
    found = corpus.changes(source)
    assert (found.unchanged, found.invalid_text, found.deleted) == (1, 1, 1)
    assert corpus.deleted["id"].to_pylist() == ["b"]
    write_file(path, {"id": ["a", "b"], "text": [b"one", b"two"]})
    assert corpus.changes(source).unchanged == 2


def test_a_row_whose_partition_cannot_be_read_shows_in_each(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet",
        {"id": [1, 2, 3], "text": [b"a", b"b", BAD], "lang": [b"en", b"e\xff", b"de"]},
    )
    source = ParquetTable(path, partition_column="lang")
    for key, new, ids in (("en", 1, ["2"]), ("de", 0, ["2", "3"]), ("fr", 0, ["2"])):
        found = corpus.changes(source, Partition(key, value=key))
        assert (found.new, found.quarantined["id"].to_pylist()) == (new, ids)


def test_a_row_whose_time_cannot_be_read_shows_in_each_window_of_time(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet",
        {
            "id": [1, 2, 3, 4, 5],
            "text": [b"a", b"b", BAD, b"d", b"e"],
            "at": [b"2026-01-01 10:00:00", b"2026-01\xff", b"2026-01-02", b"2026-01-02 23:59:59", None],
        },
    )
    source = ParquetTable(path, partition_column="at")
    days = [datetime(2026, 1, day) for day in (1, 2, 3, 4)]
    for (start, end), new, ids in zip(pairwise(days), (1, 1, 0), (["2"], ["2", "3"], ["2"]), strict=True):
        found = corpus.changes(source, Partition(start.isoformat(), start=start, end=end))
        assert (found.new, found.quarantined["id"].to_pylist()) == (new, ids)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, upper(body) AS text FROM files",
        "SELECT id, concat('title: ', trim(body)) AS text FROM files WHERE id > 0",
        "SELECT id, string_agg(body, ' ' ORDER BY body) AS text FROM files GROUP BY id",
        "SELECT id, substr(body, 1, 3) AS text FROM files",
    ],
)
def test_marks_are_found_behind_a_query(corpus: Corpus, query: str) -> None:
    path = write_file(corpus.folder / "docs.parquet", {"id": [1, 2], "body": [b"abc", BAD], "other": [b"\xff", b""]})
    found = corpus.changes(ParquetTable(path, query=query, name="docs"))
    assert (found.new, found.invalid_text) == (1, 1)
    (row,) = found.quarantined.to_pylist()
    assert row["id"] == "2"
    assert "not valid UTF-8" in row["message"]
    assert ("column body" in row["message"]) == ("substr" not in query)


def test_a_query_over_an_invalid_nested_column_is_refused_by_name(corpus: Corpus) -> None:
    path = corpus.folder / "docs.parquet"
    words = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), strings([b"a", b"\xff"]))
    pq.write_table(pa.table({"id": [1, 2], "words": words, "text": strings([b"a", BAD])}), path)
    query = "SELECT id, words[1] AS text FROM files"
    with pytest.raises(SourceError, match=rf"column words holds text that is not valid UTF-8.*{path.name}"):
        corpus.changes(ParquetTable(path, query=query, name="docs"))
    assert corpus.changes(ParquetTable(path, query="SELECT id, text FROM files", name="docs")).invalid_text == 1


def test_a_database_query_over_such_a_file_says_what_to_do(corpus: Corpus) -> None:
    path = write_file(corpus.folder / "docs.parquet", {"id": [1], "text": [BAD]})
    database = corpus.folder / "db.duckdb"
    duckdb.connect(str(database)).close()
    source = DuckDBTable(database, query=f"SELECT * FROM read_parquet('{path}')", name="docs")
    with corpus.store.workspace("r") as folder, pytest.raises(SourceError, match=r"not valid UTF8.*ParquetTable"):
        detect_changes(source, Partition(), corpus.store.generation(CARD, metadata_schema(source)), folder)


def test_a_damaged_file_is_not_taken_for_invalid_text(corpus: Corpus) -> None:
    path = write_file(
        corpus.folder / "docs.parquet", {"id": list(range(1000)), "text": [os.urandom(20) for _ in range(1000)]}
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    path.write_bytes(content)
    try:
        found = corpus.changes(ParquetTable(path))
    except SourceError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert found.invalid_text


VALUES = st.one_of(
    st.none(),
    st.text(max_size=6).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=6),
    st.sampled_from([b"?", b"??", b"'", b"x\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"a\0b"]),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """For tests that commit nothing."""
    return Corpus(tmp_path_factory.mktemp("shared"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12), st.booleans(), st.integers(1, 5))
def test_exactly_the_rows_that_python_cannot_decode_are_set_aside(
    shared: Corpus, rows: list[tuple[bytes | None, ...]], dictionary: bool, group: int
) -> None:
    corpus = shared
    first, second, topic = zip(*rows, strict=True)
    columns = {"id": list(range(len(rows))), "first": [*first], "second": [*second], "topic": [*topic]}
    arrays = {name: strings(v) if name != "id" else pa.array(v) for name, v in columns.items()}
    path = corpus.folder / "docs.parquet"
    pq.write_table(pa.table(arrays), path, use_dictionary=dictionary, row_group_size=group)
    source = ParquetTable(path, text_columns=("first", "second"), template="{first}|{second}", metadata_columns="topic")
    found = corpus.changes(source)
    decoded = {row: [decode(value) for value in values] for row, values in enumerate(rows)}
    invalid = {str(row) for row, values in decoded.items() if "invalid" in [kind for kind, _ in values]}
    assert set(found.quarantined["id"].to_pylist()) == invalid
    assert found.invalid_text == len(invalid)
    for row in corpus.snapshot.to_pylist():
        assert row["id"] not in invalid
        (_, one), (_, other), (_, topic_text) = decoded[int(row["id"])]
        assert row["text"] == f"{one or ''}|{other or ''}"
        assert row["topic"] == topic_text


def decode(value: bytes | None) -> tuple[str, str | None]:
    if value is None:
        return "null", None
    try:
        return "text", value.decode()
    except UnicodeDecodeError:
        return "invalid", None


def test_a_whole_run_counts_them_and_keeps_them_until_they_are_mended(corpus: Corpus, minilm: Embedder) -> None:
    path = corpus.folder / "docs.parquet"
    write_file(path, {"id": [1, 2, 3], "text": [b"cats", BAD, b"dogs"]})
    source = ParquetTable(path)
    for run in (1, 2):
        report = materialize(source, embedder=minilm, store=corpus.store, run_id=str(run))
        assert (report.quarantined, report.invalid_text, report.rows_in_store) == (1, 1, 2)
        kept = corpus.store.quarantine.read().select(["id", "reason", "attempts"]).to_pylist()
        assert kept == [{"id": "2", "reason": "invalid_text", "attempts": run}]
    write_file(path, {"id": [1, 2, 3], "text": [b"cats", b"mended", b"dogs"]})
    report = materialize(source, embedder=minilm, store=corpus.store)
    assert (report.new, report.invalid_text, report.rows_in_store) == (1, 0, 3)
    assert corpus.store.quarantine.read().num_rows == 0

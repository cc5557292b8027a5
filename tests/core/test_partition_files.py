"""Parquet files whose paths part the rows: hive folders, a partition a file, and files that are elsewhere."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_invalid_text import BAD, Corpus, write_file

from fletcher_core.errors import SourceError
from fletcher_core.partition import Partition
from fletcher_core.sources import ParquetTable, metadata_schema

FIRST = Partition("d1", column="day", start=datetime(2026, 11, 1), end=datetime(2026, 11, 2))


def write_hive(folder: Path, day: str, tenant: str, ids: list[int], **columns: Any) -> Path:
    path = folder / f"day={day}" / f"tenant={tenant}" / "part.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, {"id": ids, "text": [f"text {number}" for number in ids], **columns})


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    """Two days, tenants 007 and a b, ids 1 to 4."""
    folder = tmp_path / "data"
    write_hive(folder, "2026-11-01", "007", [1])
    write_hive(folder, "2026-11-01", "a%20b", [2])
    write_hive(folder, "2026-11-02", "007", [3])
    write_hive(folder, "2026-11-02", "a%20b", [4])
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def ids(corpus: Corpus, source: ParquetTable, partition: Partition | None = None) -> list[str]:
    """Ids that a run over the partition would embed."""
    corpus.changes(source, partition)
    return sorted(corpus.snapshot["id"].to_pylist())


def test_hive_folders_are_partition_and_metadata_columns(hive: Path, corpus: Corpus) -> None:
    source = ParquetTable(f"{hive}/*/*/*.parquet", metadata_columns=["day", "tenant"])
    assert metadata_schema(source) == pa.schema([("day", pa.string()), ("tenant", pa.string())])
    both = Partition.all_of("k", [FIRST, Partition(column="tenant", value="a b")])
    assert ids(corpus, source, both) == ["2"]
    assert corpus.snapshot["day"].to_pylist() == ["2026-11-01"]
    assert ids(corpus, source, Partition("t", column="TENANT", value="007")) == ["1", "3"]
    assert ids(corpus, source, Partition("b", column="tenant", bucket=(0, 1))) == ["1", "2", "3", "4"]
    assert ids(corpus, source) == ["1", "2", "3", "4"]


def test_a_damaged_file_disturbs_no_other_hive_partition(hive: Path, corpus: Corpus) -> None:
    for day, tenant, number in (("2026-11-01", "007", 1), ("2026-11-01", "a%20b", 2), ("2026-11-02", "a%20b", 4)):
        write_hive(hive, day, tenant, [number], note=["a note"])
    (hive / "day=2026-11-02" / "tenant=007" / "part.parquet").write_bytes(b"PAR1 no Parquet file PAR1")
    source = ParquetTable(f"{hive}/**/*.parquet", metadata_columns=["tenant", "note"])
    assert ids(corpus, source, FIRST) == ["1", "2"]
    other = Partition("d2", column="day", value="2026-11-02")
    with pytest.raises(SourceError, match=r"day=2026-11-02/tenant=007/part\.parquet' is damaged"):
        corpus.changes(source, other)
    assert ids(corpus, source, Partition.all_of("k", [other, Partition(column="tenant", value="a b")])) == ["4"]


def test_another_partitions_damage_is_not_blamed(hive: Path, corpus: Corpus) -> None:
    (hive / "day=2026-11-01" / "tenant=007" / "part.parquet").write_bytes(b"no Parquet file")
    write_hive(hive, "2026-11-02", "007", [3], at=["no time"])
    write_hive(hive, "2026-11-02", "a%20b", [4], at=["2026-01-01"])
    noon = Partition(column="at", start=datetime(2026, 11, 1), end=datetime(2026, 11, 2))
    partition = Partition.all_of("k", [Partition(column="day", value="2026-11-02"), noon])
    with pytest.raises(SourceError, match="no time"):
        corpus.changes(ParquetTable(f"{hive}/**/*.parquet"), partition)


def test_invalid_texts_of_a_hive_partition_are_set_aside(hive: Path, corpus: Corpus) -> None:
    write_hive(hive, "2026-11-01", "007", [1, 5], note=[BAD, b"fine"])
    write_hive(hive, "2026-11-01", "a%20b", [2], note=[b"well"])
    write_hive(hive, "2026-11-02", "007", [3], note=[BAD])
    source = ParquetTable(
        f"{hive}/*/*/*.parquet", text_columns="note", metadata_columns=["tenant", "file"], file_column="file"
    )
    found = corpus.changes(source, FIRST)
    assert (found.new, found.invalid_text) == (2, 1)
    assert sorted(corpus.snapshot["tenant"].to_pylist()) == ["007", "a b"]
    assert "day=2026-11-01/tenant=007/part.parquet" in corpus.snapshot["file"].to_pylist()
    (row,) = found.quarantined.to_pylist()
    assert "day=2026-11-01/tenant=007/part.parquet holds bytes in column note" in row["message"]


def test_an_invalid_id_counts_in_every_bucket_and_a_valid_one_in_one(tmp_path: Path, corpus: Corpus) -> None:
    write_file(tmp_path / "a.parquet", {"id": [b"one", BAD, b"two"], "text": ["a", "b", "c"]})
    source = ParquetTable(tmp_path / "a.parquet")
    found = [corpus.changes(source, Partition(str(number), bucket=(number, 3))) for number in range(3)]
    assert [changes.invalid_text for changes in found] == [1, 1, 1]
    assert sum(changes.new for changes in found) == 2


def test_a_column_that_only_other_partitions_have_is_null_here(hive: Path, corpus: Corpus) -> None:
    write_hive(hive, "2026-11-02", "007", [3], rating=[4.5])
    write_hive(hive, "2026-11-02", "a%20b", [4], rating=[5])
    source = ParquetTable(f"{hive}/*/*/*.parquet", metadata_columns="rating", partition_column="day")
    assert ids(corpus, source, FIRST) == ["1", "2"]
    assert corpus.snapshot["rating"].to_pylist() == [None, None]


def test_a_partition_with_narrower_types_keeps_those_of_the_store(hive: Path, corpus: Corpus) -> None:
    """pandas writes whole numbers as doubles as soon as one is missing: all partitions go into one generation."""
    for day, rating in (("2026-11-01", 4), ("2026-11-02", 4.5)):
        for tenant, number in (("007", 1), ("a%20b", 2)):
            write_hive(hive, day, tenant, [number], rating=[rating])
    source = ParquetTable(f"{hive}/*/*/*.parquet", metadata_columns="rating")
    corpus.embed(source, FIRST)
    assert corpus.snapshot.schema.field("rating").type == pa.float64()
    assert corpus.changes(source, FIRST).unchanged == 2
    corpus.embed(source, Partition("d2", column="day", value="2026-11-02"))
    assert len(corpus.store.generations()) == 1


def test_a_partition_without_files_has_no_rows(hive: Path, corpus: Corpus) -> None:
    source = ParquetTable(f"{hive}/*/*/*.parquet", metadata_columns=["tenant"])
    assert ids(corpus, source, Partition("none", column="day", value="2027-01-01")) == []


def test_the_hive_null_is_a_null(hive: Path, corpus: Corpus) -> None:
    write_hive(hive, "__HIVE_DEFAULT_PARTITION__", "007", [9])
    source = ParquetTable(f"{hive}/*/*/*.parquet", metadata_columns=["day"])
    assert ids(corpus, source, Partition("n", column="day", value="__HIVE_DEFAULT_PARTITION__")) == []
    assert len([day for day in ids(corpus, source) if day == "9"]) == 1
    assert None in corpus.snapshot["day"].to_pylist()


def test_a_query_may_make_a_partition_column_of_a_folder(hive: Path, corpus: Corpus) -> None:
    source = ParquetTable(
        f"{hive}/*/*/*.parquet",
        query="SELECT * REPLACE (CAST(day AS DATE) + 1 AS day) FROM files",
        metadata_columns="day",
        name="docs",
    )
    assert ids(corpus, source, Partition("d", column="day", value="2026-11-02")) == ["1", "2"]
    assert corpus.snapshot.schema.field("day").type == pa.date32()


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing 'x'"
    for name, number in (("a.parquet", 1), ("ö/b.parquet", 2), ("c%20.parquet", 3)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, {"id": [number], "text": [f"text {number}"], "file": ["of the file itself"]})
    return folder


def test_each_file_is_a_partition(landing: Path, corpus: Corpus) -> None:
    source = ParquetTable(
        f"{landing}/**/*.parquet", file_column="file", metadata_columns="file", partition_column="file"
    )
    names = source.file_names()
    assert sorted(names) == ["a.parquet", "c%20.parquet", "ö/b.parquet"]
    assert {name: ids(corpus, source, Partition(name, value=name)) for name in names} == {
        "a.parquet": ["1"],
        "ö/b.parquet": ["2"],
        "c%20.parquet": ["3"],
    }
    assert corpus.snapshot["file"].to_pylist() == [names[-1]]
    assert ids(corpus, source, Partition("gone.parquet", value="gone.parquet")) == []


def test_a_files_partition_reads_that_file_alone(landing: Path, corpus: Corpus) -> None:
    source = ParquetTable(
        f"{landing}/**/*.parquet", file_column="name", metadata_columns="file", partition_column="name"
    )
    (landing / "ö" / "b.parquet").write_bytes(b"")
    assert ids(corpus, source, Partition("a", value="a.parquet")) == ["1"]
    with pytest.raises(SourceError, match=r"ö/b\.parquet\" is damaged"):
        corpus.changes(source, Partition("b", value="ö/b.parquet"))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["{0}/a.parquet"], ["a.parquet"]),
        (["{0}/a.parquet", "{0}/ö/b.parquet"], ["a.parquet", "ö/b.parquet"]),
        (["{0}/*.parquet", "{0}/ö/*.parquet"], ["a.parquet", "c%20.parquet", "ö/b.parquet"]),
        (["{0}//./ö/../ö/*.parquet"], ["b.parquet"]),
        (["{0}/*/[b].parquet"], ["ö/b.parquet"]),
    ],
)
def test_names_begin_below_the_folder_that_all_patterns_share(
    landing: Path, corpus: Corpus, patterns: list[str], names: list[str]
) -> None:
    source = ParquetTable(
        [pattern.format(landing) for pattern in patterns], name="docs", file_column="f", metadata_columns="f"
    )
    assert sorted(source.file_names()) == names
    ids(corpus, source)
    assert sorted(corpus.snapshot["f"].to_pylist()) == names


@pytest.fixture
def lake() -> Iterator[str]:
    """A folder of fsspec's filesystem in memory."""
    folder = f"memory://{uuid4().hex}"
    yield folder
    memory = fsspec.filesystem("memory")
    if memory.exists(folder):
        memory.rm(folder, recursive=True)


def put(address: str, ids: list[int]) -> None:
    with fsspec.open(address, "wb") as file:
        pq.write_table(pa.table({"id": ids, "text": [f"text {number}" for number in ids]}), file)


def test_any_filesystem_of_fsspec_can_be_read(lake: str, corpus: Corpus) -> None:
    put(f"{lake}/day=2026-11-01/a.parquet", [1, 2])
    put(f"{lake}/day=2026-11-02/b.parquet", [3])
    source = ParquetTable(f"{lake}/*/*.parquet", name="docs", file_column="file", metadata_columns=["day", "file"])
    assert source.file_names() == ["day=2026-11-01/a.parquet", "day=2026-11-02/b.parquet"]
    assert ids(corpus, source, FIRST) == ["1", "2"]
    assert set(corpus.snapshot["file"].to_pylist()) == {"day=2026-11-01/a.parquet"}
    put(f"{lake}/day=2026-11-01/later.parquet", [4])
    assert ids(corpus, source, FIRST) == ["1", "2", "4"]


def test_an_address_with_no_files_is_no_path_of_this_machine(lake: str, corpus: Corpus) -> None:
    with pytest.raises(SourceError, match=r"no Parquet file at 'memory://.*': check the address$"):
        ids(corpus, ParquetTable(f"{lake}/*.parquet", name="docs"))


def test_a_damaged_file_elsewhere_is_named(lake: str, corpus: Corpus) -> None:
    put(f"{lake}/good.parquet", [1])
    with fsspec.open(f"{lake}/bad.parquet", "wb") as file:
        file.write(b"nothing of the kind")
    with pytest.raises(SourceError, match=r"bad\.parquet' is damaged"):
        corpus.changes(ParquetTable(f"{lake}/*.parquet", name="docs"))


def test_a_filesystem_that_refuses_is_named(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "glob", refuse)
    with pytest.raises(SourceError, match=r"cannot list the Parquet files .*: PermissionError: Access Denied$"):
        ParquetTable(f"{lake}/*.parquet", name="docs").file_names()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("nosuch://bucket/a.parquet", "cannot read nosuch:// paths: Protocol not known: nosuch"),
        ("dropbox://bucket/a.parquet", "cannot read dropbox:// paths: .*dropboxdrivefs"),
    ],
)
def test_a_protocol_that_nothing_reads_says_what_to_install(files: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        metadata_schema(ParquetTable(files, metadata_columns="tenant"))

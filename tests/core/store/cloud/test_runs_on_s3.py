"""Whole runs and commands with sources and stores on a real S3 server."""

import io
import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_proxy import OpenOn, Proxy, s3_client

from fletcher_core import Embedder
from fletcher_core.cli import main
from fletcher_core.errors import SourceError
from fletcher_core.pipeline import materialize
from fletcher_core.source_version import digest, file_states
from fletcher_core.sources import ParquetTable
from fletcher_core.store import VectorStore, live_table

TEXTS = {f"id{number}": f"text number {number % 17} of {number}" for number in range(60)}


class Uploads:
    """A folder of Parquet files in the bucket of the test's store."""

    def __init__(self, proxy: Proxy, address: str) -> None:
        self.bucket = address.removeprefix("s3://").split("/")[0]
        self.client: Any = s3_client(proxy)
        self.source = ParquetTable(
            f"s3://{self.bucket}/in/*/*.parquet", name="docs", id_column="id", text_columns=("text",)
        )

    def put(self, texts: dict[str, str], name: str = "day=1/a.parquet") -> None:
        file = io.BytesIO()
        pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), file)
        self.client.put_object(Bucket=self.bucket, Key=f"in/{name}", Body=file.getvalue())


@pytest.fixture
def uploads(proxy: Proxy, address: str) -> Uploads:
    uploads = Uploads(proxy, address)
    uploads.put(TEXTS)
    return uploads


def vectors(store: VectorStore) -> dict[str, bytes]:
    table = live_table(store, columns=["id", "vector"])
    return {row["id"]: repr(row["vector"]).encode() for row in table.to_pylist()}


def test_a_second_run_from_another_machine_embeds_only_what_changed(
    on: OpenOn, uploads: Uploads, minilm: Embedder, tmp_path: Path
) -> None:
    first = materialize(uploads.source, embedder=minilm, store=on("here"))
    assert (first.new, first.embedded) == (60, 60)
    changed = {**TEXTS, "id3": "another text", "new": "a new text"}
    del changed["id4"]
    uploads.put(changed)
    store = on("there")
    second = materialize(uploads.source, embedder=minilm, store=store)
    assert (second.new, second.changed, second.deleted, second.unchanged) == (1, 1, 1, 58)
    assert second.embedded == 2
    with VectorStore.open(tmp_path / "local", collection="docs") as local:
        materialize(uploads.source, embedder=minilm, store=local)
        assert vectors(store) == vectors(local) == vectors(on("a third"))
        assert len(vectors(local)) == 60


def test_a_run_under_faults_stores_the_same_vectors(
    on: OpenOn, uploads: Uploads, minilm: Embedder, proxy: Proxy, tmp_path: Path
) -> None:
    with VectorStore.open(tmp_path / "local", collection="docs") as local:
        materialize(uploads.source, embedder=minilm, store=local)
        expected = vectors(local)
    seed = 3
    print("seed", seed)
    chance = random.Random(seed)
    proxy.fault = lambda number, method, path: chance.choices(
        ["", "slow down", "drop before", "drop after"], [12, 1, 1, 1]
    )[0]  # type: ignore[return-value]
    report = materialize(uploads.source, embedder=minilm, store=on("here"))
    assert report.new == 60
    assert sum(proxy.faults.values()) > proxy.faults[""] + 3
    assert vectors(on("there")) == expected


def test_a_source_on_object_storage_has_a_version_and_says_what_is_wrong(uploads: Uploads, proxy: Proxy) -> None:
    before = digest(file_states(uploads.source))
    assert digest(file_states(uploads.source)) == before
    uploads.put({"id0": "changed"})
    assert digest(file_states(uploads.source)) != before
    with pytest.raises(SourceError, match=r"no Parquet file at 's3://.*nowhere"):
        ParquetTable(f"s3://{uploads.bucket}/nowhere/*.parquet", name="docs", id_column="id").file_names()


def test_commands_take_an_address(
    on: OpenOn, uploads: Uploads, minilm: Embedder, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = on("here")
    for texts in (TEXTS, {**TEXTS, "id3": "another text"}):
        uploads.put(texts)
        materialize(uploads.source, embedder=minilm, store=store)
    store.close()
    named = ["--store", address, "--collection", "docs"]
    assert main(["status", "--store", address]) == 0
    shown = capsys.readouterr().out
    assert f"docs in {address}" in shown
    assert "60 in 2 files" in shown
    assert main(["compact", *named]) == 0
    assert "2 -> 1 files, 61 -> 60 rows" in capsys.readouterr().out
    assert main(["quarantine", "list", *named]) == 0
    assert main(["drop", *named, "--partition", ""]) == 0
    assert "60 rows of partition '' are deleted" in capsys.readouterr().out
    assert main(["compact", "--store", address, "--collection", "other"]) != 0
    assert f"there are no vectors of 'other' in {address}: it has the collections docs" in capsys.readouterr().err


def test_the_segments_of_a_bucket_can_be_read_by_anyone(
    on: OpenOn, uploads: Uploads, minilm: Embedder, address: str, proxy: Proxy
) -> None:
    from fletcher_core.filesystems import make_readable

    materialize(uploads.source, embedder=minilm, store=on("here"))
    with duckdb.connect() as connection:
        make_readable(connection, [address])
        found = connection.execute(
            f"SELECT count(*) FROM read_parquet('{address}/*/segments/**/*.parquet') WHERE op = 'upsert'"
        ).fetchall()
    assert found == [(60,)]

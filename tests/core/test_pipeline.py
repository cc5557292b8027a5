"""Whole materializations: DuckDB and Parquet in, the store and a real (embedded) Longbow out."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fletcher_core import Embedder
from fletcher_core.cli import main
from fletcher_core.engines.openvino import OpenVinoEngine
from fletcher_core.errors import InputError, RunCancelled, SourceError, StoreError, StoreLockedError
from fletcher_core.longbow.breaker import BreakerSettings, CircuitBreaker, Proof
from fletcher_core.longbow.client import LongbowClient, LongbowSettings, PutResult
from fletcher_core.longbow.embedded import embedded_credentials, ensure_embedded, stop_embedded
from fletcher_core.longbow.server import Faults, LongbowServer
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.search import search
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.tokenizers import EncodedTexts
from fletcher_core.window import Window, open_window


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "db.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER, text VARCHAR, tag VARCHAR, day DATE)")
        connection.executemany(
            "INSERT INTO notes VALUES (?, ?, ?, ?)",
            [(n, f"note number {n} about {word}", word, f"2026-11-0{1 + n % 3}") for n, word in enumerate(WORDS)],
        )
    return path


WORDS = ["cats", "dogs", "trains", "planes", "music", "bread", "rivers", "stars", "chess", "rain"] * 3


@pytest.fixture
def source(database: Path) -> DuckDBTable:
    return DuckDBTable(database, "notes", metadata_columns=("tag",), partition_column="day")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore.open(tmp_path / "store", collection="notes") as opened:
        yield opened


@pytest.fixture(scope="module")
def longbow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongbowClient]:
    folder = tmp_path_factory.mktemp("longbow")
    address = ensure_embedded(folder)
    yield LongbowClient(LongbowSettings(address.data, address.meta))
    stop_embedded(folder)


def execute(database: Path, *statements: str) -> None:
    with duckdb.connect(str(database)) as connection:
        for statement in statements:
            connection.execute(statement)


def stored(store: VectorStore) -> dict[str, np.ndarray]:
    generation = store.current()
    assert generation is not None
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT id, vector FROM ({generation.live_sql()})").fetchall()
    assert len(rows) == len({id_ for id_, _ in rows})
    return {id_: np.array(vector, np.float32) for id_, vector in rows}


def test_only_what_changed_is_embedded_and_search_sees_the_difference(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder, longbow: LongbowClient
) -> None:
    first = materialize(source, embedder=minilm, store=store, longbow=longbow)
    assert (first.new, first.embedded, first.cache_hits, first.rows_in_store) == (30, 30, 0, 30)
    assert first.delivery.searchable == first.delivery.sent == 30
    assert first.delivery.problem == ""
    assert first.tokens == sum(len(minilm.encoder.encode([t]).sequences.ids) for t in texts_of(database))
    again = materialize(source, embedder=minilm, store=store, longbow=longbow)
    assert (again.unchanged, again.embedded, again.delivery.bytes_sent) == (30, 0, 0)
    execute(
        database,
        "UPDATE notes SET text = 'a recipe for sourdough' WHERE id = 5",
        "DELETE FROM notes WHERE id = 7",
        "INSERT INTO notes VALUES (99, 'locomotives and railways', 'trains', '2026-11-01')",
    )
    third = materialize(source, embedder=minilm, store=store, longbow=longbow)
    assert (third.new, third.changed, third.deleted, third.unchanged, third.embedded) == (1, 1, 1, 28, 2)
    assert third.delivery.sent == 2
    hits = search(store, longbow, minilm, "a recipe for sourdough", k=100)
    assert hits[0].id == "5"
    assert sorted(int(hit.id) for hit in hits) == sorted([*range(7), *range(8, 30), 99])
    assert hits[0].cosine == pytest.approx(
        float(stored(store)["5"] @ minilm.embed_query("a recipe for sourdough")), abs=1e-4
    )


def texts_of(database: Path) -> list[str]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY id").fetchall()]


def test_vectors_belong_to_their_rows(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    settings = MaterializeSettings(segment_rows=7)
    materialize(source, embedder=minilm, store=store, settings=settings)
    expected = minilm.embed(texts_of(database))
    found = stored(store)
    assert all(np.array_equal(found[str(n)], expected[n]) for n in range(30))


def test_parquet_files_with_bad_rows_lose_only_those(tmp_path: Path, store: VectorStore, minilm: Embedder) -> None:
    """Peers' defect 6: one poison row among many must not cost the others."""
    rows = {
        "id": ["a", "b", "c", "d", "d", None, "e", "e", "f", "g"],
        "text": ["good", None, " \t\u200b\x07", "one", "two", "no id", "same", "same", "x" * 1_000_000, "last"],
    }
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table(rows).slice(0, 5), tmp_path / "files" / "1.parquet")
    pq.write_table(pa.table(rows).slice(5), tmp_path / "files" / "2.parquet")
    report = materialize(ParquetTable(str(tmp_path / "files" / "*.parquet")), embedder=minilm, store=store)
    assert sorted(stored(store)) == ["a", "e", "f", "g"]
    assert (report.null_text, report.empty_text, report.null_ids) == (1, 1, 1)
    assert (report.skipped, report.quarantined, report.truncated) == (3, 1, 0)
    quarantined = store.quarantine.read().to_pylist()
    assert [(row["id"], row["reason"]) for row in quarantined] == [("d", "duplicate_id")]
    settings = MaterializeSettings(on_empty="error")
    with pytest.raises(InputError, match="on_empty"):
        materialize(
            ParquetTable(str(tmp_path / "files" / "*.parquet")), embedder=minilm, store=store, settings=settings
        )


def test_truncated_rows_are_counted_and_flagged(database: Path, source: DuckDBTable, store: VectorStore) -> None:
    execute(database, "UPDATE notes SET text = repeat('word ', 5000) WHERE id = 3")
    embedder = Embedder.load(max_length=32)
    report = materialize(source, embedder=embedder, store=store)
    assert report.truncated == 1
    generation = store.current()
    assert generation is not None
    flagged = f"SELECT id, tokens FROM ({generation.live_sql()}) WHERE truncated"
    assert duckdb.sql(flagged).fetchall() == [("3", 5002)]


def test_too_long_rows_are_quarantined_under_the_error_policy(
    database: Path, source: DuckDBTable, store: VectorStore
) -> None:
    execute(database, "UPDATE notes SET text = repeat('word ', 100) WHERE id = 3")
    report = materialize(source, embedder=Embedder.load(max_length=32, long_text="error"), store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 29)
    (row,) = store.quarantine.read().to_pylist()
    assert (row["id"], row["reason"]) == ("3", "too_long")
    assert "102 tokens and the limit is 32" in row["message"]


def test_a_refused_row_does_not_keep_its_old_vector(
    database: Path, source: DuckDBTable, store: VectorStore, longbow: LongbowClient
) -> None:
    embedder = Embedder.load(max_length=32, long_text="error")
    materialize(source, embedder=embedder, store=store, longbow=longbow)
    execute(database, "UPDATE notes SET text = repeat('word ', 100) WHERE id = 3")
    report = materialize(source, embedder=embedder, store=store, longbow=longbow)
    assert (report.changed, report.quarantined, report.rows_in_store) == (1, 1, 29)
    assert "3" not in stored(store)
    assert "3" not in [hit.id for hit in search(store, longbow, embedder, "note number 3", k=100)]


def test_a_row_with_a_bad_vector_is_quarantined_and_the_others_go_on(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = OpenVinoEngine.run

    def damaged(self, *arguments):  # type: ignore[no-untyped-def]
        for place, vectors in enumerate(honest(self, *arguments)):
            if place == 0:
                vectors[0, 0] = np.nan
            yield vectors

    monkeypatch.setattr(OpenVinoEngine, "run", damaged)
    report = materialize(source, embedder=minilm, store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 29)
    (row,) = store.quarantine.read().to_pylist()
    assert row["reason"] == "invalid_vector"
    monkeypatch.undo()
    healed = materialize(source, embedder=minilm, store=store)
    assert (healed.new, healed.quarantined, healed.rows_in_store) == (1, 0, 30)
    assert store.quarantine.read().num_rows == 0


def test_a_row_whose_text_is_no_unicode_is_quarantined_and_the_others_go_on(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB lets no such text through; should another source do, the tokenizer notices."""
    honest = minilm.encoder.encode

    def damaged(texts: pa.ChunkedArray) -> EncodedTexts:
        values = [text.encode() for text in texts.to_pylist()]
        values[7] = values[7].replace(b"note", b"n\xf6te")
        return honest(pa.array(values))

    monkeypatch.setattr(minilm.encoder, "encode", damaged)
    report = materialize(source, embedder=minilm, store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 29)
    (row,) = store.quarantine.read().to_pylist()
    assert (row["reason"], row["message"].split(":")[0]) == (
        "not_tokenized",
        "the text is not valid UTF-8 from byte 1 on",
    )
    assert report.tokenizer == minilm.encoder.tokenizer.name
    assert 0 < report.tokenize_share < 1


def test_equal_texts_are_embedded_once(database: Path, store: VectorStore, minilm: Embedder) -> None:
    execute(database, "UPDATE notes SET text = tag")
    source = DuckDBTable(database, "notes")
    report = materialize(source, embedder=minilm, store=store)
    assert (report.new, report.embedded, report.cache_hits, report.rows_in_store) == (30, 10, 20, 30)
    vectors = stored(store)
    assert np.array_equal(vectors["0"], vectors["10"])
    assert np.array_equal(vectors["4"], minilm.embed(["music"])[0])


def test_long_texts_are_read_few_at_a_time(
    database: Path, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "CREATE TABLE long AS SELECT i AS id, i || repeat(' word', 2000) AS text FROM range(60) AS n(i)")
    windows: list[int] = []

    def counted(rows: pa.Table) -> Window:
        windows.append(rows.num_rows)
        return open_window(rows)

    monkeypatch.setattr("fletcher_core.run_compute.open_window", counted)
    monkeypatch.setattr("fletcher_core.partition_run.WINDOW_BYTES", 100_000)
    monkeypatch.setattr("fletcher_core.stream.WINDOW_BYTES", 100_000)
    report = materialize(DuckDBTable(database, "long"), embedder=minilm, store=store)
    assert report.embedded == sum(windows) == 60
    assert max(windows) <= 10


def test_vectors_take_their_own_bytes_on_disk_and_little_more(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    """Peers' defect 11: vectors kept as text doubled the database."""
    sizes = {}
    for vector_type in ("float32", "float16"):
        settings = MaterializeSettings(vector_type=vector_type)
        materialize(source, embedder=minilm, store=store, settings=settings)
        generation = store.current()
        assert generation is not None
        sizes[vector_type] = sum(segment.bytes for segment in generation.segments())
    assert sizes["float32"] < 30 * 384 * 4 + 16_000
    assert sizes["float16"] < 30 * 384 * 2 + 16_000


def test_changed_metadata_reuses_the_vector(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    materialize(source, embedder=minilm, store=store)
    before = stored(store)["4"]
    execute(database, "UPDATE notes SET tag = 'jazz' WHERE id = 4")
    report = materialize(source, embedder=minilm, store=store)
    assert (report.changed, report.embedded, report.cache_hits) == (1, 0, 1)
    assert np.array_equal(stored(store)["4"], before)


def test_another_model_embeds_everything_again_and_says_so(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    materialize(source, embedder=minilm, store=store)
    with caplog.at_level(logging.INFO):
        report = materialize(source, embedder=Embedder.load(dimension=64), store=store)
    assert (report.stale, report.embedded, report.new) == (30, 30, 0)
    assert "the model changed: 30 rows" in report.note
    assert "the model changed" in caplog.text
    assert next(iter(stored(store).values())).shape == (64,)
    assert len([g for g in store.generations() if g.segments()]) == 1, "the old model's rows are retired"


def test_partitions_are_independent(source: DuckDBTable, store: VectorStore, minilm: Embedder) -> None:
    keys = [f"2026-11-0{day}" for day in (1, 2, 3)]
    for key in keys:
        partition = Partition(key, value=key)
        assert materialize(source, embedder=minilm, store=store, partition=partition).new == 10
        assert materialize(source, embedder=minilm, store=store, partition=partition).unchanged == 10
    assert len(stored(store)) == 30


@pytest.mark.parametrize("whole_first", [True, False])
def test_rows_of_an_earlier_partitioning_are_never_found_again(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder, longbow: LongbowClient, whole_first: bool
) -> None:
    whole = [None]
    days = [Partition(key, value=key) for key in ("2026-11-01", "2026-11-02", "2026-11-03")]
    first, second = (whole, days) if whole_first else (days, whole)
    for partition in first:
        materialize(source, embedder=minilm, store=store, longbow=longbow, partition=partition)
    execute(database, "UPDATE notes SET text = 'now of something else' WHERE id = 3", "DELETE FROM notes WHERE id = 4")
    notes = [
        materialize(source, embedder=minilm, store=store, longbow=longbow, partition=partition).note
        for partition in second
    ]
    assert "those rows are dropped" in notes[0]
    assert not any(notes[1:])
    assert len(stored(store)) == 29
    hits = search(store, longbow, minilm, "note number 3 about planes", k=100)
    assert len(hits) == 29
    assert next(hit for hit in hits if hit.id == "3").cosine < 0.9


def test_two_runs_on_one_partition_do_not_meet(source: DuckDBTable, store: VectorStore, minilm: Embedder) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(progress: object) -> None:
        reached.set()
        go_on.wait(30)

    first = threading.Thread(
        target=materialize,
        args=(source,),
        kwargs={"embedder": minilm, "store": store, "progress": hold, "run_id": "run-1"},
    )
    first.start()
    assert reached.wait(60)
    try:
        with pytest.raises(StoreLockedError, match="run-1"):
            materialize(source, embedder=minilm, store=store, run_id="run-2")
    finally:
        go_on.set()
        first.join()
    assert len(stored(store)) == 30


def test_a_cancelled_run_keeps_what_it_committed(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    cancelled = threading.Event()
    seen = []

    def stop(progress: object) -> None:
        seen.append(progress)
        if len(seen) == 2:  # the second batch is through, so the first window is done
            cancelled.set()

    settings = MaterializeSettings(segment_rows=5)
    with pytest.raises(RunCancelled):
        materialize(source, embedder=minilm, store=store, settings=settings, progress=stop, cancelled=cancelled)
    kept = len(stored(store))
    assert 5 <= kept < 30
    rest = materialize(source, embedder=minilm, store=store)
    assert (rest.new, rest.unchanged) == (30 - kept, kept)


def test_without_longbow_the_run_succeeds_and_delivery_follows_later(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, longbow: LongbowClient
) -> None:
    nowhere = LongbowClient(LongbowSettings("127.0.0.1:9", "127.0.0.1:9", call_timeout=1.0))
    report = materialize(source, embedder=minilm, store=store, longbow=nowhere)
    assert (report.rows_in_store, report.delivery.pending, report.delivery.sent) == (30, 30, 0)
    assert "127.0.0.1:9" in report.delivery.problem
    late = materialize(source, embedder=minilm, store=store, longbow=longbow)
    assert (late.embedded, late.delivery.sent, late.delivery.searchable) == (0, 30, 30)


@pytest.mark.parametrize("delivery_timeout", [60.0, 0.2])
def test_a_run_waits_for_a_slow_server_that_did_not_work_before(
    source: DuckDBTable,
    store: VectorStore,
    minilm: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delivery_timeout: float,
) -> None:
    with LongbowServer(tmp_path / "slow") as server:
        breaker = CircuitBreaker(BreakerSettings(backoff=0.001))
        client = LongbowClient(LongbowSettings(server.address.data, server.address.meta), breaker=breaker)
        breaker.trip(Proof.TAKES_ROWS, "it hung")
        put = client.put

        def slow_put(*arguments: Any) -> PutResult:
            time.sleep(1.5)
            return put(*arguments)

        monkeypatch.setattr(client, "put", slow_put)
        settings = MaterializeSettings(delivery_timeout=delivery_timeout)
        report = materialize(source, embedder=minilm, store=store, longbow=client, settings=settings)
        if delivery_timeout < 1:
            assert report.delivery.problem.startswith("Longbow did not work before, and was still being tried")
        else:
            assert (report.delivery.searchable, report.delivery.problem) == (30, "")
        client.close()


def test_a_store_begun_anew_never_meets_the_old_ones_rows_in_longbow(
    database: Path, source: DuckDBTable, tmp_path: Path, minilm: Embedder, longbow: LongbowClient
) -> None:
    root = tmp_path / "store"
    with VectorStore.open(root, collection="notes") as old:
        materialize(source, embedder=minilm, store=old, longbow=longbow)
    shutil.rmtree(root)
    execute(database, "UPDATE notes SET text = 'entirely about volcanoes ' || id")
    with VectorStore.open(root, collection="notes") as new:
        materialize(source, embedder=minilm, store=new, longbow=longbow)
        hits = search(new, longbow, minilm, "entirely about volcanoes 4", k=100)
    assert len(hits) == 30
    assert hits[0].id == "4"
    assert hits[0].cosine == pytest.approx(1.0, abs=1e-4)


def test_cancelling_while_longbow_is_slow_does_not_wait_for_it(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, tmp_path: Path
) -> None:
    server = LongbowServer(tmp_path / "slow", faults=Faults(index_stall=True))
    client = LongbowClient(LongbowSettings(server.address.data, server.address.meta))
    cancelled = threading.Event()
    threading.Timer(5.0, cancelled.set).start()
    try:
        with pytest.raises(RunCancelled, match="all rows are in the store"):
            materialize(source, embedder=minilm, store=store, longbow=client, cancelled=cancelled)
    finally:
        server.close()
    assert len(stored(store)) == 30


def test_failures_name_the_thing_and_leave_the_store_usable(
    tmp_path: Path, database: Path, store: VectorStore, minilm: Embedder
) -> None:
    for faulty, message in [
        (DuckDBTable(database, "notes", text_columns="body"), "'body'"),
        (DuckDBTable(database, "note"), "'note'"),
        (DuckDBTable(tmp_path / "gone.duckdb", "notes"), r"gone\.duckdb"),
        (ParquetTable(str(tmp_path / "none-*.parquet")), "none-"),
    ]:
        with pytest.raises(SourceError, match=message):
            materialize(faulty, embedder=minilm, store=store)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    with pytest.raises(SourceError, match=r"torn\.parquet"):
        materialize(ParquetTable(str(tmp_path / "torn.parquet")), embedder=minilm, store=store)
    assert materialize(DuckDBTable(database, "notes"), embedder=minilm, store=store).new == 30


def test_the_source_is_free_for_writers_while_embedding(
    database: Path, source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    def write(progress: object) -> None:
        execute(database, "UPDATE notes SET tag = 'written' WHERE id = 1")

    assert materialize(source, embedder=minilm, store=store, progress=write).new == 30
    assert materialize(source, embedder=minilm, store=store).changed == 1


def test_the_command_searches_and_compacts(
    source: DuckDBTable,
    store: VectorStore,
    minilm: Embedder,
    longbow: LongbowClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    materialize(source, embedder=minilm, store=store, longbow=longbow, settings=MaterializeSettings(segment_rows=10))
    folder = ["--store", str(store.root), "--collection", "notes"]
    where = ["--longbow", longbow.address.data, "--longbow-meta", longbow.address.meta]
    assert main(["search", "kittens", "-k", "3", *folder, *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("tag=cats" in line for line in lines)
    assert main(["compact", *folder]) == 0
    assert "3 -> 1 files, 30 -> 30 rows" in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    for root, name in ((tmp_path / "none", "x"), (empty, "x"), (store.root, "y")):
        for command in (["compact"], ["search", "kittens"]):
            assert main([*command, "--store", str(root), "--collection", name]) == 1
            assert f"there are no vectors of '{name}' in" in capsys.readouterr().err
    assert not list(empty.iterdir())


def test_the_command_takes_a_resources_folder_and_finds_its_server(
    source: DuckDBTable, minilm: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "vectors"
    address = ensure_embedded(root / ".longbow")
    try:
        client = LongbowClient(LongbowSettings(address.data, address.meta))
        with client, VectorStore.open(root / "notes", collection="notes") as store:
            materialize(source, embedder=minilm, store=store, longbow=client)
        for folder in (root, root / "notes"):
            assert main(["search", "kittens", "-k", "1", "--store", str(folder), "--collection", "notes"]) == 0
            assert "tag=cats" in capsys.readouterr().out
    finally:
        stop_embedded(root / ".longbow")


def test_the_command_takes_its_token_from_the_environment_or_beside_a_private_server(
    source: DuckDBTable,
    minilm: Embedder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, elsewhere = tmp_path / "vectors", tmp_path / "elsewhere"
    address = ensure_embedded(root / ".longbow", private=True)
    credentials = embedded_credentials(root / ".longbow")
    token = (root / ".longbow" / "token").read_text()
    try:
        client = LongbowClient(LongbowSettings(address.data, address.meta, credentials=credentials))
        with client, VectorStore.open(root / "notes", collection="notes") as store:
            materialize(source, embedder=minilm, store=store, longbow=client)
        command = ["search", "kittens", "-k", "1", "--store", str(root), "--collection", "notes"]
        assert main(command) == 0
        assert "tag=cats" in capsys.readouterr().out
        named = [*command, "--longbow", address.data, "--longbow-meta", address.meta]
        assert main(named) == 0  # it is the server beside the store, whose token lies there
        (root / ".longbow" / "address.json").rename(elsewhere)
        assert main(named) == 1
        said = capsys.readouterr().err
        assert "asks for a token" in said
        assert "token_env is $FLETCHER_LONGBOW_TOKEN" in said
        elsewhere.rename(root / ".longbow" / "address.json")
        monkeypatch.setenv("FLETCHER_LONGBOW_TOKEN", token)
        assert main(named) == 0
        monkeypatch.setenv("FLETCHER_LONGBOW_TOKEN_HEADER", "x-api-key")
        assert main(named) == 0
        monkeypatch.setenv("FLETCHER_LONGBOW_TOKEN", f"{token}x")
        capsys.readouterr()
        assert main(named) == 1
        assert token not in (said := capsys.readouterr().err)
        assert "does not take the token" in said
        assert main([*named, "--longbow-ca", str(elsewhere)]) == 1
        assert "one without TLS" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main([*named, "--longbow-token", token])  # `ps` would show it
    finally:
        stop_embedded(root / ".longbow")


def test_a_slow_engine_commits_in_time_all_the_same(
    database: Path, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "CREATE TABLE many AS SELECT i AS id, 'text ' || i AS text FROM range(900) AS n(i)")
    monkeypatch.setattr("fletcher_core.run_compute._FEW_ROWS", 32)
    settings = MaterializeSettings(commit_seconds=0.01)  # within a quarter of it no engine does more than a few texts
    materialize(DuckDBTable(database, "many"), embedder=minilm, store=store, settings=settings)
    generation = store.current()
    assert generation is not None
    assert sum(segment.rows for segment in generation.segments()) == 900
    assert len(generation.segments()) >= 5


def test_a_run_ends_before_the_disk_is_full_and_goes_on_once_there_is_room(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = shutil.disk_usage, []

    def shrinking(path: Path) -> object:
        """A disk with room for the snapshot and two commits."""
        looks.append(path)
        return real(path)._replace(free=300 * 2**20 if len(looks) <= 3 else 100 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    few = MaterializeSettings(segment_rows=4)
    with pytest.raises(StoreError, match=r"100\.0 MiB are free, the commit of 4 rows needs 0\.0 MiB, and min_free_b"):
        materialize(source, embedder=minilm, store=store, settings=few)
    assert set(looks) == {store.root}
    assert len(stored(store)) == 8
    with pytest.raises(StoreError, match=r"the snapshot of changes needs .*Make room or lower min_free_bytes"):
        materialize(source, embedder=minilm, store=store, settings=few)
    roomy = MaterializeSettings(min_free_bytes=50 * 2**20)
    assert materialize(source, embedder=minilm, store=store, settings=roomy).new == 22
    assert len(stored(store)) == 30


def test_a_full_disk_during_change_detection_is_a_store_error(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(StoreError, match=r"the disk is full .*Make room on the disk"):
        materialize(source, embedder=minilm, store=store)
    monkeypatch.undo()
    assert materialize(source, embedder=minilm, store=store).new == 30
    assert not list((store.root / "work").iterdir())

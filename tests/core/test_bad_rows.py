"""A row that cannot be embedded, in whatever way, costs the others nothing and is kept with the reason."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.broken_engine import VARIABLE
from fletcher_core import Embedder
from fletcher_core.batching import Batching
from fletcher_core.cli import main
from fletcher_core.engines import EngineSpec
from fletcher_core.engines.bisection import run_around_failures
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.errors import EngineError, InputError, StoreError
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.stop import NEVER, Stop
from fletcher_core.store import VectorStore
from fletcher_core.tokenizers import TextEncoder
from fletcher_core.tokens import TokenBatch, cumulative

POISON = "zyzzyva"


class PickyEngine:
    """An engine that fails on every batch with one of `poisons` in it, or always."""

    name, device, precision, ahead = "picky", "here", "fp32", 3

    def __init__(self, engine: Any, poisons: set[int], always: bool = False, flaw: float | None = None) -> None:
        self.dimension = engine.dimension
        self.batching = engine.batching
        self.calls = 0
        self._engine, self._poisons, self._always, self._flaw = engine, poisons, always, flaw

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[np.ndarray]:
        in_flight: list[np.ndarray] = []
        for batch in batches:
            self.calls += 1
            if self._always or (self._flaw is None and self._poisons & set(batch.ids.tolist())):
                raise EngineError("the device does not like this")
            (vectors,) = self._engine.run([batch], stop)
            for row in range(len(batch)):
                ids = batch.ids[batch.cu_seqlens[row] : batch.cu_seqlens[row + 1]]
                if self._flaw is not None and self._poisons & set(ids.tolist()):
                    vectors[row] = self._flaw
            in_flight.append(vectors)
            if len(in_flight) == self.ahead:  # as engines do: an error loses what is in flight
                yield in_flight.pop(0)
        yield from in_flight


class Lengths:
    """Its vectors say what they were made of: length, first and last token."""

    dimension = 3
    batching = Batching("packed", 100)

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[np.ndarray]:
        for batch in batches:
            parts = np.split(batch.ids, batch.cu_seqlens[1:-1])
            yield np.array([[len(part), part[0], part[-1]] for part in parts], np.float32)


def token_of(embedder: Embedder, word: str) -> int:
    return int(embedder.encoder.encode([word]).sequences.ids[1])


def with_engine(embedder: Embedder, engine: Any, second: Any = None) -> Embedder:
    encoders = (embedder.encoder, embedder.query_encoder)
    return Embedder(embedder.package, engine, *encoders, embedder.card, embedder.normalize, None, second)


@pytest.fixture
def table(tmp_path: Path) -> DuckDBTable:
    database = tmp_path / "notes.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER, text VARCHAR)")
        texts = [(n, POISON if n == 17 else f"note {n} about the weather") for n in range(50)]
        connection.executemany("INSERT INTO notes VALUES (?, ?)", texts)
    return DuckDBTable(database, "notes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore.open(tmp_path / "store", collection="notes") as opened:
        yield opened


def stored(store: VectorStore) -> dict[str, np.ndarray]:
    generation = store.current()
    assert generation is not None
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT id, vector FROM ({generation.live_sql()})").fetchall()
    return {id_: np.array(vector, np.float32) for id_, vector in rows}


def quarantined(store: VectorStore) -> list[tuple[str, str]]:
    return [(row["id"], row["reason"]) for row in store.quarantine.read().to_pylist()]


def test_one_poison_row_among_fifty_costs_only_itself(minilm: Embedder, table: DuckDBTable, store: VectorStore) -> None:
    """Peers' defect 6: pgai rolls the whole batch back."""
    picky = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}))
    report = materialize(table, embedder=picky, store=store)
    assert (report.new, report.embedded, report.quarantined, report.rows_in_store) == (50, 50, 1, 49)
    rows = stored(store)
    assert sorted(map(int, rows)) == [n for n in range(50) if n != 17]
    for id_, vector in rows.items():
        assert np.allclose(vector, minilm.embed([f"note {id_} about the weather"])[0], atol=1e-6)
    (row,) = store.quarantine.read().to_pylist()
    assert (row["id"], row["reason"], row["attempts"], row["run_id"]) == ("17", "engine_failed", 1, report.run_id)
    assert row["message"] == "the text cannot be computed: the device does not like this"
    assert row["content_hash"]
    again = materialize(table, embedder=minilm, store=store)
    assert (again.new, again.quarantined, again.rows_in_store) == (1, 0, 50)


def test_a_row_that_fails_again_and_again_is_not_tried_for_ever(
    minilm: Embedder, table: DuckDBTable, store: VectorStore
) -> None:
    engine = PickyEngine(minilm.engine, {token_of(minilm, POISON)})
    picky = with_engine(minilm, engine)
    for attempts in (1, 2, 3):
        materialize(table, embedder=picky, store=store)
        assert store.quarantine.read()["attempts"].to_pylist() == [attempts]
    calls = engine.calls
    for _ in range(2):
        report = materialize(table, embedder=picky, store=store)
        assert (report.new, report.quarantined, report.embedded, report.rows_in_store) == (1, 1, 0, 49)
    assert engine.calls == calls
    assert store.quarantine.read()["attempts"].to_pylist() == [3]
    assert store.quarantine.retry(["1", "2"]) == 0
    assert store.quarantine.retry(["17"]) == 1
    assert store.quarantine.read()["attempts"].to_pylist() == [0]
    materialize(table, embedder=picky, store=store)
    assert engine.calls > calls
    assert store.quarantine.read()["attempts"].to_pylist() == [1]
    for _ in range(3):
        materialize(table, embedder=picky, store=store)
    with duckdb.connect(str(table.database)) as connection:
        connection.execute("UPDATE notes SET text = 'another text' WHERE id = 17")
    assert materialize(table, embedder=picky, store=store).rows_in_store == 50
    assert quarantined(store) == []


@pytest.mark.parametrize("tags", [(), ("tag",)])
@pytest.mark.parametrize("changed", ["id = 17", "true"])
def test_a_row_that_was_stored_and_is_refused_now_leaves_the_store(
    minilm: Embedder, store: VectorStore, tmp_path: Path, tags: tuple[str, ...], changed: str
) -> None:
    """Whatever columns the snapshot has, and whether all rows of it changed or one."""
    database = tmp_path / "tagged.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "CREATE TABLE notes AS SELECT range AS id, 'fine ' || range AS text, 'x' AS tag FROM range(20)"
        )
    source = DuckDBTable(database, "notes", metadata_columns=tags)
    materialize(source, embedder=minilm, store=store)
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            f"UPDATE notes SET text = CASE id WHEN 17 THEN '{POISON}' ELSE text || '!' END WHERE {changed}"
        )
    picky = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}))
    report = materialize(source, embedder=picky, store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 19)
    assert "17" not in stored(store)
    assert quarantined(store) == [("17", "engine_failed")]


def test_a_row_that_was_given_up_is_not_found_by_its_old_text(
    minilm: Embedder, table: DuckDBTable, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(table.database)) as connection:
        connection.execute("UPDATE notes SET text = 'good at first' WHERE id = 17")
    materialize(table, embedder=minilm, store=store)
    with duckdb.connect(str(table.database)) as connection:
        connection.execute("UPDATE notes SET text = ? WHERE id = 17", [POISON])
    picky = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}))
    with monkeypatch.context() as patch:  # the quarantine is written, and then the run ends
        patch.setattr(
            "fletcher_core.partition_run.PartitionRun.commit",
            lambda run, rows: (_ for _ in ()).throw(StoreError("full")),
        )
        for _ in range(3):
            with pytest.raises(StoreError, match="full"):
                materialize(table, embedder=picky, store=store)
    assert "17" in stored(store)
    report = materialize(table, embedder=picky, store=store)
    assert (report.embedded, report.quarantined) == (0, 1)
    assert "17" not in stored(store)


def test_a_call_names_the_text_that_the_engine_fails_on(minilm: Embedder) -> None:
    """Peers' defect 1: after an exception in the forward pass infinity's worker is gone, and callers wait for ever."""
    picky = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}))
    with pytest.raises(EngineError, match="text 2 cannot be computed: the device does not like this"):
        picky.embed(["one", "two", POISON, "four"])
    assert np.array_equal(picky.embed(["one", "two"]), minilm.embed(["one", "two"]))


def test_an_engine_that_fails_on_everything_ends_the_run_and_blames_no_row(
    minilm: Embedder, table: DuckDBTable, store: VectorStore
) -> None:
    engine = PickyEngine(minilm.engine, set(), always=True)
    with pytest.raises(EngineError, match="the device does not like this"):
        materialize(table, embedder=with_engine(minilm, engine), store=store)
    assert quarantined(store) == []
    assert engine.calls < 30  # it was not tried on each of the rows


@pytest.mark.parametrize("flaw", [np.nan, np.inf, 0.0], ids=["NaN", "infinity", "zero"])
def test_a_vector_that_is_not_sound_is_computed_again_in_float32_on_another_engine(
    minilm: Embedder, table: DuckDBTable, store: VectorStore, flaw: float
) -> None:
    """Peers' defect 5: a zero vector that becomes NaN."""
    flawed = PickyEngine(minilm.engine, {token_of(minilm, POISON)}, flaw=flaw)
    rescued = with_engine(minilm, flawed, lambda: minilm.engine)
    report = materialize(table, embedder=rescued, store=store)
    assert (report.quarantined, report.rows_in_store, report.retried) == (0, 50, 1)
    assert np.array_equal(stored(store)["17"], minilm.embed([POISON])[0])
    assert np.array_equal(rescued.embed_query(POISON), minilm.embed_query(POISON))


def test_what_the_other_engine_cannot_help_is_quarantined(
    minilm: Embedder, table: DuckDBTable, store: VectorStore
) -> None:
    flawed = PickyEngine(minilm.engine, {token_of(minilm, POISON)}, flaw=np.nan)
    report = materialize(table, embedder=with_engine(minilm, flawed, lambda: flawed), store=store)
    assert (report.quarantined, report.rows_in_store, report.retried) == (1, 49, 0)
    (row,) = store.quarantine.read().to_pylist()
    assert row["reason"] == "invalid_vector"
    assert row["message"] == "the vector is not finite or has no length, neither in float32 on another engine"


def test_a_broken_other_engine_is_no_reason_to_fail(minilm: Embedder, table: DuckDBTable, store: VectorStore) -> None:
    flawed = PickyEngine(minilm.engine, {token_of(minilm, POISON)}, flaw=np.nan)
    broken = PickyEngine(minilm.engine, set(), always=True)
    report = materialize(table, embedder=with_engine(minilm, flawed, lambda: broken), store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 49)


class PanicException(BaseException):
    """What a panic in Rust code looks like: no Exception."""


@pytest.mark.parametrize(
    "failure", [PanicException("index out of bounds"), ValueError("bad"), MemoryError("no memory")]
)
def test_a_text_that_the_tokenizer_fails_on_is_quarantined(
    minilm: Embedder, table: DuckDBTable, store: VectorStore, failure: BaseException
) -> None:
    tokenizer = minilm.encoder.tokenizer

    class Fragile:
        name, prefix, suffix = tokenizer.name, tokenizer.prefix, tokenizer.suffix

        def encode(self, texts: Any, **arguments: Any) -> Any:
            if POISON in (texts if isinstance(texts, list) else texts.to_pylist()):
                raise failure
            return tokenizer.encode(texts, **arguments)

    encoder = TextEncoder(Fragile(), minilm.encoder.max_length, "truncate", 0)
    fragile = Embedder(minilm.package, minilm.engine, encoder, encoder, minilm.card, True)
    report = materialize(table, embedder=fragile, store=store)
    assert (report.quarantined, report.rows_in_store) == (1, 49)
    (row,) = store.quarantine.read().to_pylist()
    assert (row["id"], row["reason"]) == ("17", "not_tokenized")
    assert row["message"] == f"the text cannot be tokenized: {type(failure).__name__}: {failure}"
    with pytest.raises(InputError, match="text 1 cannot be tokenized"):
        fragile.embed(["fine", POISON])
    assert np.array_equal(fragile.embed(["fine", "good"]), minilm.embed(["fine", "good"]))


def test_a_text_that_kills_every_engine_is_found_and_the_others_are_embedded(
    minilm: Embedder, table: DuckDBTable, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"poison": token_of(minilm, POISON)}))
    spec = EngineSpec(str(minilm.package.folder), "minilm", "openvino", "fp32", True, 384, threads=1)
    spec = replace(spec, loader="chaos.broken_engine:load")
    engine = FailoverEngine(IsolatedEngine(spec), lambda: IsolatedEngine(spec), ProbeIntervals(60.0))
    embedder = with_engine(minilm, engine)
    report = materialize(table, embedder=embedder, store=store)
    embedder.close()
    assert (report.quarantined, report.rows_in_store) == (1, 49)
    assert quarantined(store) == [("17", "engine_failed")]
    assert "SIGABRT" in store.quarantine.read()["message"][0].as_py()
    assert report.engine_failures >= 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=8),
    st.sets(st.integers(100, 399), max_size=12),
)
def test_whatever_fails_the_rest_is_computed_in_its_order(lengths: list[list[int]], poisons: set[int]) -> None:
    made, ids = [], 100
    for batch_lengths in lengths:
        total = sum(batch_lengths)
        made.append(TokenBatch(np.arange(ids, ids + total, dtype=np.int32), cumulative(np.array(batch_lengths))))
        ids += total
    known_good = TokenBatch(np.array([1], np.int32), np.array([0, 1]))
    results = list(run_around_failures(PickyEngine(Lengths(), poisons), made, known_good))
    assert len(results) == len(made)
    for batch, result in zip(made, results, strict=True):
        for row, part in enumerate(np.split(batch.ids, batch.cu_seqlens[1:-1])):
            if poisons & set(part.tolist()):
                assert np.isnan(result.vectors[row]).all()
                assert result.failed[row] == "the device does not like this"
            else:
                assert row not in result.failed
                assert result.vectors[row].tolist() == [len(part), part[0], part[-1]]


def test_the_command_lists_the_quarantine_and_has_rows_tried_again(
    minilm: Embedder, table: DuckDBTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picky = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}))
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        for _ in range(2):
            materialize(table, embedder=picky, store=store)
    where = ["--store", str(tmp_path / "store"), "--collection", "notes"]
    assert main(["quarantine", "list", *where]) == 0
    assert capsys.readouterr().out == (
        "17  engine_failed  tried 2 times  the text cannot be computed: the device does not like this\n"
        "1 rows in the quarantine of 'notes': 1 engine_failed\n"
    )
    assert main(["quarantine", "list", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["attempts"] == 2
    assert main(["quarantine", "list", "--reason", "duplicate_id", *where]) == 0
    assert capsys.readouterr().out == "0 rows in the quarantine of 'notes'\n"
    assert main(["quarantine", "retry", "17", "18", *where]) == 1
    assert "not in the quarantine of 'notes': 18" in capsys.readouterr().err
    assert main(["quarantine", "retry", "17", *where]) == 0
    assert capsys.readouterr().out == "1 rows are tried again by the next run\n"
    assert main(["quarantine", "list", *where]) == 0
    assert "to be tried again" in capsys.readouterr().out


def test_one_text_that_kills_the_other_engine_too_costs_the_others_nothing(minilm: Embedder) -> None:
    texts = [f"text {number}" for number in range(40)]
    texts[7] = POISON
    poison, common = token_of(minilm, POISON), token_of(minilm, "text")
    flawed = PickyEngine(minilm.engine, {poison, common}, flaw=np.nan)
    second = PickyEngine(minilm.engine, {poison})
    embedder = with_engine(minilm, flawed, lambda: second)
    ((_, result),) = embedder.stream([(None, texts)])
    assert np.flatnonzero(~result.sound).tolist() == [7]
    assert result.retried == 39


def test_a_broken_chunk_makes_its_text_unsound(minilm: Embedder) -> None:
    chunked = Embedder.load(engine="openvino", precision="fp32", long_text="chunk", max_length=16, chunk_overlap=2)
    long = " ".join(["weather"] * 20 + [POISON] + ["weather"] * 20)
    flawed = with_engine(chunked, PickyEngine(chunked.engine, {token_of(minilm, POISON)}, flaw=0.0))
    ((_, result),) = flawed.stream([(None, ["fine", long])])
    assert result.sound.tolist() == [True, False]


def test_a_query_without_a_sound_vector_is_an_error(minilm: Embedder) -> None:
    flawed = with_engine(minilm, PickyEngine(minilm.engine, {token_of(minilm, POISON)}, flaw=np.nan))
    with pytest.raises(EngineError, match="the vector of the query is not finite or has no length"):
        flawed.embed_query(POISON)


def test_a_tokenizer_that_fails_on_everything_blames_no_text(
    minilm: Embedder, table: DuckDBTable, store: VectorStore
) -> None:
    tokenizer = minilm.encoder.tokenizer

    class Exhausted:
        name, prefix, suffix = tokenizer.name, tokenizer.prefix, tokenizer.suffix
        works = True

        def encode(self, texts: Any, **arguments: Any) -> Any:
            if not self.works:
                raise MemoryError("no memory")
            return tokenizer.encode(texts, **arguments)

    exhausted = Exhausted()
    encoder = TextEncoder(exhausted, minilm.encoder.max_length, "truncate", 0)
    embedder = Embedder(minilm.package, minilm.engine, encoder, encoder, minilm.card, True)
    exhausted.works = False
    with pytest.raises(MemoryError, match="no memory"):
        materialize(table, embedder=embedder, store=store)
    assert quarantined(store) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_engine_error_of_whoever_makes_the_batches_is_not_the_engines(minilm: Embedder, wrapped: bool) -> None:
    def texts() -> Iterator[tuple[None, list[str]]]:
        yield None, ["one", "two"]
        raise EngineError("another engine, asked for these texts")

    engine: Any = minilm.engine
    if wrapped:
        spec = EngineSpec(str(minilm.package.folder), "minilm", "openvino", "fp32", True, 384, threads=1)
        engine = FailoverEngine(IsolatedEngine(spec), lambda: IsolatedEngine(spec), ProbeIntervals(60.0))
    embedder = with_engine(minilm, engine)
    with pytest.raises(EngineError, match="another engine, asked for these texts"):
        list(embedder.stream(texts(), ahead=0))
    assert embedder.health.failed == 0
    if wrapped:
        embedder.close()

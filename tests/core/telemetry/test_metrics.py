"""Each metric moves when what it counts happens, and no metric grows series without end."""

import ast
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from chaos.broken_engine import VARIABLE
from fletcher_core import Embedder
from fletcher_core.cache import VectorCache
from fletcher_core.engines import EngineSpec, start_engine
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.longbow.breaker import BreakerSettings, Proof, breaker_of, forget_breakers
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.pipeline import materialize
from fletcher_core.search import search
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import metrics
from fletcher_core.telemetry.asked import Asked
from fletcher_core.telemetry.metrics import DEVICE_BUSY, REGISTRY
from fletcher_core.tokens import TokenBatch, cumulative

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [f"note {n} about the weather" for n in range(40)]


def value(name: str, **labels: str) -> float:
    """A sample as it is now; 0 for one that is not there yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def moved() -> Callable[..., float]:
    """By how much a sample has moved since the test began."""
    before = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
    }
    return lambda name, **labels: value(name, **labels) - before.get((name, *sorted(labels.items())), 0.0)


@pytest.fixture(scope="session")
def tiny(golden: Path) -> EngineSpec:
    return EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "openvino", "fp32", True, 128, threads=1)


@pytest.fixture
def broken(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineSpec]:
    def make(**faults: Any) -> EngineSpec:
        monkeypatch.setenv(VARIABLE, json.dumps(faults))
        return replace(tiny, loader="chaos.broken_engine:load")

    return make


def batches(count: int) -> Iterator[TokenBatch]:
    chance = np.random.default_rng(0)
    for _ in range(count):
        lengths = chance.integers(3, 40, 4)
        yield TokenBatch(chance.integers(5, 900, int(lengths.sum())).astype(np.int32), cumulative(lengths))


def with_engine(embedder: Embedder, engine: Any, second: Any = None) -> Embedder:
    encoders = (embedder.encoder, embedder.query_encoder)
    return Embedder(embedder.package, engine, *encoders, embedder.card, embedder.normalize, None, second)


def test_a_call_moves_what_the_engine_computes(
    minilm: Embedder, moved: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm.embed(TEXTS)
    lengths = minilm.encoder.encode(TEXTS).sequences.lengths
    plan = minilm.engine.batching.plan(lengths)
    computed = sum(minilm.engine.batching.computed_tokens(lengths[rows]) for rows in plan)
    assert moved("fletcher_vectors_total") == len(TEXTS)
    assert moved("fletcher_tokens_total") == lengths.sum()
    assert moved("fletcher_batch_tokens_count") == moved("fletcher_padding_ratio_count") == len(plan)
    assert moved("fletcher_batch_tokens_sum") == computed
    assert moved("fletcher_padding_ratio_sum") > 0
    for stage, pieces in (("tokenize", 1), ("compute", len(plan)), ("guard", 1)):
        assert moved("fletcher_stage_duration_seconds_count", stage=stage) == pieces
        assert moved("fletcher_stage_duration_seconds_sum", stage=stage) > 0
    later = time.perf_counter() + 1.5  # a second is over
    monkeypatch.setattr(DEVICE_BUSY, "_clock", lambda: later)
    assert moved("fletcher_device_busy_ratio_count") >= 1
    assert 0 < moved("fletcher_device_busy_ratio_sum") < moved("fletcher_device_busy_ratio_count")


def test_a_call_that_ends_early_leaves_no_work_behind(minilm: Embedder) -> None:
    stream = minilm.stream(iter([(0, TEXTS), (1, TEXTS)]))
    next(stream)
    stream.close()
    assert DEVICE_BUSY._working == 0


def test_vectors_that_are_not_sound_are_counted(
    minilm: Embedder, moved: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"nan_share": 1.0}))
    folder = str(minilm.package.folder)
    flawed = EngineSpec(folder, "minilm", "openvino", "fp32", True, 384, loader="chaos.broken_engine:load").load()
    with_engine(minilm, flawed, lambda: minilm.engine).embed(TEXTS[:5])
    assert moved("fletcher_output_invalid_total") == 5
    assert moved("fletcher_vectors_total") == 10  # each twice


def test_look_ups_in_a_cache_are_counted_also_when_it_is_gone(minilm: Embedder, moved: Callable[..., float]) -> None:
    cache = VectorCache(1_000_000)
    cached = with_engine(minilm, minilm.engine)
    cached.cache = cache
    cached.embed(TEXTS)
    cached.embed(TEXTS[:10])
    hits, misses = (moved("fletcher_cache_requests_total", result=result) for result in ("hit", "miss"))
    assert (hits, misses) == (cache.statistics().hits, cache.statistics().misses) == (10, 40)
    del cached, cache
    assert moved("fletcher_cache_requests_total", result="hit") == 10
    assert moved("fletcher_cache_requests_total", result="miss") == 40


def failover(primary: EngineSpec, standby: EngineSpec, first: float = 60.0) -> FailoverEngine:
    intervals = ProbeIntervals(first=first)
    watch = Supervision(hang_floor=30.0)
    return FailoverEngine(IsolatedEngine(primary, watch), lambda: IsolatedEngine(standby, watch), intervals)


def changes(moved: Callable[..., float], cause: str) -> float:
    return moved("fletcher_failovers_total", **{"from": "openvino", "to": "openvino", "cause": cause})


def test_a_lost_engine_and_its_return_are_counted(
    broken: Any, tiny: EngineSpec, moved: Callable[..., float], tmp_path: Path
) -> None:
    engine = failover(broken(abort=3, once=str(tmp_path / "once")), tiny, first=0.05)
    list(engine.run(batches(8)))
    assert (changes(moved, "lost"), moved("fletcher_panics_total", where="engine")) == (1, 1)
    deadline = time.monotonic() + 30
    while engine.health.standing_in and time.monotonic() < deadline:
        time.sleep(0.02)
    assert changes(moved, "recovered") == 1
    engine.close()
    assert moved("fletcher_panics_total", where="engine") == 1  # an end that we wanted


def test_an_engine_that_refuses_again_and_again_is_counted_once(
    broken: Any, tiny: EngineSpec, moved: Callable[..., float]
) -> None:
    engine = failover(broken(refused=7), tiny)
    refused, good = (TokenBatch(np.array([5, token, 6], np.int32), cumulative(np.array([3]))) for token in (7, 8))
    for batch in (refused, refused, good, refused, refused):
        list(engine.run([batch]))
    assert changes(moved, "refused") == 0  # never three in a row: it is used as before
    for _ in range(3):
        list(engine.run([refused]))
    assert engine.health.standing_in
    assert changes(moved, "refused") == 1
    assert moved("fletcher_panics_total", where="engine") == 0
    engine.close()


def test_a_distrusted_engine_is_counted(tiny: EngineSpec, moved: Callable[..., float]) -> None:
    engine = failover(tiny, tiny)
    engine.distrust("its vectors were wrong")
    list(engine.run(batches(8)))
    assert (changes(moved, "distrusted"), changes(moved, "lost")) == (1, 0)
    engine.close()


def test_an_engine_killed_from_outside_is_a_panic(tiny: EngineSpec, moved: Callable[..., float]) -> None:
    engine = IsolatedEngine(tiny)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="SIGKILL"):
        list(engine.run(batches(3)))
    assert moved("fletcher_panics_total", where="engine") == 1


def test_memory_is_that_of_the_processes_that_compute(tiny: EngineSpec) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    here, again = start_engine(tiny, "none"), start_engine(tiny, "none")
    ours = int(Path("/proc/self/statm").read_text().split()[1]) * page
    assert value("fletcher_device_memory_bytes", kind="resident") == pytest.approx(ours, rel=0.1)  # once, not twice
    apart = start_engine(tiny, "process")
    assert isinstance(apart, FailoverEngine)
    worker = int(Path(f"/proc/{apart.primary.pid}/statm").read_text().split()[1]) * page
    assert apart.device_memory()["resident"] == pytest.approx(worker, rel=0.2)
    assert value("fletcher_device_memory_bytes", kind="resident") == pytest.approx(ours + worker, rel=0.2)
    apart.close()
    assert apart.device_memory() == {}
    assert here is not again


def test_a_gpu_engine_names_four_kinds_of_memory(golden: Path) -> None:
    pytest.importorskip("mlx.core")
    from fletcher_core.engines.mlx.engine import MlxEngine
    from fletcher_core.models import ModelPackage, load_weights

    package = ModelPackage.read(golden / "bert_tiny", "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    engine = MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)
    memory = engine.device_memory()
    assert set(memory) == {"active", "cache", "peak", "limit"}
    assert memory["limit"] > memory["peak"] >= memory["active"] > 0
    engine.close()


def test_a_breaker_shows_its_state_also_when_time_alone_changes_it() -> None:
    forget_breakers()
    server = "127.0.0.1:1"
    breaker = breaker_of(server, BreakerSettings(backoff=0.2))
    assert REGISTRY.get_sample_value("fletcher_breaker_state", {"server": server}) == 0
    breaker.trip(Proof.ANSWERS, "it is down")
    assert value("fletcher_breaker_state", server=server) == 2
    time.sleep(0.25)
    assert value("fletcher_breaker_state", server=server) == 1
    breaker.reset()
    assert REGISTRY.get_sample_value("fletcher_breaker_state", {"server": server}) == 0
    del breaker
    forget_breakers()
    assert REGISTRY.get_sample_value("fletcher_breaker_state", {"server": server}) is None


@pytest.fixture
def table(tmp_path: Path) -> DuckDBTable:
    database = tmp_path / "notes.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE notes AS SELECT range AS id, 'note ' || range AS text FROM range(50)")
        connection.execute("INSERT INTO notes VALUES (7, 'another text of row 7')")
    return DuckDBTable(database, "notes")


def test_a_run_with_longbow_moves_its_stages_the_quarantine_and_the_bytes(
    minilm: Embedder, table: DuckDBTable, tmp_path: Path, moved: Callable[..., float]
) -> None:
    forget_breakers()
    with (
        LongbowServer(tmp_path / "server") as server,
        VectorStore.open(tmp_path / "store", collection="notes") as store,
    ):
        address = server.address
        with LongbowClient(LongbowSettings(address.data, address.meta)) as client:
            report = materialize(table, embedder=minilm, store=store, longbow=client)
            assert report.delivery.searchable == 49
            assert moved("fletcher_longbow_bytes_total", direction="sent") == report.delivery.bytes_sent
            received = moved("fletcher_longbow_bytes_total", direction="received")
            assert received > 0  # it was read back
            search(store, client, minilm, "note 3", 2)
            assert moved("fletcher_longbow_bytes_total", direction="received") > received
            assert REGISTRY.get_sample_value("fletcher_breaker_state", {"server": address.data}) == 0
    for stage in ("diff", "read", "tokenize", "compute", "guard", "write", "send"):
        assert moved("fletcher_stage_duration_seconds_count", stage=stage) >= 1, stage
    assert moved("fletcher_stage_duration_seconds_count", stage="diff") == 1
    assert moved("fletcher_stage_duration_seconds_sum", stage="compute") == pytest.approx(report.seconds.compute)
    assert moved("fletcher_stage_duration_seconds_sum", stage="send") == pytest.approx(report.seconds.send)
    assert moved("fletcher_quarantined_rows_total", reason="duplicate_id") == report.quarantined == 1


def test_reasons_that_nobody_knows_are_counted_together(tmp_path: Path, moved: Callable[..., float]) -> None:
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        rows = [{"id": str(n), "reason": f"reason {n}", "message": "so", "content_hash": str(n)} for n in range(20)]
        store.quarantine.write(rows, run_id="one")
    assert moved("fletcher_quarantined_rows_total", reason="other") == 20


def series() -> int:
    """Lines that a scrape shows, those of a histogram's buckets included."""
    families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
    return sum(len(family.samples) for family in families)


def test_the_number_of_series_does_not_follow_what_is_done(
    minilm: Embedder, tmp_path: Path, broken: Any, tiny: EngineSpec
) -> None:
    def work(number: int) -> None:
        model = tmp_path / f"model-{number}"
        model.mkdir()
        for part in minilm.package.folder.iterdir():
            (model / part.name).symlink_to(part)
        embedder = Embedder.load(model, dimension=32 + number, cache=VectorCache(500_000), layer_sample=1)
        assert embedder.card.name == model.name
        for dataset in range(10):
            embedder.embed([f"text {n} of {number}" for n in range(20)], dataset=f"{number}/{dataset}")
        with VectorStore.open(tmp_path / f"store {number}", collection=f"notes_{number}") as store:
            rows = [
                {"id": str(n), "reason": f"reason {number}", "message": str(n), "content_hash": ""} for n in range(9)
            ]
            store.quarantine.write(rows, run_id=f"run {number}", partition_key=str(number))
        if number in (0, 3):  # slow to start
            engine = failover(broken(abort=2), tiny)
            list(engine.run(batches(3)))
            engine.close()
        for other in range(40):
            breaker_of(f"server-{number}-{other}:1")

    forget_breakers()
    work(0)
    work(1)
    known = series()
    for number in (2, 3):
        work(number)
    assert series() == known
    # Whatever happens: labels have these many values at most, and 16 breakers nobody uses are kept.
    labels = {"stage": 8, "layer": 26, "result": 2, "direction": 2, "kind": 4, "cause": 4 * 3 * 2, "server": 16}
    assert known < 19 * sum(labels.values())
    forget_breakers()


def test_names_and_units_are_by_the_rules_of_prometheus() -> None:
    for family in REGISTRY.collect():
        assert re.fullmatch(r"fletcher_[a-z_]+[a-z]", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|mb|kb|megabytes|percent|count|sum|info)$", family.name)
        assert family.name.endswith("_total") is False  # the name of the family, without the counter's ending
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name in (f"{family.name}_total", f"{family.name}_created"), sample.name
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels), sample.labels
        unit = {"duration": "seconds", "ratio": "ratio", "memory": "bytes", "bytes": "bytes"}
        for word, ending in unit.items():
            assert word not in family.name.split("_") or family.name.endswith(f"_{ending}"), family.name


def documented() -> dict[str, tuple[str, list[str]]]:
    """Name, type and labels of the table's rows."""
    section = (ROOT / "docs" / "observability.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(fletcher_\w+)` \| (\w+) \| (.*?) \|", section, re.MULTILINE)
    return {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}


def declared() -> dict[str, tuple[str, list[str]]]:
    """The same as metrics.py has it, read from its text: some metrics have no series until something happens."""
    kinds = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram", "BusySeconds": "histogram"}
    kinds |= {"CounterMetricFamily": "counter", "GaugeMetricFamily": "gauge"}
    found = {}
    for node in ast.walk(ast.parse(Path(metrics.__file__).read_text())):
        if not (isinstance(node, ast.Call) and any(k.arg == "registry" for k in node.keywords)):
            continue
        words = [word.value for word in node.args if isinstance(word, ast.Constant)]
        assert isinstance(node.func, ast.Name)
        asked = node.func.id == "Asked"
        kind = kinds[node.args[0].id if asked and isinstance(node.args[0], ast.Name) else node.func.id]
        lists = [ast.literal_eval(word) for word in node.args if isinstance(word, ast.List)]
        labels = [words[2]] if asked else lists[0] if lists else []
        found[words[0] + ("_total" if kind == "counter" else "")] = (kind, labels)
    return found


def test_the_table_of_the_documentation_is_the_code() -> None:
    assert len(declared()) == 24
    assert documented() == declared()


def test_who_cannot_answer_a_scrape_takes_no_other_metric_away(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    Asked(GaugeMetricFamily, "broken", "Cannot be told.", "kind", registry=registry).ask(lambda: {"a": 1 / 0})
    Asked(GaugeMetricFamily, "well", "Can be told.", "kind", registry=registry).ask(lambda: {"a": 1.0})
    assert 'well{kind="a"} 1.0' in generate_latest(registry).decode()
    assert "broken" in caplog.text

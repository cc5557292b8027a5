"""Real Dagster runs in traces: what they are called there, where the trace is named, and that it is sent in time."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from embedding_project import DAYS, Project
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fletcher_dagster import FletcherResource, LongbowResource
from fletcher_dagster.tracing import traced_run

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "core" / "telemetry"))

from collector import Collector  # noqa: E402


def run_log(project: Project, result: dg.ExecuteInProcessResult) -> list[str]:
    """What Dagster's log of the run says for people."""
    entries = project.instance.all_logs(result.run_id)
    return [entry.user_message for entry in entries if entry.dagster_event is None]


def test_a_materialization_is_a_trace_that_its_metadata_and_log_name(
    project: Project, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fletcher_core")
    result = project.run(project.assets(project.docs()))
    assert result.success
    (asset,) = [each for each in spans.get_finished_spans() if each.name == "dagster.asset"]
    assert asset.parent is None
    assert asset.attributes == {
        "dagster.run_id": result.run_id,
        "dagster.job_name": result.dagster_run.job_name,
        "dagster.asset_key": "docs_embeddings",
    }
    (run,) = [each for each in spans.get_finished_spans() if each.name == "materialize"]
    assert run.parent.span_id == asset.context.span_id
    assert run.attributes["fletcher.run_id"] == result.run_id
    assert {each.context.trace_id for each in spans.get_finished_spans()} == {asset.context.trace_id}
    trace = f"{asset.context.trace_id:032x}"
    assert project.figures()["fletcher/trace_id"] == trace
    lines = [line for line in run_log(project, result) if "texts/s" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"; trace {trace}")
    # Not once more by the pipeline, whose loggers Dagster may be told to take over.
    assert not [
        record for record in caplog.records if record.name.startswith("fletcher_core") and "texts/s" in record.msg
    ]


def test_a_range_of_partitions_is_one_trace(project: Project, spans: InMemorySpanExporter) -> None:
    assets = project.assets(project.docs(partition_column="day"), partitions_def=DAYS)
    assert project.run_range(assets, "2026-01-01", "2026-01-03").success
    (root,) = [each for each in spans.get_finished_spans() if each.name == "dagster.asset"]
    assert root.attributes["dagster.partition_key"] == "2026-01-01...2026-01-03"
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        assert project.figures(partition=day)["fletcher/trace_id"] == f"{root.context.trace_id:032x}"


def test_a_failed_run_is_a_trace_of_error(project: Project, spans: InMemorySpanExporter) -> None:
    project.sql("INSERT INTO docs VALUES (9, NULL, '2026-01-01', 'en')")
    quiet = LongbowResource(enabled=False)
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=quiet, on_empty="error")
    assert not project.run(project.assets(project.docs())).success
    (asset,) = [each for each in spans.get_finished_spans() if each.name == "dagster.asset"]
    assert not asset.status.is_ok
    assert "InputError" in asset.status.description


def test_untraced_runs_name_no_trace(project: Project, sampled: object) -> None:
    sampled.share = 0.0  # type: ignore[attr-defined]
    result = project.run(project.assets(project.docs()))
    assert "fletcher/trace_id" not in project.figures()
    assert not any("trace " in line for line in run_log(project, result))


SCRIPT = """
import os, sys
from pathlib import Path
import dagster as dg
sys.path.insert(0, "tests/dagster")
from embedding_project import DOCS, Project
from fletcher_dagster import FletcherResource, LongbowResource
folder = Path(sys.argv[1])
fletcher = FletcherResource(store_path=str(folder / "vectors"), longbow=LongbowResource(enabled=False))
with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
    project = Project(folder, instance, fletcher)
    project.sql(DOCS)
    assert project.run(project.assets(project.docs())).success
sys.stdout.flush()
os._exit(0)  # as a step's process may end: nothing registered for the end is called
"""


def test_the_environment_turns_it_on_and_all_is_sent_before_the_process_is_gone(tmp_path: Path) -> None:
    collector = Collector()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    try:
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint},
            cwd=ROOT,
            check=True,
            timeout=120,
            capture_output=True,
        )
        names = {span.name for span in collector.spans}
    finally:
        collector.close()
    assert {"dagster.asset", "materialize", "diff", "tokenize", "compute", "write"} <= names
    assert collector.resources[0]["service.name"] == "fletcher"


def test_variables_meant_for_other_programs_fail_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    done = False
    with traced_run():
        done = True
    assert done
    assert "not traced: OTEL_EXPORTER_OTLP_PROTOCOL" in caplog.text

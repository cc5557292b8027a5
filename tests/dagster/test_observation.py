"""Observed sources and the conditions that act on them: a run when the source or the model changed, none otherwise."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster._core.definitions.observe import observe
from embedding_project import DAYS, DOCS, LANGUAGES, Project

from fletcher_core.errors import ConfigError
from fletcher_core.parquet_files import file_name
from fletcher_core.source_version import Watermark, digest, file_states, watermarks
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, partition_condition
from fletcher_dagster import (
    FletcherResource,
    FletcherTranslator,
    FletcherTranslatorData,
    LongbowResource,
    build_observable_source,
    eager_or_model_changed,
    hash_partitions,
)
from fletcher_dagster.partitions import partition_slice

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dagster" / "automation.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """As in conftest, without a Longbow to deliver to."""
    longbow = LongbowResource(enabled=False)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow))
        project.sql(DOCS)
        yield project


class Conditioned(FletcherTranslator):
    def __init__(self, condition: dg.AutomationCondition[Any]) -> None:
        self.condition = condition

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        return super().get_asset_spec(data).replace_attributes(automation_condition=self.condition)


def version(project: Project, observed: dg.SourceAsset) -> str:
    """Observes the source and returns the data version that Dagster recorded."""
    result = observe([observed], instance=project.instance)
    (event,) = result.get_asset_observation_events()
    return event.asset_observation_data.asset_observation.tags["dagster/data_version"]


def test_the_embeddings_depend_on_what_is_observed(project: Project) -> None:
    source = project.docs()
    observed = build_observable_source(source, watermark_column="id")
    assets = project.assets(source)
    assert {dep.asset_key for spec in assets.specs for dep in spec.deps} == {observed.key}


def test_a_table_has_one_version_until_it_changes(project: Project) -> None:
    observed = build_observable_source(project.docs(), watermark_column="id")
    first = version(project, observed)
    assert version(project, observed) == first
    project.sql("DELETE FROM docs WHERE id = 2")
    assert version(project, observed) != first


def test_files_have_one_version_until_one_is_written(project: Project) -> None:
    path = project.folder / "one.parquet"
    path.write_bytes(b"no file is opened")
    observed = build_observable_source(ParquetTable(project.folder / "*.parquet", name="files"))
    first = version(project, observed)
    assert version(project, observed) == first
    path.write_bytes(b"written again")
    assert version(project, observed) != first


def test_each_partition_has_a_version_of_its_own(project: Project) -> None:
    observed = build_observable_source(project.docs(partition_column="day"), watermark_column="id", partitions_def=DAYS)

    def versions() -> dict[str, str]:
        result = observe([observed], instance=project.instance)
        found = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
        return {str(event.partition): event.tags["dagster/data_version"] for event in found}

    first = versions()
    project.sql("DELETE FROM docs WHERE id = 3")
    second = versions()
    assert [day for day in first if first[day] != second[day]] == ["2026-01-02"]


def test_what_cannot_be_observed_is_refused_when_definitions_load(project: Project) -> None:
    with pytest.raises(ConfigError, match="needs watermark_column="):
        build_observable_source(project.docs())
    with pytest.raises(ConfigError, match="partition_column"):
        build_observable_source(project.docs(), watermark_column="id", partitions_def=DAYS)


def test_eager_runs_when_the_source_has_a_new_version_and_only_then(project: Project) -> None:
    observed = build_observable_source(project.docs(), watermark_column="id")
    assets = project.assets(project.docs(), translator=Conditioned(dg.AutomationCondition.eager()))
    defs = dg.Definitions(assets=[observed, assets], resources={"fletcher": project.fletcher})
    asked: list[int] = []
    cursor = None
    observe([observed], instance=project.instance)
    assert project.run(assets).success

    def evaluate() -> None:
        nonlocal cursor
        observe([observed], instance=project.instance)
        result = dg.evaluate_automation_conditions(defs=defs, instance=project.instance, cursor=cursor)
        cursor = result.cursor
        asked.append(result.total_requested)
        if result.total_requested:
            assert project.run(assets).success

    for change in ("", "", "", "DELETE FROM docs WHERE id = 1", ""):
        project.sql(change or "SELECT 1")
        evaluate()
    assert asked == [0, 0, 0, 1, 0]


def test_a_changed_model_asks_for_one_run(project: Project) -> None:
    cursor, asked = None, []
    for length in (None, None, 16, 16, 16):
        resource = FletcherResource(store_path="vectors", max_length=length)
        assets = project.assets(project.docs(), translator=Conditioned(eager_or_model_changed()), resource=resource)
        defs = dg.Definitions(assets=[assets], resources={"fletcher": project.fletcher})
        result = dg.evaluate_automation_conditions(defs=defs, instance=project.instance, cursor=cursor)
        cursor = result.cursor
        asked.append(result.total_requested)
        if result.total_requested or not project.materializations():
            assert project.run(assets).success
    assert asked == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("definition", "column", "due"),
    [(hash_partitions(2), None, ["0", "1"]), (DAYS, "day", ["2026-01-03"])],
    ids=["hash buckets", "days"],
)
def test_a_changed_model_asks_for_every_partition_but_of_time_for_the_latest(
    project: Project, definition: dg.PartitionsDefinition[str], column: str | None, due: list[str]
) -> None:
    """The history of time windows is left to the catch-up."""
    for key in definition.get_partition_keys():
        project.instance.report_runless_asset_event(dg.AssetMaterialization("docs_embeddings", partition=key))
    cursor, asked = None, []
    for length in (None, None, 16, 16):
        assets = project.assets(
            project.docs(partition_column=column),
            partitions_def=definition,
            translator=Conditioned(eager_or_model_changed()),
            resource=FletcherResource(store_path="vectors", max_length=length),
        )
        defs = dg.Definitions(assets=[assets], resources={"fletcher": project.fletcher})
        result = dg.evaluate_automation_conditions(defs=defs, instance=project.instance, cursor=cursor)
        cursor = result.cursor
        asked.append(sorted(result.get_requested_partitions(dg.AssetKey("docs_embeddings"))))
    assert asked == [[], [], due, []]


def test_a_remote_listing_is_versioned_by_what_the_file_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    source = ParquetTable("memory://fletcher-test/*.parquet", name="remote")
    assert file_states(source) == {}
    with files.open("/fletcher-test/1.parquet", "wb") as file:
        file.write(b"one")
    assert [file_name(source.patterns, path) for path in file_states(source)] == ["1.parquet"] == source.file_names()
    first = digest(file_states(source))
    assert digest(file_states(source)) == first
    with files.open("/fletcher-test/1.parquet", "wb") as file:
        file.write(b"two and more")
    assert digest(file_states(source)) != first
    files.rm("/fletcher-test", recursive=True)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "obstore.fsspec", raising=False)
    with pytest.raises(ConfigError, match=r"s3fs.*extra `cloud`"):
        file_states(ParquetTable("s3://bucket/*.parquet"))


def test_rows_are_counted_for_each_partition(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (7, 'No day.', NULL, 'fr')")
    slices = [Partition(key=value, value=value) for value in ("en", "de", "it's")]
    found = watermarks(project.docs(partition_column="language"), None, slices)
    assert {key: figure.rows for key, figure in found.items()} == {"en": 3, "de": 3, "it's": 0}


@pytest.mark.parametrize(
    ("column", "definition"),
    [
        ("day", DAYS),
        ("language", LANGUAGES),
        (None, hash_partitions(3)),
        ({"when": "day"}, dg.MultiPartitionsDefinition({"when": DAYS, "bucket": hash_partitions(2)})),
        ({"when": "day", "l": "language"}, dg.MultiPartitionsDefinition({"when": DAYS, "l": LANGUAGES})),
    ],
)
def test_a_partitions_watermark_is_of_the_rows_that_a_run_embeds(
    project: Project, column: Any, definition: dg.PartitionsDefinition[str]
) -> None:
    project.sql("INSERT INTO docs VALUES (7, 'No day, no language.', NULL, NULL), (8, 'Later.', '2026-02-01', 'fr')")
    source = project.docs(partition_column=column)
    slices = [partition_slice(source, definition, key) for key in definition.get_partition_keys()]
    found = watermarks(source, "id", slices)
    assert [found[part.key] for part in slices] == [_counted(source, part) for part in slices]
    assert sum(figure.rows for figure in found.values()) == (8 if column is None else 6)


def _counted(source: DuckDBTable, partition: Partition) -> Watermark:
    with duckdb.connect(str(source.database), read_only=True) as connection:
        condition = partition_condition(source, partition, {"id": "INTEGER", "day": "DATE", "language": "VARCHAR"})
        found = connection.execute(f"SELECT max(id)::VARCHAR, count(*) FROM docs WHERE {condition}").fetchall()
    return Watermark(*found[0])


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_load(example: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    defs = names["defs"]
    dg.Definitions.validate_loadable(defs)
    # Dagster would add that one, switched off, for a condition that no sensor of the example looks after.
    added = "default_automation_condition_sensor"
    assert added not in {sensor.name for sensor in defs.get_repository_def().sensor_defs}

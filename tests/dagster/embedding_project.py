"""A small source, the resource that embeds it, and a way to run its assets in a real Dagster instance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb

from fletcher_core.sources import DuckDBTable, Source
from fletcher_dagster import FletcherResource, fletcher_assets

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")
LANGUAGES = dg.StaticPartitionsDefinition(["en", "de"])

DOCS = """
    CREATE TABLE docs (id INTEGER, text VARCHAR, day DATE, language VARCHAR);
    INSERT INTO docs VALUES
        (1, 'Bread needs flour, water, salt and time.', '2026-01-01', 'en'),
        (2, 'The train to the coast leaves at noon.', '2026-01-01', 'de'),
        (3, 'A violin has four strings.', '2026-01-02', 'en'),
        (4, 'Snow fell on the mountains all night.', '2026-01-02', 'de'),
        (5, 'The court adjourned until Monday.', '2026-01-03', 'en'),
        (6, 'Chess is played on sixty-four squares.', '2026-01-03', 'de');
"""


@dataclass
class Project:
    """A folder with a database, the resource that embeds it, and the instance that remembers the runs."""

    folder: Path
    instance: dg.DagsterInstance
    fletcher: FletcherResource

    @property
    def database(self) -> Path:
        return self.folder / "source.duckdb"

    def sql(self, statements: str) -> None:
        with duckdb.connect(str(self.database)) as connection:
            connection.execute(statements)

    def docs(self, **settings: Any) -> DuckDBTable:
        return DuckDBTable(self.database, table="docs", **settings)

    def assets(self, *sources: Source, **arguments: Any) -> dg.AssetsDefinition:
        @fletcher_assets(sources=list(sources), name="embeddings", **arguments)
        def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
            yield from fletcher.run(context=context)

        return embeddings

    def run(self, assets: dg.AssetsDefinition, **arguments: Any) -> dg.ExecuteInProcessResult:
        """Materialize in this process; a failed run is returned, not raised."""
        return dg.materialize(
            [assets],
            resources={"fletcher": self.fletcher},
            instance=self.instance,
            raise_on_error=False,
            **arguments,
        )

    def run_range(self, assets: dg.AssetsDefinition, first: str, last: str) -> dg.ExecuteInProcessResult:
        """What a single-run backfill of `first`...`last` launches."""
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return self.run(assets, tags=tags)

    def materializations(
        self, key: str = "docs_embeddings", partition: str | None = None
    ) -> list[dg.AssetMaterialization]:
        """All that Dagster recorded of an asset (of a partition), the latest first."""
        wanted = dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(key), asset_partitions=None if partition is None else [partition]
        )
        records = self.instance.fetch_materializations(wanted, limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization]

    def figures(self, key: str = "docs_embeddings", partition: str | None = None) -> dict[str, Any]:
        """The metadata of the latest materialization as plain values."""
        return plain(self.materializations(key, partition)[0].metadata)

    def version(self, key: str = "docs_embeddings", partition: str | None = None) -> str:
        """The data version of the latest materialization."""
        return (self.materializations(key, partition)[0].tags or {})["dagster/data_version"]


def plain(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Check evaluations of a run by check name."""
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult) -> dg.Failure:
    """What the failed step reported: description and metadata."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    return dg.Failure(data.description, data.metadata)

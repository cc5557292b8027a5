"""The code location of the live tests: small partitioned assets by a tiny model, and large ones to be cancelled.

In come the folder with the tables and the first of the 60 days, from the environment; out go the definitions that the
code server loads. The large assets use the real model: their runs are long because there is much to embed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fletcher_dagster import DuckDBTable, FletcherResource, LongbowResource, ParquetTable, fletcher_assets

FOLDER = Path(os.environ["FLETCHER_LIVE_FOLDER"])
DATABASE = FOLDER / "source.duckdb"
NOTES = FOLDER / "notes.parquet"
POOL = "fletcher_gpu"
RETRIES = dg.RetryPolicy(max_retries=2, delay=1)  # a cancelled run must not use them
BOOKS = dg.StaticPartitionsDefinition(["leaflet", "tome"])

_SETTINGS: dict[str, Any] = {"store_path": str(FOLDER / "vectors"), "longbow": LongbowResource(enabled=False)}
tiny = FletcherResource(model=str(FOLDER / "model"), **_SETTINGS)
minilm = FletcherResource(commit_seconds=0.5, **_SETTINGS)


@fletcher_assets(
    sources=[DuckDBTable(DATABASE, table="docs", partition_column="day")],
    partitions_def=dg.DailyPartitionsDefinition(os.environ["FLETCHER_LIVE_FIRST_DAY"]),
    resource=tiny,
    retry_policy=RETRIES,
    pool=POOL,
)
def days(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
    yield from tiny.run(context=context)


@fletcher_assets(sources=[ParquetTable(NOTES, name="notes")], resource=tiny)
def notes(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
    yield from tiny.run(context=context)


def large(name: str) -> dg.AssetsDefinition:
    """Much to embed: `<name>_embeddings`, in two partitions of very unequal size."""

    @fletcher_assets(
        name=name,
        sources=[DuckDBTable(DATABASE, table="pages", partition_column="book", name=name)],
        partitions_def=BOOKS,
        resource=minilm,
        retry_policy=RETRIES,
        pool=POOL,
    )
    def embeddings(context: dg.AssetExecutionContext, minilm: FletcherResource) -> Iterator[Any]:
        yield from minilm.run(context=context)

    return embeddings


refresh_notes = dg.define_asset_job("refresh_notes", dg.AssetSelection.assets("notes_embeddings"))


@dg.sensor(job=refresh_notes, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.STOPPED)
def notes_changed(context: dg.SensorEvaluationContext) -> dg.RunRequest:
    """One run for each state of the file."""
    return dg.RunRequest(run_key=str(NOTES.stat().st_mtime_ns))


defs = dg.Definitions(
    assets=[
        dg.AssetSpec("notes", kinds={"parquet"}),
        *(dg.AssetSpec(table, kinds={"duckdb"}) for table in ("docs", "pages")),
        *(days, notes, large("in_process"), large("multiprocess"), large("backfilled")),
    ],
    jobs=[
        refresh_notes,
        dg.define_asset_job(
            "cancelled_in_process",
            dg.AssetSelection.assets("in_process_embeddings"),
            executor_def=dg.in_process_executor,
        ),
        dg.define_asset_job(
            "cancelled_multiprocess",
            dg.AssetSelection.assets("multiprocess_embeddings"),
            executor_def=dg.multiprocess_executor,
        ),
    ],
    schedules=[dg.ScheduleDefinition(name="every_minute", job=refresh_notes, cron_schedule="* * * * *")],
    sensors=[notes_changed],
    resources={"tiny": tiny, "minilm": minilm},
    executor=dg.in_process_executor,
)

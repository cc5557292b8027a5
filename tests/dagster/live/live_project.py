"""The code location of the live tests: small assets by a tiny model under each sensor and schedule that Fletcher
builds, and large ones to be cancelled.

In come the folder with the tables and the first of the 60 days, from the environment; out go the definitions that the
code server loads. The large assets use the real model: their runs are long because there is much to embed.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fletcher_dagster import (
    DuckDBTable,
    FletcherResource,
    LongbowResource,
    ParquetTable,
    build_catch_up_schedule,
    build_fletcher_schedule,
    build_parquet_sensor,
    build_rest_sensor,
    build_watermark_sensor,
    fletcher_assets,
)

FOLDER = Path(os.environ["FLETCHER_LIVE_FOLDER"])
DATABASE = FOLDER / "source.duckdb"
ORDERS = FOLDER / "orders.duckdb"  # of its own: it is written while sensor and runs read it
NOTES = FOLDER / "notes.parquet"
POOL = "fletcher_gpu"
RETRIES = dg.RetryPolicy(max_retries=2, delay=1)  # a cancelled run must not use them
BOOKS = dg.StaticPartitionsDefinition(["leaflet", "tome"])

_SETTINGS: dict[str, Any] = {"store_path": str(FOLDER / "vectors"), "longbow": LongbowResource(enabled=False)}
tiny = FletcherResource(model=str(FOLDER / "model"), **_SETTINGS)
minilm = FletcherResource(commit_seconds=0.5, **_SETTINGS)
before = FletcherResource(model=str(FOLDER / "model"), max_length=16, **_SETTINGS)
"""The model of an earlier deployment: what it embedded is stale by `tiny` and `budgeted`."""
budgeted = FletcherResource(model=str(FOLDER / "model"), max_rows_per_run=2, **_SETTINGS)


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


tickets_files = ParquetTable(FOLDER / "tickets" / "*.parquet", name="tickets", partition_column="file")


@fletcher_assets(sources=[tickets_files], partitions_def=dg.DynamicPartitionsDefinition(name="tickets"), resource=tiny)
def tickets(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
    yield from tiny.run(context=context)


orders_table = DuckDBTable(ORDERS, table="orders")


@fletcher_assets(sources=[orders_table], resource=tiny)
def orders(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
    yield from tiny.run(context=context)


def shelves(declared: FletcherResource) -> dg.AssetsDefinition:
    """Seven static partitions, `a` to `g`, of two rows."""

    @fletcher_assets(
        name="shelves",
        sources=[DuckDBTable(DATABASE, table="shelves", partition_column="shelf")],
        partitions_def=dg.StaticPartitionsDefinition([*"abcdefg"]),
        resource=declared,
    )
    def embeddings(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
        yield from tiny.run(context=context)

    return embeddings


def portions(declared: FletcherResource) -> dg.AssetsDefinition:
    """Five rows, of which a run embeds no more than two."""

    @fletcher_assets(name="portions", sources=[DuckDBTable(DATABASE, table="portions")], resource=declared)
    def embeddings(context: dg.AssetExecutionContext, budgeted: FletcherResource) -> Iterator[Any]:
        yield from budgeted.run(context=context)

    return embeddings


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


@fletcher_assets(
    sources=[DuckDBTable(DATABASE, table="shelves", partition_column="shelf", name="turns")],
    partitions_def=dg.StaticPartitionsDefinition([*"abcdefg"]),
    backfill_policy=dg.BackfillPolicy.multi_run(1),
    resource=tiny,
    pool=POOL,
)
def turns(context: dg.AssetExecutionContext, tiny: FletcherResource) -> Iterator[Any]:
    time.sleep(3)  # else steps so short would follow one another by themselves
    yield from tiny.run(context=context)


shelves_now, portions_now = shelves(tiny), portions(budgeted)

defs = dg.Definitions(
    assets=[
        *(dg.AssetSpec(files, kinds={"parquet"}) for files in ("notes", "tickets")),
        *(dg.AssetSpec(table, kinds={"duckdb"}) for table in ("docs", "pages", "orders", "shelves", "portions")),
        *(days, notes, large("in_process"), large("multiprocess"), large("backfilled")),
        *(tickets, orders, turns, shelves_now, portions_now),
    ],
    jobs=[
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
    schedules=[
        build_fletcher_schedule(notes, cron_schedule="* * * * *"),
        build_fletcher_schedule(days, hour_of_day=4),
        build_catch_up_schedule(shelves_now, cron_schedule="* * * * *", resource_key="tiny"),
    ],
    sensors=[
        build_parquet_sensor(tickets, tickets_files, minimum_interval_seconds=1),
        build_watermark_sensor(orders, orders_table, watermark_column="id", minimum_interval_seconds=1),
        build_rest_sensor(portions_now, minimum_interval_seconds=1),
    ],
    resources={"tiny": tiny, "minilm": minilm, "budgeted": budgeted},
    executor=dg.in_process_executor,
)

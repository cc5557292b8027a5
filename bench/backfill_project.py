"""The assets of `bench/backfill.py`: one table, embedded as a whole, as one run over its partitions, as a run for each.

In come the folder with the table and the settings, from the environment where Dagster's code server loads this file;
out go the definitions, with a fresh asset, and so a fresh vector store, for every repetition.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fletcher_dagster import DuckDBTable, FletcherResource, LongbowResource, fletcher_assets


def resource(folder: Path, model: str) -> FletcherResource:
    """Vectors stay in the local store: what is measured and tried here is Dagster, not Longbow."""
    return FletcherResource(store_path=str(folder / "vectors"), model=model, longbow=LongbowResource(enabled=False))


def keys(partitions: int) -> list[str]:
    return [f"part-{n:03}" for n in range(partitions)]


def embeddings(
    folder: Path, name: str, partitions: int = 0, policy: dg.BackfillPolicy | None = None
) -> dg.AssetsDefinition:
    """The asset `<name>_embeddings`; without partitions it is the whole table."""

    @fletcher_assets(
        name=name,
        sources=[
            DuckDBTable(
                folder / "texts.duckdb", table="texts", name=name, partition_column="part" if partitions else None
            )
        ],
        partitions_def=dg.StaticPartitionsDefinition(keys(partitions)) if partitions else None,
        backfill_policy=policy,
    )
    def body(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)

    return body


if "FLETCHER_BACKFILL_FOLDER" in os.environ:
    _folder = Path(os.environ["FLETCHER_BACKFILL_FOLDER"])
    defs = dg.Definitions(
        assets=[
            embeddings(
                _folder, f"runs_{n}", int(os.environ["FLETCHER_BACKFILL_PARTITIONS"]), dg.BackfillPolicy.multi_run(1)
            )
            for n in range(int(os.environ["FLETCHER_BACKFILL_REPETITIONS"]))
        ],
        resources={"fletcher": resource(_folder, os.environ["FLETCHER_BACKFILL_MODEL"])},
        executor=dg.multiprocess_executor,
    )

"""A job over hash buckets that a step process can build again; its database is in $FLETCHER_TEST_FOLDER."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fletcher_dagster import DuckDBTable, FletcherResource, LongbowResource, fletcher_assets, hash_partitions


def hash_job() -> dg.JobDefinition:
    folder = Path(os.environ["FLETCHER_TEST_FOLDER"])

    @fletcher_assets(
        sources=[DuckDBTable(folder / "source.duckdb", table="docs")],
        name="embeddings",
        partitions_def=hash_partitions(2),
    )
    def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)

    definitions = dg.Definitions(
        assets=[embeddings],
        jobs=[dg.define_asset_job("embed", [embeddings])],
        resources={
            "fletcher": FletcherResource(store_path=str(folder / "vectors"), longbow=LongbowResource(enabled=False))
        },
        executor=dg.multiprocess_executor,
    )
    dg.Definitions.validate_loadable(definitions)
    return definitions.resolve_job_def("embed")

"""A job over hash buckets that a step process can build again; it writes down which slices the step is about.

In $FLETCHER_TEST_FOLDER, a file `slices`. Nothing is embedded: that costs time, and other tests do it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fletcher_dagster import DuckDBTable, fletcher_assets, hash_partitions
from fletcher_dagster.declaration import declared_source
from fletcher_dagster.partitions import slices_of


def hash_job() -> dg.JobDefinition:
    folder, launcher = Path(os.environ["FLETCHER_TEST_FOLDER"]), int(os.environ["FLETCHER_TEST_LAUNCHER"])

    @fletcher_assets(
        sources=[DuckDBTable(folder / "source.duckdb", table="docs")],
        name="embeddings",
        partitions_def=hash_partitions(2),
    )
    def embeddings(context: dg.AssetExecutionContext) -> Iterator[Any]:
        ((key, spec),) = context.assets_def.specs_by_key.items()
        slices = slices_of(context, spec, declared_source(spec))
        (folder / "slices").write_text(repr([os.getpid() != launcher, *[one.bucket for one in slices]]))
        yield dg.MaterializeResult(asset_key=key)
        for check in context.selected_asset_check_keys:
            yield dg.AssetCheckResult(passed=True, check_name=check.name, asset_key=key)

    definitions = dg.Definitions(
        assets=[embeddings],
        jobs=[dg.define_asset_job("embed", [embeddings])],
        executor=dg.multiprocess_executor,
    )
    dg.Definitions.validate_loadable(definitions)
    return definitions.resolve_job_def("embed")

"""The Dagster project of the demo, which workspace.yaml loads: two tables of text and their embeddings.

`docstrings` (DuckDB) and `manuals` (Parquet) are written from the texts of this machine; Fletcher keeps their
embeddings up to date in a local vector store and delivers them to the embedded Longbow-compatible server.
`near_duplicates` takes the vectors of `docstrings` and finds the texts that say almost the same.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from demo import tables
from demo.near_duplicates import duplicates_metadata
from fletcher_dagster import DuckDBTable, FletcherIOManager, FletcherResource, ParquetTable, fletcher_assets

FOLDER = Path(os.environ.get("FLETCHER_DEMO_FOLDER", Path(__file__).resolve().parents[1] / ".demo"))
"""Everything the demo writes: texts, vectors, the embedded server's data and Dagster's home."""

VECTORS = FOLDER / "vectors"
"""The vector stores, one an asset."""

LONGBOW = VECTORS / ".longbow"
"""The data of the embedded Longbow-compatible server, which FletcherResource puts beside the vector stores."""

fletcher = FletcherResource(store_path=str(VECTORS))


@dg.multi_asset(
    group_name="texts",
    specs=[
        dg.AssetSpec(
            "docstrings",
            kinds={"duckdb"},
            description="Docstrings of Python's standard library and of packages.",
        ),
        dg.AssetSpec(
            "manuals",
            kinds={"parquet"},
            description="Python's language reference, packages' readmes and licences.",
        ),
    ],
)
def texts(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
    """Both tables, written anew from the texts of this machine."""
    for name, rows in tables.build(FOLDER).items():
        context.log.info(f"{name}: wrote {rows:,} texts")
        yield dg.MaterializeResult(asset_key=name, metadata={"dagster/row_count": rows})


@fletcher_assets(
    sources=[
        DuckDBTable(
            str(tables.database(FOLDER)),
            table="docstrings",
            text_columns="text",
            metadata_columns=("package", "module", "kind"),
        ),
        ParquetTable(
            str(tables.parquet_folder(FOLDER) / "*.parquet"),
            name="manuals",
            template="{title}\n\n{text}",
            text_columns=("title", "text"),
            metadata_columns=("package", "kind"),
        ),
    ],
    group_name="embeddings",
    resource=fletcher,
    pool="embedding",
)
def embeddings(
    context: dg.AssetExecutionContext, fletcher: FletcherResource
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """One vector for every text, embedded only when it is new or changed."""
    yield from fletcher.run(context=context)


@dg.asset(
    group_name="analysis",
    kinds={"arrow"},
    ins={
        "vectors": dg.AssetIn(
            "docstrings_embeddings", input_manager_key="fletcher_io", metadata={"columns": ["id", "vector"]}
        )
    },
)
def near_duplicates(vectors: pa.Table) -> dg.MaterializeResult[None]:
    """Docstrings that say almost the same, by the cosine between their vectors."""
    return dg.MaterializeResult(metadata=duplicates_metadata(vectors))


update_embeddings = dg.define_asset_job(
    "update_embeddings",
    selection=dg.AssetSelection.groups("embeddings"),
    description="Embeds what changed in both tables since the last run.",
)

defs = dg.Definitions(
    assets=[texts, embeddings, near_duplicates],
    jobs=[
        dg.define_asset_job(
            "everything",
            description="Writes both tables from this machine's texts, embeds them and looks for near duplicates.",
        ),
        update_embeddings,
    ],
    schedules=[
        dg.ScheduleDefinition(
            name="nightly",
            job=update_embeddings,
            cron_schedule="0 3 * * *",
            description="Off until you turn it on.",
        )
    ],
    resources={"fletcher": fletcher, "fletcher_io": FletcherIOManager(store_path=str(VECTORS))},
    executor=dg.in_process_executor,  # one process and one loaded model serve both assets
)

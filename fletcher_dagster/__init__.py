"""Fletcher in Dagster: embeddings of DuckDB and Parquet tables as assets.

`@fletcher_assets` declares them, `FletcherResource` runs them, `FletcherTranslator` names them,
`FletcherEmbeddingsComponent` declares them in YAML, `FletcherIOManager` loads them downstream.
"""

from dagster_shared.libraries import DagsterLibraryRegistry

from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_dagster.assets import build_fletcher_asset_specs, fletcher_assets
from fletcher_dagster.check_settings import FletcherChecks
from fletcher_dagster.component import FletcherEmbeddingsComponent
from fletcher_dagster.io_manager import FletcherIOManager
from fletcher_dagster.partitions import hash_partitions
from fletcher_dagster.resources import FletcherResource, LongbowResource
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData
from fletcher_dagster.version import __version__

__all__ = [
    "DuckDBTable",
    "FletcherChecks",
    "FletcherEmbeddingsComponent",
    "FletcherIOManager",
    "FletcherResource",
    "FletcherTranslator",
    "FletcherTranslatorData",
    "LongbowResource",
    "ParquetTable",
    "__version__",
    "build_fletcher_asset_specs",
    "fletcher_assets",
    "hash_partitions",
]

DagsterLibraryRegistry.register("fletcher", __version__, is_dagster_package=False)

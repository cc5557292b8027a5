"""Fletcher in Dagster: embeddings of DuckDB and Parquet tables as assets.

`@fletcher_assets` declares them, `FletcherResource` runs them, `FletcherTranslator` names them,
`FletcherEmbeddingsComponent` declares them in YAML, `FletcherIOManager` loads them downstream.
"""

from dagster_shared.libraries import DagsterLibraryRegistry

from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_dagster.assets import build_fletcher_asset_specs, fletcher_assets
from fletcher_dagster.automation import eager_or_model_changed
from fletcher_dagster.catch_up import build_catch_up_schedule
from fletcher_dagster.check_settings import FletcherChecks
from fletcher_dagster.component import FletcherEmbeddingsComponent
from fletcher_dagster.io_manager import FletcherIOManager
from fletcher_dagster.observation import build_observable_source
from fletcher_dagster.partitions import hash_partitions
from fletcher_dagster.ray_resource import FletcherRayResource
from fletcher_dagster.resources import FletcherResource, LongbowResource
from fletcher_dagster.rest_sensor import build_rest_sensor
from fletcher_dagster.retries import fletcher_retry_policy
from fletcher_dagster.run_tags import fletcher_run_tags
from fletcher_dagster.schedules import build_fletcher_schedule
from fletcher_dagster.sensors import build_parquet_sensor, build_watermark_sensor
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData
from fletcher_dagster.version import __version__

__all__ = [
    "DuckDBTable",
    "FletcherChecks",
    "FletcherEmbeddingsComponent",
    "FletcherIOManager",
    "FletcherRayResource",
    "FletcherResource",
    "FletcherTranslator",
    "FletcherTranslatorData",
    "LongbowResource",
    "ParquetTable",
    "__version__",
    "build_catch_up_schedule",
    "build_fletcher_asset_specs",
    "build_fletcher_schedule",
    "build_observable_source",
    "build_parquet_sensor",
    "build_rest_sensor",
    "build_watermark_sensor",
    "eager_or_model_changed",
    "fletcher_assets",
    "fletcher_retry_policy",
    "fletcher_run_tags",
    "hash_partitions",
]

DagsterLibraryRegistry.register("fletcher", __version__, is_dagster_package=False)

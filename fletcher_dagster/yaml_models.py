"""The YAML shapes of the component and how each becomes its Python value.

A field that is left out is not passed on, so that defaults stand in one place, the Python class. Fields that
are not text accept a string too: a template such as `{{ env.MAX_LENGTH }}`.
"""

from pathlib import Path
from typing import Any, Literal

import dagster as dg
from dagster.components.resolved.core_models import (
    DailyPartitionsDefinitionModel,
    HourlyPartitionsDefinitionModel,
    StaticPartitionsDefinitionModel,
    TimeWindowPartitionsDefinitionModel,
    WeeklyPartitionsDefinitionModel,
    resolve_partitions_def,
)

from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, ParquetTable, Source
from fletcher_dagster.partitions import hash_partitions
from fletcher_dagster.resources import FletcherResource, LongbowResource


class _SourceModel(dg.Model):
    id_column: str | None = None
    text_columns: str | list[str] | None = None
    template: str | None = None
    metadata_columns: str | list[str] | None = None
    partition_column: str | dict[str, str] | None = None
    name: str | None = None


class DuckDBTableModel(_SourceModel):
    """A table or a query of a DuckDB file; see `DuckDBTable`."""

    type: Literal["duckdb"]
    database: str
    table: str | None = None
    query: str | None = None
    lock_timeout: float | str | None = None


class ParquetTableModel(_SourceModel):
    """Parquet files: a path, a glob or a list of them; see `ParquetTable`."""

    type: Literal["parquet"]
    files: str | list[str]
    query: str | None = None
    file_column: str | None = None


class LongbowModel(dg.Model):
    """Where vectors are delivered to; see `LongbowResource`."""

    enabled: bool | str | None = None
    data_address: str | None = None
    meta_address: str | None = None
    call_timeout: float | str | None = None
    put_timeout: float | str | None = None
    read_timeout: float | str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None
    token: str | None = None
    token_file: str | None = None
    token_env: str | None = None
    token_header: str | None = None
    allow_plaintext_token: bool | str | None = None
    transport: str | None = None
    compression: str | None = None
    delivery_timeout: float | str | None = None


class FletcherModel(dg.Model):
    """What embeds and where the vectors go; see `FletcherResource`."""

    store_path: str
    model: str | None = None
    engine: str | None = None
    precision: str | None = None
    batch_invariant: bool | str | None = None
    isolation: str | None = None
    quarantine_limit: float | str | None = None
    max_length: int | str | None = None
    dimension: int | str | None = None
    normalize: bool | str | None = None
    prompt: str | None = None
    query_prompt: str | None = None
    long_text: str | None = None
    chunk_overlap: int | str | None = None
    threads: int | str | None = None
    cache_bytes: int | str | None = None
    vector_type: str | None = None
    on_empty: str | None = None
    on_duplicate: str | None = None
    memory_limit: str | None = None
    commit_seconds: float | str | None = None
    min_free_bytes: int | str | None = None
    metrics: str | None = None
    longbow: LongbowModel | None = None
    dashboard_url: str | None = None


class DynamicPartitionsDefinitionModel(dg.Model):
    """Partitions whose keys are added at run time."""

    type: Literal["dynamic"]
    name: str


class HashPartitionsDefinitionModel(dg.Model):
    """Buckets that part the rows evenly by a hash; see `hash_partitions`."""

    type: Literal["hash"]
    buckets: int


_DimensionModel = (
    HourlyPartitionsDefinitionModel
    | DailyPartitionsDefinitionModel
    | WeeklyPartitionsDefinitionModel
    | TimeWindowPartitionsDefinitionModel
    | StaticPartitionsDefinitionModel
    | DynamicPartitionsDefinitionModel
    | HashPartitionsDefinitionModel
)


class MultiPartitionsDefinitionModel(dg.Model):
    """Partitions of two dimensions, each by its name any of the other kinds."""

    type: Literal["multi"]
    dimensions: dict[str, _DimensionModel]


PartitionsModel = _DimensionModel | MultiPartitionsDefinitionModel


def resolve_source(context: dg.ResolutionContext, model: DuckDBTableModel | ParquetTableModel) -> Source:
    settings = _settings(context, model)
    if settings.pop("type") == "duckdb":
        return DuckDBTable(**{**settings, "database": _from_root(context, settings["database"])})
    files = settings["files"]
    paths = [files] if isinstance(files, str) else files
    return ParquetTable(**{**settings, "files": [_from_root(context, path) for path in paths]})


def resolve_fletcher(context: dg.ResolutionContext, model: FletcherModel) -> FletcherResource:
    settings = _settings(context, model)
    longbow = settings.pop("longbow", None)
    return FletcherResource(
        **{**settings, "store_path": _from_root(context, settings["store_path"])},
        longbow=None if longbow is None else LongbowResource(**longbow),
    )


def resolve_partitions(context: dg.ResolutionContext, model: Any) -> dg.PartitionsDefinition[str] | None:
    if isinstance(model, DynamicPartitionsDefinitionModel):
        return dg.DynamicPartitionsDefinition(name=model.name)
    if isinstance(model, HashPartitionsDefinitionModel):
        return hash_partitions(model.buckets)
    if isinstance(model, MultiPartitionsDefinitionModel):
        if len(model.dimensions) != 2:
            raise ConfigError(f"partitions of type multi have two dimensions, not {len(model.dimensions)}")
        resolved = {name: resolve_partitions(context, one) for name, one in model.dimensions.items()}
        return dg.MultiPartitionsDefinition({name: one for name, one in resolved.items() if one is not None})
    return resolve_partitions_def(context, model)


def _settings(context: dg.ResolutionContext, model: dg.Model) -> dict[str, Any]:
    return dict(context.resolve_value(model.model_dump(exclude_unset=True)))


def _from_root(context: dg.ResolutionContext, path: str) -> str:
    """Relative paths hold from the project's root; addresses such as s3://... stay as they are."""
    if "://" in path or Path(path).is_absolute():
        return path
    return str(dg.ComponentLoadContext.from_resolution_context(context).project_root / path)

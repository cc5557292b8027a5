"""The YAML shapes of the component and how each becomes its Python value.

What Python declares, the settings of the resources, of the checks and of the retries, is derived from there. A field
that is left out is not passed on.
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
from pydantic import Field

from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, ParquetTable, Source
from fletcher_dagster.check_settings import FletcherChecks
from fletcher_dagster.derived_models import Template, call_model, call_settings, resource_model
from fletcher_dagster.partitions import hash_partitions
from fletcher_dagster.ray_resource import FletcherRayResource
from fletcher_dagster.resources import FletcherResource, LongbowResource
from fletcher_dagster.retries import fletcher_retry_policy

LongbowModel = resource_model(LongbowResource)
RayModel = resource_model(FletcherRayResource)
FletcherModel = resource_model(FletcherResource, longbow=LongbowModel | None, ray=RayModel | None)
ChecksModel = call_model(FletcherChecks)
RetryPolicyModel = call_model(fletcher_retry_policy)


class _SourceModel(dg.Model):
    id_column: str = Field(DuckDBTable.id_column, description="The column that identifies a row.")
    text_columns: str | list[str] = Field(
        list(DuckDBTable.text_columns), description="What is embedded: a column or several."
    )
    template: str | None = Field(
        None, description="How several columns become one text: '{title}: {body}'; else by an empty line between."
    )
    metadata_columns: str | list[str] = Field([], description="Stored and delivered beside the vector.")
    partition_column: str | dict[str, str] | None = Field(
        None, description="The column that partitions_def divides the rows by; for type multi one a dimension."
    )
    name: str | None = Field(None, description="What the asset is named after; else the table or the path.")


class DuckDBTableModel(_SourceModel):
    """A table or a query of a DuckDB file; see `DuckDBTable`."""

    type: Literal["duckdb"] = Field(description="A table or a query of a DuckDB file.")
    database: str = Field(description="The DuckDB file; a relative path is taken from the project's root.")
    table: str | None = Field(None, description="The table or view to embed; or give a query.")
    query: str | None = Field(None, description="A SELECT in place of a table; needs a name.")
    lock_timeout: float | Template = Field(
        DuckDBTable.lock_timeout, description="Seconds to wait for a writer that holds it."
    )


class ParquetTableModel(_SourceModel):
    """Parquet files: a path, a glob or a list of them; see `ParquetTable`."""

    type: Literal["parquet"] = Field(description="Parquet files.")
    files: str | list[str] = Field(description="A path, a glob such as 'posts/*.parquet', or a list of them.")
    query: str | None = Field(None, description="A SELECT over the files, which it calls `files`.")
    file_column: str | None = Field(None, description="A column that is made of each file's name, to partition by.")


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
    settings = given_settings(context, model)
    if settings.pop("type") == "duckdb":
        return DuckDBTable(**{**settings, "database": _from_root(context, settings["database"])})
    files = settings["files"]
    paths = [files] if isinstance(files, str) else files
    return ParquetTable(**{**settings, "files": [_from_root(context, path) for path in paths]})


def resolve_fletcher(context: dg.ResolutionContext, model: dg.Model) -> FletcherResource:
    settings = given_settings(context, model)
    longbow, ray = settings.pop("longbow", None), settings.pop("ray", None)
    return FletcherResource(
        **{**settings, "store_path": _from_root(context, settings["store_path"])},
        longbow=None if longbow is None else LongbowResource(**longbow),
        ray=None if ray is None else FletcherRayResource(**ray),
    )


def resolve_checks(context: dg.ResolutionContext, model: dg.Model) -> FletcherChecks:
    return FletcherChecks(**call_settings(FletcherChecks, given_settings(context, model)))


def resolve_retry_policy(context: dg.ResolutionContext, model: dg.Model) -> dg.RetryPolicy:
    return fletcher_retry_policy(**call_settings(fletcher_retry_policy, given_settings(context, model)))


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


def given_settings(context: dg.ResolutionContext, model: dg.Model) -> dict[str, Any]:
    return dict(context.resolve_value(model.model_dump(exclude_unset=True)))


def _from_root(context: dg.ResolutionContext, path: str) -> str:
    """Relative paths hold from the project's root; addresses such as s3://... stay as they are."""
    if "://" in path or Path(path).is_absolute():
        return path
    return str(dg.ComponentLoadContext.from_resolution_context(context).project_root / path)

"""The decorator that turns sources into assets, and the function that builds their specs alone.

In come sources and the usual arguments of a multi-asset; out goes one asset a source, each subsettable, with
its checks. The decorated function's body is one line: `yield from fletcher.run(context=context)`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, get_args

import dagster as dg

from fletcher_core.addresses import below, checked_address
from fletcher_core.errors import ConfigError
from fletcher_core.models.description import ModelDescription, describe_model
from fletcher_core.setting_values import VectorType
from fletcher_core.sources import Source
from fletcher_dagster.check_settings import FletcherChecks
from fletcher_dagster.checks import check_specs
from fletcher_dagster.columns import declared_schema
from fletcher_dagster.declaration import collection_name, declared_source, source_metadata, source_place
from fletcher_dagster.partitions import hash_buckets, require_partitionable
from fletcher_dagster.resources import VECTOR_SETTINGS, FletcherResource
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData


def build_fletcher_asset_specs(
    *,
    sources: Sequence[Source],
    translator: FletcherTranslator | None = None,
    resource: FletcherResource | None = None,
) -> Sequence[dg.AssetSpec]:
    """One `AssetSpec` a source.

    Args:
        sources: `DuckDBTable`s and `ParquetTable`s.
        translator: decides key, dependencies, group, tags, owners; the default names an asset
            `<table>_embeddings`.
        resource: the resource that will embed, when it is known here: its model then appears in the
            description, the code version and the tag `fletcher/model`, its store in `dagster/uri`, and the columns
            in `dagster/column_schema`. Settings from `EnvVar` are left out. The model's small files are read when it
            is on this machine; nothing is downloaded.

    Raises:
        ConfigError: two sources would make the same asset, or the resource's model cannot do what is asked of it.
        ModelError: the resource's model has no such prompt.
    """
    translator = translator or FletcherTranslator()
    specs: dict[dg.AssetKey, dg.AssetSpec] = {}
    for source in sources:
        spec = _spec(source, translator, resource)
        if spec.key in specs:
            raise ConfigError(
                f"two sources make the asset {spec.key.to_user_string()!r}: give one of them another name=, "
                "or another key in the translator"
            )
        specs[spec.key] = spec
    return list(specs.values())


def fletcher_assets(
    *,
    sources: Sequence[Source],
    name: str | None = None,
    group_name: str | None = None,
    partitions_def: dg.PartitionsDefinition[str] | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    translator: FletcherTranslator | None = None,
    resource: FletcherResource | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    hooks: AbstractSet[dg.HookDefinition] | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    io_manager_key: str | None = None,
    checks: FletcherChecks | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Assets that hold the embeddings of `sources`, one a source.

    Args:
        sources: what to embed.
        name: the name of the op.
        group_name: the group of all assets; leave it out when the translator sets groups.
        partitions_def: time windows take the rows with start <= `partition_column` < end, static and dynamic
            partitions those whose column equals the key, `hash_partitions` a share of all rows, and needs no
            column. With a `MultiPartitionsDefinition` `partition_column` maps each dimension to its column.
        backfill_policy: with a `partitions_def` the default is `BackfillPolicy.single_run()`, so that one
            process and one loaded model serve the whole range.
        translator, resource: see `build_fletcher_asset_specs`.
        retry_policy: only failures that can pass by themselves are retried (a locked source or store,
            Longbow down).
        hooks, op_tags, pool: as for `dagster.multi_asset`.
        io_manager_key: of a `FletcherIOManager`, so that assets downstream can take the vectors as a parameter
            that is named like the asset.
        checks: which checks each asset has, what a failure of each means, and their limits.

    Raises:
        ConfigError: a source cannot be partitioned as asked; see also `build_fletcher_asset_specs`.

    Example:
        .. code-block:: python

            import dagster as dg
            from fletcher_dagster import DuckDBTable, FletcherResource, fletcher_assets

            reviews = DuckDBTable("shop.duckdb", table="reviews", text_columns=["title", "body"])

            @fletcher_assets(sources=[reviews])
            def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource):
                yield from fletcher.run(context=context)

            defs = dg.Definitions(
                assets=[embeddings], resources={"fletcher": FletcherResource(store_path="vectors")}
            )
    """
    specs = build_fletcher_asset_specs(sources=sources, translator=translator, resource=resource)
    if not specs:
        raise ConfigError("fletcher_assets needs at least one source in sources=")
    for spec in specs:
        require_partitionable(declared_source(spec), spec.partitions_def or partitions_def)
    specs = [_with_buckets(spec, spec.partitions_def or partitions_def) for spec in specs]
    if io_manager_key:
        specs = [spec.with_io_manager_key(io_manager_key) for spec in specs]
    grouped = [spec.key.to_user_string() for spec in specs if spec.group_name]
    if group_name and grouped:
        raise ConfigError(
            f"group_name={group_name!r} is set on fletcher_assets, but the translator already gives a group "
            f"to {', '.join(grouped)}: keep one of the two"
        )
    if backfill_policy is None and (partitions_def or any(spec.partitions_def for spec in specs)):
        backfill_policy = dg.BackfillPolicy.single_run()
    return dg.multi_asset(
        name=name,
        group_name=group_name,
        specs=specs,
        check_specs=[check for spec in specs for check in check_specs(spec.key, checks)],
        can_subset=True,
        partitions_def=partitions_def,
        backfill_policy=backfill_policy,
        retry_policy=retry_policy,
        hooks=hooks,
        op_tags=op_tags,
        pool=pool,
    )


def _spec(source: Source, translator: FletcherTranslator, resource: FletcherResource | None) -> dg.AssetSpec:
    settings = resource.known_settings() if resource else {}
    described = _described_model(settings)
    spec = translator.get_asset_spec(
        FletcherTranslatorData(
            source=source,
            model=settings.get("model"),
            code_version=_code_version(source, settings),
            longbow=resource is None or resource.longbow is None or resource.longbow.enabled,
            engine=settings.get("engine"),
            model_description=described,
        )
    )
    collection = collection_name(spec.key)
    defaults: dict[str, Any] = {"dagster/table_name": collection, **source_place(source)}
    if "store_path" in settings:
        place = below(settings["store_path"], collection)
        defaults["dagster/uri"] = checked_address(place) if isinstance(place, str) else place.absolute().as_uri()
    if described and settings.get("vector_type") in get_args(VectorType):
        defaults["dagster/column_schema"] = declared_schema(source, described.dimension, settings["vector_type"])
    if url := settings.get("dashboard_url"):
        defaults["fletcher/dashboard"] = dg.MetadataValue.url(url)
    return spec.replace_attributes(metadata={**defaults, **spec.metadata, **source_metadata(source)})


def _with_buckets(spec: dg.AssetSpec, partitions_def: dg.PartitionsDefinition[str] | None) -> dg.AssetSpec:
    """Of another number of hash buckets some have the same keys, and other rows."""
    buckets = hash_buckets(partitions_def)
    if buckets is None or spec.code_version is None:
        return spec
    return spec.replace_attributes(code_version=f"{spec.code_version}-of-{buckets}")


def _described_model(settings: Mapping[str, Any]) -> ModelDescription | None:
    """None when the model, or a setting that the description shows, is known at run time only."""
    shown = ("dimension", "max_length", "normalize", "prompt")
    if "model" not in settings or any(name not in settings for name in shown):
        return None
    return describe_model(settings["model"], **{name: settings[name] for name in shown})


def _code_version(source: Source, settings: Mapping[str, Any]) -> str:
    """Changes when the text that is embedded or the model that embeds it is declared differently."""
    decisive = {name: settings[name] for name in VECTOR_SETTINGS if name in settings}
    if settings.get("long_text") != "chunk":
        decisive.pop("chunk_overlap", None)
    declared = {
        "text_columns": list(source.text_columns),
        "template": source.template,
        "metadata_columns": list(source.metadata_columns),
        **decisive,
    }
    digest = hashlib.sha256(json.dumps(declared, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{settings.get('model', 'embeddings')}-{digest}"

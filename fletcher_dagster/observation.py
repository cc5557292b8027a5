"""Sources as observable assets: Dagster learns that a source changed, and automation conditions act on it.

In comes a source; out goes a source asset with the key on which the embeddings depend, whose observation is a data
version made of the file listing or of a watermark.
"""

from collections.abc import Sequence

import dagster as dg

from fletcher_core.errors import ConfigError
from fletcher_core.source_version import digest, file_states, watermark, watermarks
from fletcher_core.sources import DuckDBTable, ParquetTable, Source
from fletcher_dagster.partitions import partition_slice, require_partitionable
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData


def build_observable_source(
    source: Source,
    *,
    watermark_column: str | None = None,
    partitions_def: dg.PartitionsDefinition[str] | None = None,
    key: dg.AssetKey | str | Sequence[str] | None = None,
    translator: FletcherTranslator | None = None,
    automation_condition: dg.AutomationCondition[dg.AssetKey] | None = None,
    lock_timeout: float | None = None,
    group_name: str | None = None,
    description: str | None = None,
) -> dg.SourceAsset:
    """The table or the files as an asset that is observed: equal data versions mean that nothing changed.

    Args:
        source: a `ParquetTable` is versioned by its file listing; a `DuckDBTable`, and anything partitioned, by the
            greatest `watermark_column` and the number of rows.
        watermark_column: grows with every change of a row.
        partitions_def: each partition gets a version of its own.
        key: by default what the embeddings of the source depend on.
        translator: the one given to `fletcher_assets`, where it changes dependencies.
        automation_condition: when to observe; `AutomationCondition.on_cron("*/5 * * * *")` does without a schedule.
        lock_timeout: seconds to wait for a writer of the database; None: as the source says.

    Raises:
        ConfigError: no watermark_column where one is needed; partitions that cannot slice the source; a translator
            that gives the embeddings no dependency, or several, and no key.

    Example:
        .. code-block:: python

            reviews = DuckDBTable("shop.duckdb", table="reviews", text_columns="body")
            observed = build_observable_source(reviews, watermark_column="updated_at")
    """
    require_partitionable(source, partitions_def)
    if watermark_column is None and (isinstance(source, DuckDBTable) or partitions_def is not None):
        raise ConfigError(
            f"source {source.name!r} needs watermark_column= to be observed: a column that grows with every change of "
            "a row, such as updated_at"
        )

    @dg.observable_source_asset(
        key=dg.AssetKey.from_coercible(key) if key is not None else _dependency(source, translator),
        partitions_def=partitions_def,
        automation_condition=automation_condition,
        group_name=group_name,
        description=description or f"{source.origin()}, observed for changes.",
    )
    def observed(context: dg.AssetExecutionContext) -> dg.DataVersion | dg.DataVersionsByPartition:
        if partitions_def is not None:
            keys = partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
            slices = [partition_slice(source, partitions_def, key) for key in keys]
            found = watermarks(source, watermark_column, slices, lock_timeout=lock_timeout)
            return dg.DataVersionsByPartition({key: figure.version for key, figure in found.items()})
        if watermark_column is not None:
            return dg.DataVersion(watermark(source, watermark_column, lock_timeout=lock_timeout).version)
        assert isinstance(source, ParquetTable)
        return dg.DataVersion(digest(file_states(source)))

    assert isinstance(observed, dg.SourceAsset)
    return observed


def _dependency(source: Source, translator: FletcherTranslator | None) -> dg.AssetKey:
    data = FletcherTranslatorData(source=source, model=None, code_version="")
    keys = [dep.asset_key for dep in (translator or FletcherTranslator()).get_asset_spec(data).deps]
    if len(keys) != 1:
        raise ConfigError(f"the embeddings of {source.name!r} depend on {len(keys)} assets: say which one by key=")
    return keys[0]

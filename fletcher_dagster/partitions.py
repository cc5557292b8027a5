"""From Dagster's partitions to slices of a source.

In come a partitions definition, a partition key and the source's partition column; out goes a
`fletcher_core.sources.Partition`. Time windows become half-open ranges, all other keys become equality.
"""

from collections.abc import Sequence

import dagster as dg
from dagster import PartitionsDefinition, TimeWindowPartitionsDefinition

from fletcher_core.errors import ConfigError
from fletcher_core.sources import Partition, Source


def require_partitionable(source: Source, partitions_def: PartitionsDefinition[str] | None) -> None:
    """Raises `ConfigError` at definition time when `partitions_def` cannot slice `source`."""
    if partitions_def is None:
        return
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        raise ConfigError(
            f"source {source.name!r}: a MultiPartitionsDefinition cannot be mapped to one partition column; "
            "use its time or its static dimension alone, or one asset for each static value"
        )
    if source.partition_column is None:
        raise ConfigError(
            f"source {source.name!r} has no partition_column, so its asset cannot be partitioned: set "
            f"partition_column= to the column that holds the partition, or leave partitions_def out"
        )


def partition_slice(source: Source, partitions_def: PartitionsDefinition[str] | None, partition_key: str) -> Partition:
    """The rows of `source` that belong to `partition_key`; the whole source when there are no partitions."""
    if partitions_def is None:
        return Partition()
    require_partitionable(source, partitions_def)
    if isinstance(partitions_def, TimeWindowPartitionsDefinition):
        window = partitions_def.time_window_for_partition_key(partition_key)
        return Partition(key=partition_key, column=source.partition_column, start=window.start, end=window.end)
    return Partition(key=partition_key, column=source.partition_column, value=partition_key)


def slices_of(
    context: dg.AssetExecutionContext, spec: dg.AssetSpec, source: Source, default: Sequence[str] = ()
) -> list[Partition]:
    """The slices of the source that the run is about; those of `default` when it names no partition."""
    if spec.partitions_def is None:
        return [Partition()]
    named = context.has_partition_key or context.has_partition_key_range
    keys = context.partition_keys if named else default
    if not keys:
        raise ConfigError(
            f"asset {spec.key.to_user_string()!r} is partitioned and the run names no partition: choose one or more"
        )
    return [partition_slice(source, spec.partitions_def, key) for key in keys]

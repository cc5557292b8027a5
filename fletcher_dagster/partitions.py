"""From Dagster's partitions to slices of a source.

In come a partitions definition, a partition key and the source's partition columns; out goes a
`fletcher_core.sources.Partition`. Time windows become half-open ranges, hash buckets a share of all rows, other keys
equality, and keys of two dimensions what both have in common.
"""

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster import PartitionsDefinition, TimeWindowPartitionsDefinition

from fletcher_core.errors import ConfigError
from fletcher_core.sources import Partition, Source

_MOST_BUCKETS = 100_000  # Dagster advises against more partitions an asset


class HashPartitionsDefinition(dg.StaticPartitionsDefinition):
    """Static partitions that part the rows evenly by a hash; see `hash_partitions`."""

    def __init__(self, buckets: int) -> None:
        if isinstance(buckets, bool) or not isinstance(buckets, int) or not 1 <= buckets <= _MOST_BUCKETS:
            raise ConfigError(
                f"hash_partitions({buckets!r}): the number of buckets must be from 1 to {_MOST_BUCKETS:,}"
            )
        self.buckets = buckets
        width = len(str(buckets - 1))
        super().__init__([f"{number:0{width}}" for number in range(buckets)])


def hash_partitions(buckets: int) -> HashPartitionsDefinition:
    """Partitions "00" to "63" (of 64) that part a source's rows evenly, each row always into the same one.

    The hash is MD5 of the row's id in its text form, or of the source's `partition_column` when it has one.

    Args:
        buckets: how many; a part of the assets' code version. Another number parts the rows anew and needs a backfill
            of all partitions; keys that are no more are taken out by `fletcher drop`.

    Raises:
        ConfigError: `buckets` is no whole number from 1 to 100,000.
    """
    return HashPartitionsDefinition(buckets)


def require_partitionable(source: Source, partitions_def: PartitionsDefinition[str] | None) -> None:
    """Raises `ConfigError` at definition time when `partitions_def` cannot slice `source`."""
    if partitions_def is None:
        return
    columns = source.partition_column
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        _require_dimensions(source, partitions_def)
    elif isinstance(columns, Mapping):
        raise ConfigError(
            f"source {source.name!r} has a partition_column for each of the dimensions {', '.join(columns)}, but its "
            f"partitions are no MultiPartitionsDefinition: name the one column, partition_column="
            f"{next(iter(columns.values()), 'day')!r}"
        )
    elif columns is None and not isinstance(partitions_def, HashPartitionsDefinition):
        raise ConfigError(
            f"source {source.name!r} has no partition_column, so its asset cannot be partitioned: set "
            f"partition_column= to the column that holds the partition, or leave partitions_def out"
        )


def hash_buckets(partitions_def: PartitionsDefinition[str] | None) -> int | None:
    """How many there are, also as one of two dimensions; None of other partitions."""
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        found = (hash_buckets(dimension.partitions_def) for dimension in partitions_def.partitions_defs)
        return next(filter(None, found), None)
    return partitions_def.buckets if isinstance(partitions_def, HashPartitionsDefinition) else None


def partition_slice(source: Source, partitions_def: PartitionsDefinition[str] | None, partition_key: str) -> Partition:
    """The rows of `source` that belong to `partition_key`; the whole source when there are no partitions.

    Raises:
        ConfigError: the source cannot be sliced by `partitions_def`, or it has no such key.
    """
    if partitions_def is None:
        return Partition()
    require_partitionable(source, partitions_def)
    columns = source.partition_column
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        assert not isinstance(columns, Mapping)  # by require_partitionable
        return _slice(partitions_def, partition_key, columns)
    dimensions = partitions_def.partitions_defs
    keys = partition_key.split("|")  # Dagster joins them so, in the alphabetical order of the dimensions
    if len(keys) != len(dimensions):
        names = "|".join(dimension.name for dimension in dimensions)
        raise ConfigError(f"partition {partition_key!r} of source {source.name!r} is no key of the form {names}")
    columns = columns if isinstance(columns, Mapping) else {}
    parts = [
        _slice(dimension.partitions_def, key, columns.get(dimension.name))
        for dimension, key in zip(dimensions, keys, strict=True)
    ]
    return Partition.all_of(str(partition_key), parts)


def dimension_tags(partitions_def: PartitionsDefinition[str] | None, partition_key: str) -> dict[str, str]:
    """The tags by which Dagster knows the dimensions of an event's partition; none of other partitions.

    Dagster sets them on the events that it makes itself, and not on those that are logged.
    """
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return {}
    keys = partition_key.split("|")
    return {f"dagster/partition/{one.name}": key for one, key in zip(partitions_def.partitions_defs, keys, strict=True)}


def slices_of(
    context: dg.AssetExecutionContext, spec: dg.AssetSpec, source: Source, default: Sequence[str] = ()
) -> list[Partition]:
    """The slices of the source that the run is about; those of `default` when it names no partition."""
    if spec.partitions_def is None:
        return [Partition()]
    named = context.has_partition_key or context.has_partition_key_range
    keys = context.partition_keys if named else default
    if not keys and context.has_partition_key_range:
        ends = context.partition_key_range
        raise ConfigError(
            f"asset {spec.key.to_user_string()!r} has no partition from {ends.start!r} to {ends.end!r}: name the first "
            "one first, and the last one last"
        )
    if not keys:
        raise ConfigError(
            f"asset {spec.key.to_user_string()!r} is partitioned and the run names no partition: choose one or more"
        )
    return [partition_slice(source, spec.partitions_def, key) for key in keys]


def _slice(definition: PartitionsDefinition[str], key: str, column: str | None) -> Partition:
    """What `key` of a definition of one dimension means."""
    if isinstance(definition, TimeWindowPartitionsDefinition):
        window = definition.time_window_for_partition_key(key)
        return Partition(key=key, column=column, start=window.start, end=window.end)
    if isinstance(definition, HashPartitionsDefinition):
        keys = definition.get_partition_keys()
        if key not in keys:
            raise ConfigError(f"there is no partition {key!r}: the hash buckets are {keys[0]!r} to {keys[-1]!r}")
        return Partition(key=key, column=column, bucket=(int(key), definition.buckets))
    return Partition(key=key, column=column, value=key)


def _require_dimensions(source: Source, partitions_def: dg.MultiPartitionsDefinition) -> None:
    columns = source.partition_column
    dimensions = {dimension.name: dimension.partitions_def for dimension in partitions_def.partitions_defs}
    needed = [name for name, one in dimensions.items() if not isinstance(one, HashPartitionsDefinition)]
    example = ", ".join(f'"{name}": "<column>"' for name in needed)
    if isinstance(columns, str) or (columns is None and needed):
        given = "no partition_column" if columns is None else f"the one partition_column {columns!r}"
        raise ConfigError(
            f"source {source.name!r} has {given}, and its partitions have the dimensions {', '.join(dimensions)}: "
            f"name a column for each, partition_column={{{example}}}"
        )
    columns = columns or {}
    unknown = [name for name in columns if name not in dimensions]
    if unknown:
        raise ConfigError(
            f"source {source.name!r}: partition_column names the dimension {unknown[0]!r}, which its partitions do not "
            f"have: they have {', '.join(dimensions)}"
        )
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ConfigError(
            f"source {source.name!r}: partition_column names no column for the dimension {missing[0]!r}: add "
            f'"{missing[0]}": "<column>"'
        )

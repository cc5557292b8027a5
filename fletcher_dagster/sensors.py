"""Sensors that ask for a run when a source changed: Parquet files by their listing, DuckDB tables by a watermark.

In come the assets and their source; out goes a Dagster sensor. A tick lists files or runs one query, compares with its
cursor, and asks for what differs; texts are read by the run alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

import dagster as dg

from fletcher_core.errors import ConfigError, SourceLockedError
from fletcher_core.parquet_files import file_name
from fletcher_core.source_version import digest, file_states, watermark, watermarks
from fletcher_core.sources import ParquetTable, Source
from fletcher_dagster.partition_ranges import ranges_of
from fletcher_dagster.partitions import partition_slice, require_partitionable
from fletcher_dagster.run_tags import fletcher_run_tags
from fletcher_dagster.running import run_at
from fletcher_dagster.source_cursor import SourceCursor


def file_partition_key(source: ParquetTable, path: str) -> str:
    """The partition of a file by default: what the source's `file_column` holds, where that is what it is partitioned
    by, and else the file's name without `.parquet`."""
    if source.file_column and source.partition_column == source.file_column:
        return file_name(source.patterns, path)
    return PurePosixPath(path).name.removesuffix(".parquet")


def build_parquet_sensor(
    assets: dg.AssetsDefinition,
    source: ParquetTable,
    *,
    partition_key: Callable[[str], str] | None = None,
    max_runs_per_tick: int = 20,
    name: str | None = None,
    minimum_interval_seconds: int = 30,
    priority: int | None = None,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    description: str | None = None,
) -> dg.SensorDefinition:
    """Asks for a run when Parquet files are new, written again or gone.

    Unpartitioned assets run once for all changes of a tick. With dynamic partitions every file is a partition: a new
    file adds its key, and each new, changed or deleted file gets a run of its own. The keys must be what the source's
    `partition_column` holds. The key of a deleted file stays, for its run to take the rows out of the store.

    What a run is at, or waits for in the queue, is asked for when that run has ended.

    When no file is left at all nothing is asked for: a folder that is not mounted looks the same, and a run without
    files fails.

    Args:
        assets: those of one `@fletcher_assets`, unpartitioned or with a `DynamicPartitionsDefinition`.
        source: whose files are watched.
        partition_key: from the path of a file to its partition; several files may share one. By default what the
            source's `file_column` holds, where that is the partition_column, and else the name without `.parquet`.
        max_runs_per_tick: with partitions; the other files follow with the next ticks.
        name: of the sensor; by default that of the assets' op with `_files`.
        minimum_interval_seconds: between two listings.
        priority: of the runs in the queue.
        default_status: whether it is switched on from the beginning.
        description: shown in Dagster's UI.

    Raises:
        ConfigError: assets with partitions that no file stands for; a source without partition_column.

    Example:
        .. code-block:: python

            tickets = ParquetTable("tickets/*.parquet", text_columns="message")
            sensor = build_parquet_sensor(embeddings, tickets)
    """
    name = name or f"{assets.node_def.name}_files"
    if not isinstance(source, ParquetTable):
        raise ConfigError(f"sensor {name!r} watches Parquet files; for a DuckDB table take build_watermark_sensor")
    if max_runs_per_tick < 1:
        raise ConfigError(f"sensor {name!r}: max_runs_per_tick is {max_runs_per_tick}; it must be at least 1")
    partitions_def = assets.partitions_def
    if partitions_def is not None and not isinstance(partitions_def, dg.DynamicPartitionsDefinition):
        raise ConfigError(
            f"sensor {name!r}: the assets have partitions that are no files. Give them a DynamicPartitionsDefinition, "
            "or run them by build_fletcher_schedule and build_catch_up_schedule"
        )
    require_partitionable(source, partitions_def)
    dynamic = None if partitions_def is None else partitions_def.name
    key_of = partition_key or partial(file_partition_key, source)
    tags = fletcher_run_tags("files", priority)

    @dg.sensor(
        name=name,
        target=assets,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=description,
    )
    def files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        found = file_states(source)
        cursor = _cursor(context)
        if not found:
            return dg.SkipReason(
                f"there is no file at {', '.join(source.patterns)}: nothing is asked for, and what was embedded stays"
            )
        now = {"": digest(found)} if dynamic is None else _by_partition(found, key_of)
        changed = cursor.changed(now)
        if not changed:
            return dg.SkipReason(f"none of {len(found)} files changed")
        if dynamic is None:
            if run := run_at(context.instance, assets.keys, None):
                return _waits(run)
            request = dg.RunRequest(cursor.run_key("", now), tags=tags)
            return dg.SensorResult([request], cursor=cursor.advanced(now, changed).text())
        known = set(context.instance.get_dynamic_partitions(dynamic))
        # The key of a deleted file may have been deleted too: nobody can run it, and there is nothing to remember.
        changed = [key for key in changed if key in now or key in known]
        gone_for_good = [key for key in cursor.states if key not in now and key not in known]
        free = (key for key in changed if not run_at(context.instance, assets.keys, key))
        taken = list(islice(free, max_runs_per_tick))
        if changed and not taken:
            return _waits()
        new = [key for key in taken if key not in known]
        return dg.SensorResult(
            [dg.RunRequest(cursor.run_key(key, now), tags=tags, partition_key=key) for key in taken],
            cursor=cursor.advanced(now, [*taken, *gone_for_good]).text(),
            dynamic_partitions_requests=[dg.DynamicPartitionsDefinition(name=dynamic).build_add_request(new)]
            if new
            else [],
        )

    return files


def build_watermark_sensor(
    assets: dg.AssetsDefinition,
    source: Source,
    *,
    watermark_column: str,
    lock_timeout: float = 1.0,
    max_runs_per_tick: int = 20,
    name: str | None = None,
    minimum_interval_seconds: int = 60,
    priority: int | None = None,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    description: str | None = None,
) -> dg.SensorDefinition:
    """Asks for a run when the greatest value of a column or the number of rows changed.

    One query a tick, read-only; while a writer holds the database the tick is skipped and says who it is. With
    partitions the same query tells which of them changed, and only those are asked for, neighbours in one run. What a
    run is at, or waits for in the queue, is asked for when that run has ended.

    What changes neither figure goes unseen: a row that is changed without a greater `watermark_column`, or one that is
    deleted while another one comes. A nightly `build_fletcher_schedule` finds those.

    Args:
        assets: those of one `@fletcher_assets`.
        source: whose rows are watched.
        watermark_column: grows with every change of a row: `updated_at`, a running number.
        lock_timeout: seconds to wait for a writer, in place of the source's own `lock_timeout`.
        max_runs_per_tick: with partitions; the other partitions follow with the next ticks.
        name: of the sensor; by default that of the assets' op with `_watermark`.
        minimum_interval_seconds: between two queries.
        priority: of the runs in the queue.
        default_status: whether it is switched on from the beginning.
        description: shown in Dagster's UI.

    Raises:
        ConfigError: partitions that cannot slice the source, a number that cannot work.

    Example:
        .. code-block:: python

            reviews = DuckDBTable("shop.duckdb", table="reviews", text_columns="body")
            sensor = build_watermark_sensor(embeddings, reviews, watermark_column="updated_at")
    """
    name = name or f"{assets.node_def.name}_watermark"
    if max_runs_per_tick < 1:
        raise ConfigError(f"sensor {name!r}: max_runs_per_tick is {max_runs_per_tick}; it must be at least 1")
    if not lock_timeout >= 0:
        raise ConfigError(f"sensor {name!r}: lock_timeout is {lock_timeout}; it must be at least 0 seconds")
    partitions_def = assets.partitions_def
    require_partitionable(source, partitions_def)
    tags = fletcher_run_tags("watermark", priority)

    @dg.sensor(
        name=name,
        target=assets,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=description,
    )
    def table(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        keys = (
            [""]
            if partitions_def is None
            else list(partitions_def.get_partition_keys(dynamic_partitions_store=context.instance))
        )
        try:
            if partitions_def is None:
                figures = {"": watermark(source, watermark_column, lock_timeout=lock_timeout)}
            else:
                slices = [partition_slice(source, partitions_def, key) for key in keys]
                figures = watermarks(source, watermark_column, slices, lock_timeout=lock_timeout)
        except SourceLockedError as error:
            return dg.SkipReason(str(error))
        cursor = _cursor(context)
        # A partition that is empty and always was has nothing to embed.
        now = {key: figure.version for key, figure in figures.items() if figure.rows or key in cursor.states}
        changed = [key for key in cursor.changed(now) if key in now]
        rows = sum(figure.rows for figure in figures.values())
        if not changed:
            return dg.SkipReason(f"the watermark is where it was, at {rows:,} rows")
        if partitions_def is None:
            if run := run_at(context.instance, assets.keys, None):
                return _waits(run)
            request = dg.RunRequest(cursor.run_key("", now), tags=tags)
            return dg.SensorResult([request], cursor=cursor.advanced(now, changed).text())
        free = [key for key in changed if not run_at(context.instance, assets.keys, key)]
        if not free:
            return _waits()
        ranges = list(ranges_of(free, keys, assets.backfill_policy))[:max_runs_per_tick]
        requests = []
        for found in ranges:
            together = {"": digest({key: now[key] for key in found.keys})}
            run_key = f"{found.name}-{cursor.run_key('', together)}"
            requests.append(found.request(run_key, tags, None))
        taken = [key for found in ranges for key in found.keys]
        return dg.SensorResult(requests, cursor=cursor.advanced(now, taken).text())

    return table


def _cursor(context: dg.SensorEvaluationContext) -> SourceCursor:
    """Begun at the moment when the sensor was turned on: with the cursor reset and the sensor turned off and on again,
    everything is asked for once more."""
    return SourceCursor.read(context.cursor, epoch=str(int(context.last_sensor_start_time or 0)))


def _waits(run_id: str | None = None) -> dg.SkipReason:
    who = "runs are at all that changed, or wait" if run_id is None else f"run {run_id} is at it, or waits"
    return dg.SkipReason(f"{who} in the queue: what changed is asked for when it has ended")


def _by_partition(files: Mapping[str, str], partition_key: Callable[[str], str]) -> dict[str, str]:
    """One mark for the files of each partition."""
    together: dict[str, dict[str, str]] = {}
    for path, state in files.items():
        together.setdefault(partition_key(path), {})[path] = state
    return {key: digest(states) for key, states in together.items()}

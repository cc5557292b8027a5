"""A schedule for embedding assets, in the one way that their partitions allow.

In come assets and a cron expression or the hour of a time partition; out goes a Dagster schedule whose runs are tagged.
Settings that Dagster would refuse late or in its own terms are refused here, when the definitions load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from dagster import TimeWindowPartitionsDefinition

from fletcher_core.errors import ConfigError
from fletcher_dagster.run_tags import fletcher_run_tags

if TYPE_CHECKING:  # what Dagster builds for time partitions has no public name
    from dagster._core.definitions.partitions.partitioned_schedule import UnresolvedPartitionedAssetScheduleDefinition


def build_fletcher_schedule(
    assets: dg.AssetsDefinition,
    *,
    cron_schedule: str | None = None,
    execution_timezone: str | None = None,
    minute_of_hour: int | None = None,
    hour_of_day: int | None = None,
    name: str | None = None,
    priority: int | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
    description: str | None = None,
) -> dg.ScheduleDefinition | UnresolvedPartitionedAssetScheduleDefinition:
    """Runs the assets of one `@fletcher_assets` again and again.

    Unpartitioned assets run whole, those of static partitions once a key, both by `cron_schedule`. Time partitions
    run at their own cadence, each time the window that closed last, and take `hour_of_day` and `minute_of_hour`; where
    they are one of two dimensions, a tick runs the window with every key of the other one.

    Args:
        cron_schedule, execution_timezone: when, for all but time partitions.
        minute_of_hour, hour_of_day: when after a window closed, in the time zone of the partitions.
        name: of the schedule; by default that of the assets' op with `_schedule`.
        priority: of the runs in the queue.
        default_status: whether it is switched on from the beginning.
        description: shown in Dagster's UI.

    Raises:
        ConfigError: the settings do not fit the partitions; dynamic partitions, which have no schedule.

    Example:
        .. code-block:: python

            nightly = build_fletcher_schedule(embeddings, cron_schedule="0 3 * * *")
            defs = dg.Definitions(assets=[embeddings], schedules=[nightly], resources={"fletcher": fletcher})
    """
    base = assets.node_def.name
    name = name or f"{base}_schedule"
    partitions_def = assets.partitions_def
    has_hour = minute_of_hour is not None or hour_of_day is not None
    if isinstance(partitions_def, dg.DynamicPartitionsDefinition):
        raise ConfigError(
            f"schedule {name!r}: dynamic partitions come and go with their files, so no clock can name them: use "
            "build_parquet_sensor for new and changed files, or build_catch_up_schedule for what is missing"
        )
    is_timed = _is_timed(partitions_def)
    if is_timed and (cron_schedule or execution_timezone):
        raise ConfigError(
            f"schedule {name!r}: time partitions run at their own cadence and time zone: leave cron_schedule and "
            "execution_timezone out, and give hour_of_day= and minute_of_hour= instead"
        )
    if not is_timed and has_hour:
        raise ConfigError(
            f"schedule {name!r}: hour_of_day and minute_of_hour are for time partitions: give cron_schedule= instead"
        )
    if not is_timed and not cron_schedule:
        raise ConfigError(f"schedule {name!r} needs a cron_schedule=, such as '0 3 * * *' for 3 o'clock each night")
    for setting, value, most in (("minute_of_hour", minute_of_hour, 59), ("hour_of_day", hour_of_day, 23)):
        if value is not None and not 0 <= value <= most:
            raise ConfigError(f"schedule {name!r}: {setting} is {value}; it must be from 0 to {most}")
    tags = fletcher_run_tags("schedule", priority)
    if partitions_def is None:
        return dg.ScheduleDefinition(
            name=name,
            target=assets,
            cron_schedule=cron_schedule,
            execution_timezone=execution_timezone,
            tags=tags,
            default_status=default_status,
            description=description,
        )
    if not is_timed:
        assert cron_schedule is not None

        # Dagster's own builder takes static partitions only on a job that repeats them, which it calls deprecated.
        @dg.schedule(
            name=name,
            target=assets,
            cron_schedule=cron_schedule,
            execution_timezone=execution_timezone,
            default_status=default_status,
            description=description,
        )
        def each_key(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
            keys = partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
            return [dg.RunRequest(key, tags=tags, partition_key=key) for key in keys]

        return each_key
    return dg.build_schedule_from_partitioned_job(
        dg.define_asset_job(f"{name}_job", selection=[*assets.keys]),
        name=name,
        minute_of_hour=minute_of_hour,
        hour_of_day=hour_of_day,
        tags=tags,
        default_status=default_status,
        description=description,
    )


def _is_timed(partitions_def: dg.PartitionsDefinition[str] | None) -> bool:
    """Whether a clock moves on to another partition, of one dimension or of two."""
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return any(_is_timed(dimension.partitions_def) for dimension in partitions_def.partitions_defs)
    return isinstance(partitions_def, TimeWindowPartitionsDefinition)

"""A schedule that finds the partitions that are not embedded, or not by the declared model, and runs them.

In come the assets, a time and a budget; each night out go requests for the missing, the stale and the failed
partitions, neighbours in one run, until the budget is used up. The rest follows the next night.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from fletcher_core.errors import ConfigError, SourceLockedError
from fletcher_core.source_version import watermarks
from fletcher_core.sources import Source
from fletcher_dagster.declaration import declared_source
from fletcher_dagster.partition_ranges import ranges_of
from fletcher_dagster.partitions import partition_slice, require_partitionable
from fletcher_dagster.run_tags import fletcher_run_tags

if TYPE_CHECKING:
    from fletcher_dagster.resources import FletcherResource

_CODE_VERSION = "dagster/code_version"
_RECORDS = 500  # of the event log read at a time


def build_catch_up_schedule(
    assets: dg.AssetsDefinition,
    *,
    cron_schedule: str = "0 2 * * *",
    execution_timezone: str | None = None,
    max_partitions: int | None = None,
    max_rows: int | None = None,
    resource_key: str = "fletcher",
    resource: FletcherResource | None = None,
    name: str | None = None,
    priority: int | None = -1,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
    description: str | None = None,
) -> dg.ScheduleDefinition:
    """Runs missing, stale and failed partitions, so many a tick.

    Missing is a partition that Dagster never saw materialized. Stale is one whose last materialization had another code
    version than the asset has now, or of which the vector store holds rows of another model. Those whose last run
    failed come last, so that a partition that always fails keeps no other one waiting. Partitions that a run has
    already, or waits in the queue with, are left out.

    Args:
        assets: partitioned ones of one `@fletcher_assets`. Their `backfill_policy` says how many partitions one run
            takes.
        cron_schedule, execution_timezone: when.
        max_partitions: the most of each asset a tick; None: all.
        max_rows: stop before the partition with which the rows of the source to look at would be more; one partition
            is always taken. None: no limit, and the source is not asked.
        resource_key: of the `FletcherResource` in the definitions.
        resource: that resource itself, where it is not in the definitions.
        name: of the schedule; by default that of the assets' op with `_catch_up`.
        priority: of the runs in the queue; the default lets everything else go first.
        default_status: whether it is switched on from the beginning.
        description: shown in Dagster's UI.

    Raises:
        ConfigError: assets without partitions, a budget below 1.

    Example:
        .. code-block:: python

            nightly = build_catch_up_schedule(embeddings, cron_schedule="0 2 * * *", max_rows=1_000_000)
    """
    name = name or f"{assets.node_def.name}_catch_up"
    partitions_def = assets.partitions_def
    if partitions_def is None:
        raise ConfigError(
            f"schedule {name!r}: the assets have no partitions to catch up with. An unpartitioned asset catches up "
            "with any run: take build_fletcher_schedule, and for a budget of rows build_rest_sensor with "
            "FletcherResource(max_rows_per_run=...)"
        )
    for setting, value in (("max_partitions", max_partitions), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise ConfigError(f"schedule {name!r}: {setting} is {value}; it must be at least 1, or None for no limit")
    for spec in assets.specs:
        require_partitionable(declared_source(spec), partitions_def)
    tags = fletcher_run_tags("catch-up", priority)

    @dg.schedule(
        name=name,
        target=assets,
        cron_schedule=cron_schedule,
        execution_timezone=execution_timezone,
        required_resource_keys=set() if resource else {resource_key},
        default_status=default_status,
        description=description,
    )
    def catch_up(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        all_keys = partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
        fletcher: FletcherResource = resource or getattr(context.resources, resource_key)
        requests: list[dg.RunRequest] = []
        reasons: list[str] = []
        for spec in assets.specs:
            status = context.instance.get_status_by_partition(spec.key, all_keys, partitions_def) or {}
            state = {key: found.value if (found := status.get(key)) else "" for key in all_keys}
            if running := sum(value == "IN_PROGRESS" for value in state.values()):
                asset = spec.key.to_user_string()
                reasons.append(f"runs are at {running} of {len(all_keys)} partitions of {asset}, or wait for them")
            due = _due(context.instance, fletcher, spec, state)[:max_partitions]
            if max_rows is not None and due:
                try:
                    due = _within(max_rows, due, _rows(declared_source(spec), partitions_def, due))
                except SourceLockedError as error:
                    reasons.append(str(error))
                    continue
            requests += [
                found.request(f"{spec.key.to_user_string()}/{found.name}", tags, [spec.key])
                for found in ranges_of(due, all_keys, assets.backfill_policy)
            ]
        done = f"all of {len(all_keys)} partitions are embedded by the declared model"
        return requests or dg.SkipReason("; ".join(reasons) or done)

    return catch_up


def _due(
    instance: dg.DagsterInstance, fletcher: FletcherResource, spec: dg.AssetSpec, state: Mapping[str, str]
) -> list[str]:
    """What is to run: the missing, then the stale, then the failed. `state` is Dagster's of each partition, '' where it
    never saw one."""
    materialized = [key for key in state if state[key] == "MATERIALIZED"]
    stale = fletcher.outdated_partitions(spec.key) | _of_other_code(instance, spec, materialized)
    return [
        *(key for key in state if not state[key]),
        *(key for key in materialized if key in stale),
        *(key for key in state if state[key] == "FAILED"),
    ]


def _of_other_code(instance: dg.DagsterInstance, spec: dg.AssetSpec, keys: Sequence[str]) -> set[str]:
    """Those of `keys` whose last materialization had another code version than is declared.

    One event a partition is read.
    """
    if spec.code_version is None or not keys:
        return set()
    last = instance.get_latest_storage_id_by_partition(
        spec.key, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=set(keys)
    )
    ids, found = sorted(last.values()), set()
    for first in range(0, len(ids), _RECORDS):
        wanted = dg.AssetRecordsFilter(spec.key, storage_ids=ids[first : first + _RECORDS])
        for record in instance.fetch_materializations(wanted, limit=_RECORDS).records:
            event = record.asset_materialization
            version = (event.tags or {}).get(_CODE_VERSION) if event else None
            if event and event.partition and version not in (None, spec.code_version):
                found.add(event.partition)
    return found


def _rows(source: Source, partitions_def: dg.PartitionsDefinition[str], keys: Sequence[str]) -> dict[str, int]:
    slices = [partition_slice(source, partitions_def, key) for key in keys]
    return {key: figure.rows for key, figure in watermarks(source, None, slices).items()}


def _within(budget: int, keys: Sequence[str], rows: Mapping[str, int]) -> list[str]:
    """The first of `keys` that fit the budget, one at least."""
    taken: list[str] = []
    for key in keys:
        budget -= rows[key]
        if taken and budget < 0:
            break
        taken.append(key)
    return taken

"""A sensor for runs with a budget of rows: as long as a run left rows over, it asks for the next one.

In come materializations with the metadata `fletcher/rows_remaining`; out go run requests, one at a time for each asset
or partition, until nothing remains.
"""

import json
from collections.abc import Collection, Sequence

import dagster as dg

from fletcher_dagster.partition_ranges import ranges_of
from fletcher_dagster.run_tags import fletcher_run_tags
from fletcher_dagster.running import is_unfinished, run_at

REMAINING_KEY = "fletcher/rows_remaining"

# Not the quarantined rows: the same ones are set aside in every run.
_PROGRESS = ("fletcher/rows_embedded", "fletcher/cache_hits", "fletcher/rows_deleted")
_RECORDS = 200  # of the event log read at a time


def build_rest_sensor(
    assets: dg.AssetsDefinition,
    *,
    name: str | None = None,
    minimum_interval_seconds: int = 30,
    priority: int | None = -1,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    description: str | None = None,
) -> dg.SensorDefinition:
    """Asks for the next run while `fletcher/rows_remaining` of the last materialization is above 0.

    Together with `FletcherResource(max_rows_per_run=...)` a changed model is embedded again in portions, between which
    other runs get their turn. The next run is asked for when the last one has ended; one that fails ends the chain
    until the asset is materialized again, and so does one that embedded nothing. Neighbouring partitions go on in one
    run, as far as the assets' `backfill_policy` lets one run take several.

    Args:
        assets: those of one `@fletcher_assets`.
        name: of the sensor; by default that of the assets' op with `_rest`.
        minimum_interval_seconds: between two looks at the last materializations.
        priority: of the runs in the queue; the default lets everything else go first.
        default_status: whether it is switched on from the beginning.
        description: shown in Dagster's UI.

    Example:
        .. code-block:: python

            fletcher = FletcherResource(store_path="vectors", max_rows_per_run=100_000)
            sensor = build_rest_sensor(embeddings)
    """
    name = name or f"{assets.node_def.name}_rest"
    tags = fletcher_run_tags("rest", priority)

    @dg.sensor(
        name=name,
        target=assets,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=description,
    )
    def rest(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen = _read(context.cursor)
        requests: list[dg.RunRequest] = []
        reasons: list[str] = []
        for key in sorted(assets.keys):
            asset = key.to_user_string()
            records = _since(context.instance, key, seen.get(asset))
            last = {record.partition_key: record for record in records}
            # Where a run's budget was used up by its first partitions, the others are left as they were.
            worked = {record.run_id for record in records if any(_figure(record, name) for name in _PROGRESS)}
            waits, due = [], {}
            for partition, record in last.items():
                remaining = _figure(record, REMAINING_KEY)
                if not remaining:
                    continue
                what = "/".join(filter(None, [asset, partition]))
                if is_unfinished(context.instance, record.run_id) or run_at(context.instance, [key], partition):
                    waits.append(record.storage_id)
                    reasons.append(f"{what}: a run is at it")
                elif reason := _why_not(context.instance, record, worked):
                    reasons.append(f"{what}: {remaining:,} rows remain, but {reason}")
                else:
                    due[partition or ""] = record.storage_id
            for found in ranges_of(list(due), _keys(assets, context.instance) if due else [], assets.backfill_policy):
                # One materialization is followed by one run.
                run_key = f"{'/'.join(filter(None, [asset, found.name]))}-{max(due[part] for part in found.keys)}"
                requests.append(found.request(run_key, tags, [key]))
            # What still runs is looked at again; for what is asked for a second time, the run key is known.
            newest = max((record.storage_id for record in records), default=seen.get(asset, 0))
            seen[asset] = min(waits) - 1 if waits else newest
        skipped = None if requests else dg.SkipReason("; ".join(reasons) or "no rows remain")
        return dg.SensorResult(requests or None, skip_reason=skipped, cursor=json.dumps(seen))

    return rest


def _keys(assets: dg.AssetsDefinition, instance: dg.DagsterInstance) -> Sequence[str]:
    """Of all partitions; one empty key without any."""
    if assets.partitions_def is None:
        return [""]
    return assets.partitions_def.get_partition_keys(dynamic_partitions_store=instance)


def _read(cursor: str | None) -> dict[str, int]:
    """The storage id of the last materialization that was looked at, by asset."""
    try:
        return {str(asset): int(storage_id) for asset, storage_id in json.loads(cursor or "{}").items()}
    except (AttributeError, TypeError, ValueError):  # of another sensor
        return {}


def _since(instance: dg.DagsterInstance, key: dg.AssetKey, storage_id: int | None) -> list[dg.EventLogRecord]:
    """Materializations after `storage_id`, the oldest first; without it the newest ones alone, not all of history."""
    if storage_id is None:
        return list(reversed(instance.fetch_materializations(key, limit=_RECORDS).records))
    records: list[dg.EventLogRecord] = []
    wanted, cursor = dg.AssetRecordsFilter(key, after_storage_id=storage_id), None
    while True:
        page = instance.fetch_materializations(wanted, limit=_RECORDS, cursor=cursor, ascending=True)
        records += page.records
        if not page.has_more:
            return records
        cursor = page.cursor


def _why_not(instance: dg.DagsterInstance, record: dg.EventLogRecord, worked: Collection[str]) -> str:
    """Why no run may follow; '' where one may."""
    run = instance.get_run_by_id(record.run_id)
    if run is not None and not run.is_success:
        return f"its last run {record.run_id} ended as {run.status.value}: materialize it again to go on"
    if record.run_id not in worked:
        return f"its last run {record.run_id} embedded none of them: another one would not either"
    return ""


def _figure(record: dg.EventLogRecord, name: str) -> int:
    event = record.asset_materialization
    value = event.metadata[name].value if event and name in event.metadata else 0
    return int(value) if isinstance(value, int | float) else 0

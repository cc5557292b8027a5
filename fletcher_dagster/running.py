"""Which run has an asset or a partition already.

In come an asset, a partition and the instance; out goes the id of the run that waits for it or is at it. A second one
at the same time would find the partition locked, and fail.
"""

from collections.abc import Iterable

import dagster as dg


def run_at(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], partition: str | None) -> str | None:
    """The id of an unfinished run that is to materialize one of the assets (in that partition); None without any."""
    for key in keys:
        planned = instance.get_latest_planned_materialization_info(key, partition=partition)
        if planned and is_unfinished(instance, planned.run_id):
            return planned.run_id
    return None


def is_unfinished(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run waits or goes on; False of one that Dagster no longer knows."""
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished

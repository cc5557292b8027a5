"""The checks of an embedding asset, in the run that materialized it or alone.

In come the context and, after a materialization, a tally of each partition; out go the results of the selected checks.
Alone, source and store are compared as they are now, without changing either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.changes import detect_changes
from fletcher_core.errors import StoreError
from fletcher_dagster.checks import Tally, check_results
from fletcher_dagster.declaration import declared_source
from fletcher_dagster.failures import reported_in_words
from fletcher_dagster.partitions import slices_of

if TYPE_CHECKING:
    from fletcher_dagster.resources import FletcherResource


def check_asset(
    context: dg.AssetExecutionContext, fletcher: FletcherResource, spec: dg.AssetSpec
) -> Iterator[dg.AssetCheckResult]:
    """Compares source and store as they are now, without changing either."""
    name = spec.key.to_user_string()
    with reported_in_words(context, f"checking {name}"):
        source = declared_source(spec)
        with fletcher.store(spec.key) as store, store.workspace(context.run.run_id) as folder:
            generation = store.current()
            if generation is None:
                raise StoreError(f"asset {name!r} has no vectors to check yet: materialize it first")
            tallies = []
            for partition in slices_of(context, spec, source, default=generation.partitions()):
                changes = detect_changes(source, partition, generation, folder)
                present = changes.new + changes.changed + changes.stale + changes.unchanged
                live, quarantined = generation.row_count(partition.key), store.quarantine.read(partition.key)
                tallies.append(tally_of(partition.key, live, present, quarantined))
    yield from selected_checks(context, fletcher, spec.key, tallies)


def tally_of(partition_key: str, live: int, present: int, quarantined: pa.Table) -> Tally:
    """`present` rows have a text and an id of their own; those that the engine refused are not embeddable."""
    absent = pc.is_in(quarantined["reason"], pa.array(["duplicate_id", "invalid_text"]))
    refused = int(pc.sum(pc.invert(absent)).as_py() or 0)
    return Tally(partition_key, live, present - refused, quarantined)


def selected_checks(
    context: dg.AssetExecutionContext, fletcher: FletcherResource, key: dg.AssetKey, tallies: Sequence[Tally]
) -> Iterator[dg.AssetCheckResult]:
    selected = {check.name for check in context.selected_asset_check_keys if check.asset_key == key}
    results = check_results(key, tallies, fletcher.quarantine_limit)
    return (result for result in results if result.check_name in selected)

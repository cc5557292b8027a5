"""A backfill of 60 days, launched over GraphQL and carried out by the daemon as one run."""

from typing import Any

import dagster as dg
import pytest
from conftest import Live
from embedding_project import plain

pytestmark = pytest.mark.xdist_group("live")
ASSET = "docs_embeddings"


def backfilled(live: Live) -> tuple[str, dict[str, dict[str, Any]]]:
    """The id of the one run of a backfill of all days, and the figures of each day that it reported."""
    state = live.web.finished_backfill(live.web.backfill(ASSET, live.days))
    assert (state["status"], state["numPartitions"]) == ("COMPLETED_SUCCESS", len(live.days)), state
    (run,) = state["runs"]
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(ASSET))
    records = live.instance.fetch_materializations(wanted, limit=2 * len(live.days)).records
    figures: dict[str, dict[str, Any]] = {}
    for record in records:  # the latest first
        if record.run_id == run["runId"] and record.asset_materialization and record.partition_key:
            figures.setdefault(record.partition_key, plain(record.asset_materialization.metadata))
    return run["runId"], figures


def test_sixty_days_are_one_run_and_each_has_its_own_figures(live: Live) -> None:
    _, figures = backfilled(live)
    assert sorted(figures) == live.days
    rows = {day: n % 3 + 1 for n, day in enumerate(live.days)}
    assert {day: of_day["dagster/partition_row_count"] for day, of_day in figures.items()} == rows
    assert {day: of_day["fletcher/rows_embedded"] for day, of_day in figures.items()} == rows
    assert live.rows(ASSET) == rows

    live.sql(f"UPDATE docs SET text = text || ', changed' WHERE day = '{live.days[7]}'")
    _, again = backfilled(live)
    assert sorted(again) == live.days  # unchanged ones too: Dagster would take the backfill for failed without them
    embedded = {
        day: of_day["fletcher/rows_embedded"] for day, of_day in again.items() if of_day["fletcher/rows_embedded"]
    }
    assert embedded == {live.days[7]: rows[live.days[7]]}
    assert (
        sum(of_day["fletcher/rows_unchanged"] for of_day in again.values()) == sum(rows.values()) - rows[live.days[7]]
    )
    assert live.instance.get_materialized_partitions(dg.AssetKey(ASSET)) == set(live.days)

"""Cancelling from the UI while a run is embedding: it stops, is not retried, and keeps what it had committed."""

import time

import dagster as dg
import pytest
from conftest import PAGES, Live
from webserver_client import FINISHED, until

pytestmark = pytest.mark.xdist_group("live")

BOTH = {"dagster/asset_partition_range_start": "leaflet", "dagster/asset_partition_range_end": "tome"}
SOON = 10.0  # seconds; the promise is 2 on a quiet machine, and what was measured is printed


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_cancelled_run_stops_soon_and_says_what_it_committed(live: Live, executor: str) -> None:
    asset = f"{executor}_embeddings"
    run_id = live.web.launch(f"cancelled_{executor}", BOTH)
    until(lambda: live.rows(asset).get("tome") or None, 120)
    asked = time.monotonic()
    live.web.terminate(run_id)
    until(lambda: live.web.run_status(run_id) in FINISHED or None, 120)
    stopped = time.monotonic() - asked
    rows = live.rows(asset)
    print(f"{executor}: ended {stopped:.2f} s after it was cancelled, with {rows} committed")
    assert live.web.run_status(run_id) == "CANCELED"
    assert stopped < SOON
    assert rows["leaflet"] == 200
    assert 0 < rows["tome"] < PAGES
    assert_not_retried(live, run_id)
    time.sleep(2)  # longer than the retry policy's delay
    assert live.web.run_status(run_id) == "CANCELED"
    assert live.rows(asset) == rows  # nobody goes on behind Dagster's back


def test_a_cancelled_backfill_stops_its_run(live: Live) -> None:
    backfill = live.web.backfill("backfilled_embeddings", ["leaflet", "tome"])
    until(lambda: live.rows("backfilled_embeddings").get("tome") or None, 120)
    asked = time.monotonic()
    live.web.cancel_backfill(backfill)
    state = live.web.finished_backfill(backfill)
    stopped = time.monotonic() - asked
    rows = live.rows("backfilled_embeddings")
    print(f"backfill: ended {stopped:.2f} s after it was cancelled, with {rows} committed")
    (run,) = state["runs"]
    assert (state["status"], run["status"]) == ("CANCELED", "CANCELED")
    assert stopped < SOON
    assert rows["leaflet"] == 200
    assert 0 < rows["tome"] < PAGES
    assert_not_retried(live, run["runId"])


def assert_not_retried(live: Live, run_id: str) -> None:
    """One failure, in words, no second attempt, and the pool's place is free again."""
    events = [entry.dagster_event for entry in live.instance.all_logs(run_id) if entry.dagster_event]
    kinds = [event.event_type_value for event in events]
    assert "STEP_UP_FOR_RETRY" not in kinds
    assert "STEP_RESTARTED" not in kinds
    (failed,) = [event for event in events if event.event_type_value == "STEP_FAILURE"]
    data = failed.step_failure_data.user_failure_data
    assert data is not None, failed.step_failure_data.error
    assert data.description is not None
    print(data.description)
    assert "committed" in data.description
    assert live.instance.event_log_storage.get_concurrency_info("fletcher_gpu").active_slot_count == 0
    assert live.instance.get_runs(dg.RunsFilter(run_ids=[run_id]))[0].status == dg.DagsterRunStatus.CANCELED

"""Fletcher's schedules under the daemon: a minute's tick runs what is due, and asks no more once that is embedded."""

from datetime import UTC, datetime

import pytest
from conftest import Live
from webserver_client import FINISHED, Run, until

pytestmark = pytest.mark.xdist_group("live")


def test_the_catch_up_runs_the_missing_and_the_stale_partitions_in_ranges(live: Live) -> None:
    runs = live.finished_runs(2, schedule_name="shelves_catch_up")
    live.web.turn_off_schedule("shelves_catch_up")
    assert {run.partitions: run.status for run in runs} == {"a...d": "SUCCESS", "g": "SUCCESS"}
    assert {run.tags["fletcher/trigger"] for run in runs} == {"catch-up"}
    assert live.web.partitions("shelves_embeddings") == {"materialized": [*"abcdefg"]}
    assert live.rows("shelves_embeddings") == dict.fromkeys("abcdefg", 2)
    found = {run.partitions: [each["fletcher/rows_embedded"] for each in run.figures] for run in runs}
    assert set(found["a...d"]) == set(found["g"]) == {2}
    asked, reason = live.web.preview_schedule("shelves_catch_up", datetime.now(UTC))
    assert (asked, reason) == ([], "all of 7 partitions are embedded by the declared model")
    assert len(live.web.runs_of(schedule_name="shelves_catch_up")) == 2


def test_an_unpartitioned_asset_runs_by_cron(live: Live) -> None:
    def ended() -> Run | None:
        return next((run for run in live.web.runs_of(schedule_name="notes_schedule") if run.status in FINISHED), None)

    run = until(ended, 180)
    live.web.turn_off_schedule("notes_schedule")
    assert (run.status, run.tags["fletcher/trigger"]) == ("SUCCESS", "schedule")
    assert live.rows("notes_embeddings") == {"": 5}


def test_time_partitions_run_for_the_window_that_closed_last(live: Live) -> None:
    four = datetime.fromisoformat(live.days[9]).replace(hour=4, tzinfo=UTC)
    (tags, *others), _ = live.web.preview_schedule("days_schedule", four)
    assert not others
    assert (tags["dagster/partition"], tags["fletcher/trigger"]) == (live.days[8], "schedule")

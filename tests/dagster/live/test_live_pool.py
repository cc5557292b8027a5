"""Runs that are at work at once share the engine as the pool's limit says: here one step after the other."""

import pytest
from conftest import Live

pytestmark = pytest.mark.xdist_group("live")


def test_steps_of_one_pool_take_turns(live: Live) -> None:
    state = live.web.finished_backfill(live.web.backfill("turns_embeddings", ["a", "b"]))
    assert state["status"] == "COMPLETED_SUCCESS", state
    runs = [run["runId"] for run in state["runs"]]
    assert len(runs) == 2
    began, ended = {}, {}
    for run_id in runs:
        for entry in live.instance.all_logs(run_id):
            kind = entry.dagster_event.event_type_value if entry.dagster_event else ""
            if kind == "STEP_START":
                began[run_id] = entry.timestamp
            elif kind == "STEP_SUCCESS":
                ended[run_id] = entry.timestamp
    one, other = sorted(runs, key=began.__getitem__)
    assert ended[one] <= began[other]
    assert live.rows("turns_embeddings") == {"a": 2, "b": 2}

"""A sensor and a schedule that were turned on over GraphQL: the daemon evaluates them, and their runs succeed."""

import pytest
from conftest import Live
from webserver_client import FINISHED, until

pytestmark = pytest.mark.xdist_group("live")


@pytest.mark.parametrize(("name", "seconds"), [("notes_changed", 30), ("every_minute", 90)])
def test_a_tick_launches_a_run_that_succeeds(live: Live, name: str, seconds: float) -> None:
    def launched() -> str | None:
        ticks = live.web.ticks(name)
        assert not [tick["error"] for tick in ticks if tick["error"]]
        return next((run_id for tick in ticks for run_id in tick["runIds"]), None)

    run_id = until(launched, seconds)
    until(lambda: live.web.run_status(run_id) in FINISHED or None, 120)
    assert live.web.run_status(run_id) == "SUCCESS"
    assert live.rows("notes_embeddings") == {"": 5}

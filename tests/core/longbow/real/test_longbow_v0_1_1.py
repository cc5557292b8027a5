"""The release that `@latest` installs speaks an older protocol: it is recognized, refused by name, and left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed_rows import QUICK, CommittedRows, Query

from fletcher_core.errors import LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.sender import Sender, SenderSettings
from fletcher_core.search import search


@pytest.fixture
def old(start: Any) -> Any:
    return start("v0.1.1")


@pytest.fixture
def client(old: Any) -> Iterator[LongbowClient]:
    """As users have it."""
    with LongbowClient(LongbowSettings(old.process.address.data, old.process.address.meta)) as connected:
        yield connected


@pytest.fixture
def committed(tmp_path: Path) -> Iterator[CommittedRows]:
    rows = CommittedRows(tmp_path / "store")
    yield rows
    rows.close()


def test_it_is_recognized_before_anything_is_put(old: Any, client: LongbowClient, committed: CommittedRows) -> None:
    """A put of another dimension would end its process."""
    committed.commit(["a", "b"])
    with Sender(committed.generation, client, QUICK) as sender:
        report = sender.drain(20)
    assert "older than v0.1.2" in report.rejected
    assert (report.puts, report.rows_sent, report.segments["pending"]) == (0, 0, 1)
    assert old.client().list_datasets() == []
    assert old.process.is_running


def test_a_drain_raises_the_refusal_where_it_is_told_to(client: LongbowClient, committed: CommittedRows) -> None:
    committed.commit(["a"])
    with (
        Sender(committed.generation, client, SenderSettings(raise_on_failure=True)) as sender,
        pytest.raises(LongbowRejected, match=r"older than v0\.1\.2"),
    ):
        sender.drain(20)


def test_readiness_search_and_delete_name_the_release(client: LongbowClient, committed: CommittedRows) -> None:
    committed.commit(["a"])
    query = Query(np.eye(1, 8, dtype=np.float32)[0])
    for call in (
        client.readiness,
        lambda: client.delete("docs", 1),
        lambda: client.delete_dataset("docs"),
        lambda: search(committed.store, client, query, "a"),
    ):
        with pytest.raises(LongbowRejected, match=r"older than v0\.1\.2"):
            call()


def test_after_it_is_replaced_by_a_current_server_everything_is_delivered(
    start: Any, old: Any, client: LongbowClient, committed: CommittedRows
) -> None:
    committed.commit(["a", "b"])
    assert committed.deliver(client).rejected
    old.process.stop()
    with pytest.raises(LongbowUnavailable):
        client.readiness()
    with start("embedded").client() as current:
        assert committed.deliver(current).is_complete
        committed.assert_delivered(current, once=True)

"""Reconciling with servers that came back empty, older, with deleted rows, or with rows that nobody knows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fletcher_core.errors import LongbowUnavailable
from fletcher_core.longbow.breaker import BreakerSettings
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.reconcile import _Comparison, reconcile
from fletcher_core.longbow.sender import Sender, SenderSettings
from fletcher_core.longbow.server import Faults
from fletcher_core.store.segments import Segment

QUICK = SenderSettings(patience=0.2, slow_down_pause=0.01)
Connect = Callable[..., LongbowClient]


@pytest.fixture
def delivered(collection: Any, connect: Connect) -> Any:
    """Twelve segments, some of whose rows were replaced or deleted later, all delivered one after the other."""
    for number in range(10):
        collection.write([f"row {number} {n}" for n in range(5)])
    collection.write([f"row {number} 0" for number in range(4)])
    collection.write(deletes=["row 5 1", "row 5 2"])
    with connect(streams=1) as client, Sender(collection.generation, client, QUICK) as sender:
        assert drain(sender, timeout=20).is_complete
    return collection


def visible(collection: Any, client: LongbowClient) -> list[int]:
    """What other people's scans show."""
    return sorted(client.scan(collection.generation.name)["id"].to_pylist())


@pytest.mark.parametrize("extended", [True, False])
def test_nothing_to_do(server: Any, delivered: Any, client: LongbowClient, extended: bool) -> None:
    server.faults = Faults(no_extensions=not extended)
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert report.balances
    assert (report.segments, report.rows, report.on_server, report.missing, report.sent) == (12, 48, 54, 0, 0)
    assert (report.superseded, report.repeated, report.unknown) == (6, 0, 0)
    assert report.index_len == 54


@pytest.mark.parametrize("extended", [True, False])
def test_a_server_that_was_started_empty_gets_everything(
    server: Any, delivered: Any, client: LongbowClient, tmp_path: Path, extended: bool
) -> None:
    server.stop()
    shutil.rmtree(tmp_path / "server")
    server.start(faults=Faults(no_extensions=not extended))
    before = reconcile(delivered.generation, client, dry_run=True)
    assert (before.rows, before.on_server, before.missing, before.still_missing) == (48, 0, 48, 48)
    assert not before.balances
    assert client.readiness(delivered.generation.name).status == "NOT_FOUND"
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert (report.missing, report.sent, report.still_missing) == (48, 54, 0)
    assert report.deleted + report.kept == 6
    assert report.balances
    assert visible(delivered, client) == sorted(delivered.live.values())
    assert reconcile(delivered.generation, client, settings=QUICK).sent == 0


def test_a_server_that_lost_its_last_puts_gets_those_rows_only(
    server: Any, delivered: Any, client: LongbowClient
) -> None:
    server.start(faults=Faults(lose_last_puts=2))
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert (report.missing, report.sent, report.still_missing) == (9, 9, 0)
    assert report.balances


def test_rows_that_the_ledger_believes_in_are_found_missing_although_the_index_is_long_enough(
    server: Any, delivered: Any, client: LongbowClient
) -> None:
    """Others' rows in the dataset hide from the sender, which counts, that ours are gone."""
    server.start(faults=Faults(lose_last_puts=1))
    foreign = client.scan(delivered.generation.name).slice(0, 8)
    foreign = foreign.set_column(0, "id", pa.array(range(1_000_000, 1_000_008), pa.uint64()))
    client.put(delivered.generation.name, foreign)
    with Sender(delivered.generation, client, QUICK) as sender:
        assert drain(sender, timeout=20).is_complete
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert (report.missing, report.sent, report.unknown) == (4, 4, 8)
    assert report.balances


@pytest.mark.parametrize("extended", [True, False])
def test_deletes_that_a_restart_took_back_are_delivered_again(
    server: Any, collection: Any, client: LongbowClient, extended: bool
) -> None:
    collection.write(["a", "b", "c", "d"])
    server.faults = Faults(resurrect_deletes=True, no_extensions=not extended)
    with Sender(collection.generation, client, QUICK) as sender:
        assert drain(sender, timeout=20).is_complete
        collection.write(["a"], deletes=["b"])
        sender.notify()
        assert drain(sender, timeout=20).is_complete
    assert visible(collection, client) == sorted(collection.live.values())
    server.stop()
    server.start(faults=Faults(resurrect_deletes=True, no_extensions=not extended))
    assert len(visible(collection, client)) == 5
    report = reconcile(collection.generation, client, settings=QUICK)
    assert (report.superseded, report.deleted, report.kept) == (2, 0, 2)  # that server has forgotten the ids of rows
    assert report.balances
    server.stop()
    server.start(faults=Faults(no_extensions=not extended))
    report = reconcile(collection.generation, client, settings=QUICK)
    assert (report.superseded, report.deleted, report.kept) == (2, 2, 0)
    assert visible(collection, client) == sorted(collection.live.values())


@pytest.mark.parametrize("extended", [True, False])
def test_rows_of_segments_that_the_store_no_longer_has_are_deleted_but_for_one_a_stored_batch(
    server: Any, collection: Any, client: LongbowClient, extended: bool
) -> None:
    server.faults = Faults(wholly_deleted_batch_breaks_scan=True, no_extensions=not extended)
    for name in ("a", "b", "c"):
        collection.write([f"{name}{n}" for n in range(3)], partition=name)
    with Sender(collection.generation, client, QUICK) as sender:
        assert drain(sender, timeout=20).is_complete
    collection.store.retire(collection.generation.name, "b")
    report = reconcile(collection.generation, client, settings=QUICK)
    assert (report.rows, report.on_server, report.unknown) == (6, 9, 3)
    assert (report.deleted, report.kept, report.balances) == (2, 1, True)
    assert len(visible(collection, client)) == 7


def test_rows_that_a_run_commits_and_delivers_meanwhile_are_left_alone(
    delivered: Any, client: LongbowClient, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled_ids, calls = client.labelled_ids, 0

    def read_while_a_run_goes_on(*arguments: Any, **options: Any) -> pa.Table:
        nonlocal calls
        calls += 1
        if calls in (2, 4):  # the last parts of both comparisons
            delivered.write([f"late {calls} {n}" for n in range(5)])
            with connect() as other, Sender(delivered.generation, other, QUICK) as sender:
                assert drain(sender, timeout=20).is_complete
        return labelled_ids(*arguments, **options)

    monkeypatch.setattr(client, "labelled_ids", read_while_a_run_goes_on)
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert (report.rows, report.on_server, report.unknown, report.balances) == (48, 54, 0, True)
    assert visible(delivered, client) == sorted(delivered.live.values())
    assert calls == 4
    assert len(delivered.live) == 58


@pytest.mark.parametrize("extended", [True, False])
def test_a_reconcile_that_is_interrupted_leaves_no_outdated_rows_for_good(
    server: Any,
    delivered: Any,
    client: LongbowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extended: bool,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    server.stop()
    shutil.rmtree(tmp_path / "server")
    server.start(faults=Faults(no_extensions=not extended))
    monkeypatch.setattr("fletcher_core.longbow.reconcile._delete_outdated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconcile(delivered.generation, client, settings=QUICK)
    with Sender(delivered.generation, client, QUICK) as sender:
        assert drain(sender, timeout=20).is_complete
    assert visible(delivered, client) == sorted(delivered.live.values())


def test_copies_and_compacted_rows_are_told_apart(server: Any, delivered: Any, client: LongbowClient) -> None:
    label = delivered.generation.segments()[3].label
    client.put(delivered.generation.name, client.scan(delivered.generation.name, [("segment", "=", label)]))
    delivered.generation.compact()
    report = reconcile(delivered.generation, client, settings=QUICK)
    assert (report.rows, report.on_server, report.repeated) == (48, 59, 4)
    assert (report.superseded + report.unknown, report.surplus) == (7, 11)
    assert report.balances


def test_rows_that_are_not_indexed_do_not_balance(server: Any, delivered: Any, client: LongbowClient) -> None:
    server.faults = Faults(index_stall=True)
    delivered.write(["new"])
    report = reconcile(delivered.generation, client, settings=QUICK, timeout=0.5)
    assert report.still_missing == 0
    assert "55 rows" in report.problem
    assert not report.balances


def test_a_server_that_fails_three_calls_in_ten_is_reconciled(
    server: Any, delivered: Any, client: LongbowClient, tmp_path: Path
) -> None:
    server.stop()
    shutil.rmtree(tmp_path / "server")
    server.start(faults=Faults(fail_share=0.3, fail_seed=5))
    assert reconcile(delivered.generation, client, settings=SenderSettings(patience=2.0)).balances


def test_a_server_that_is_down_is_reported(
    server: Any, delivered: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.longbow.reconcile._PATIENCE", 0.5)
    server.stop()
    with pytest.raises(LongbowUnavailable, match="not reachable"):
        reconcile(delivered.generation, connect(breaker=BreakerSettings(backoff=1.0)))


def test_a_store_whose_rows_are_all_deleted(server: Any, collection: Any, client: LongbowClient) -> None:
    collection.write(["a"])
    with Sender(collection.generation, client, QUICK) as sender:
        drain(sender, timeout=20)
        collection.write(deletes=["a"])
        sender.notify()
        drain(sender, timeout=20)
    report = reconcile(collection.generation, client, settings=QUICK)
    assert (report.rows, report.on_server, report.kept, report.balances) == (0, 1, 1, True)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), max_size=60),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_outdated_each_stored_batch_keeps_a_row_and_no_live_row_goes(
    rows: list[tuple[int, int, bool]],
) -> None:
    live = sorted({row for _, row, is_live in rows if is_live})
    comparison = _Comparison(
        [Segment("seg", "g", "", Path("f"), 11, 0, 0, 10, 0, "r", 0.0)],
        np.array(live, dtype=np.int64),
        np.array([row for _, row, _ in rows], dtype=np.int64),
        np.array([block for block, _, _ in rows], dtype=np.int64),
    )
    ids, kept = comparison.deletable()
    gone = set(ids.tolist())
    assert not gone & set(live)
    for block in {block for block, _, _ in rows}:
        assert {row for b, row, _ in rows if b == block} - gone
    outdated = {(block, row) for block, row, _ in rows if row not in live}
    assert len(ids) + kept == len(outdated)

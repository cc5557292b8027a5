"""Delivery to servers that are slow, broken, forgetful, full or ended: nothing is lost, nothing outdated is found.

Each test names the rule of the protocol's notes (section 15) or the server's oddity that it holds Fletcher to. What a
real server does only by chance or after hours, the embedded server is told to do (`EMBEDDED`).
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from committed_rows import DIMENSION, QUICK, CommittedRows, drained
from slow_network import SlowNetwork

from fletcher_core.errors import LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.sender import Sender

EVERY = ["embedded", "newest", "v0.1.1"]
CURRENT = ["embedded", "newest"]
EMBEDDED = ["embedded"]
REAL = ["newest", "v0.1.1"]
Start = Callable[..., Any]


@pytest.fixture
def committed(tmp_path: Path) -> Iterator[CommittedRows]:
    rows = CommittedRows(tmp_path / "store")
    yield rows
    rows.close()


def on(kinds: list[str]) -> Any:
    return pytest.mark.parametrize("kind", kinds)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


def wait_until(fact: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(LongbowUnavailable):  # the circuit may be open for a moment
            if fact():
                return
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.005)


# The network


@on(EVERY)
def test_a_slow_network_delays_and_loses_nothing(start: Start, committed: CommittedRows, kind: str) -> None:
    served = start(kind)
    for number in range(4):
        committed.commit(names(f"row {number}", 300))
    committed.commit(["row 0 0"], deletes=["row 1 1"])
    with (
        SlowNetwork(served.process.address.data, bytes_per_second=200_000, latency=0.01) as network,
        served.client(data=network.address) as client,
    ):
        began = time.monotonic()
        report = committed.deliver(client)
        assert report.is_complete
        assert report.unavailable == ""
        assert network.sent > report.bytes_sent
        assert time.monotonic() - began > report.bytes_sent / 200_000 / 3 / 2, "three connections' worth, with slack"
        committed.assert_delivered(client, once=True)


@on(EVERY)
def test_a_commit_and_a_close_wait_for_no_network(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 1: writes block, so they are kept off the caller's thread."""
    served = start(kind)
    with (
        SlowNetwork(served.process.address.data) as network,
        served.client(data=network.address, call_timeout=60.0, put_timeout=60.0, read_timeout=60.0) as client,
    ):
        network.stall_after = 0
        sender = Sender(committed.generation, client, QUICK).start()
        began = time.monotonic()
        committed.commit(names("row", 100))
        sender.notify()
        assert sender.drain(0.1).is_complete is False
        sender.close(timeout=0.1)
        assert time.monotonic() - began < 10
        network.stall_after = None


@on(EVERY)
def test_a_network_that_falls_silent_within_a_put_ends_it_at_its_deadline(
    start: Start, committed: CommittedRows, kind: str
) -> None:
    """Rule 1: a deadline on every call. Rule 2: then the outcome is unknown, so read back before sending again."""
    served = start(kind)
    committed.commit(names("row", 2000))
    with (
        SlowNetwork(served.process.address.data) as network,
        served.client(data=network.address, put_timeout=0.5, call_timeout=2.0, read_timeout=2.0) as client,
        Sender(committed.generation, client, QUICK) as sender,
    ):
        network.stall_after = 30_000
        wait_until(lambda: sender.report().unavailable)
        assert "no answer before the deadline" in sender.report().unavailable
        network.stall_after = None
        assert drained(sender).is_complete
        committed.assert_delivered(client)


@on(EVERY)
def test_rows_whose_ok_was_lost_on_the_way_are_not_sent_again(
    start: Start, committed: CommittedRows, kind: str
) -> None:
    """Rule 2: read back before sending again."""
    served = start(kind)
    with (
        SlowNetwork(served.process.address.data) as network,
        served.client(data=network.address, put_timeout=0.5) as client,
        Sender(committed.generation, client, QUICK) as sender,
    ):
        committed.commit(names("early", 5))
        assert drained(sender).is_complete
        committed.commit(names("row", 300))
        network.hold_answers_after = network.sent + 12_000  # amid the put, of which 64 kB pass without an answer
        sender.notify()
        wait_until(lambda: sender.report().unavailable)
        network.hold_answers_after = None
        assert drained(sender).is_complete
        committed.assert_delivered(client, once=True)


@on(EVERY)
@pytest.mark.parametrize("after", [2_000, 30_000, 90_000])
def test_a_connection_reset_within_a_put_loses_nothing(
    start: Start, committed: CommittedRows, kind: str, after: int
) -> None:
    """Rule 2: after anything but a clean close nobody knows what arrived."""
    served = start(kind)
    committed.commit(names("row", 1500))
    with (
        SlowNetwork(served.process.address.data) as network,
        served.client(data=network.address) as client,
    ):
        network.reset_after = after
        assert committed.deliver(client).is_complete
        assert network.reset_after is None, "no connection was reset"
        committed.assert_delivered(client)


@on(EVERY)
def test_connections_that_break_again_and_again_lose_nothing(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 9: try again with pauses."""
    served = start(kind)
    with (
        SlowNetwork(served.process.address.data, latency=0.001) as network,
        served.client(data=network.address) as client,
        Sender(committed.generation, client, QUICK) as sender,
    ):
        for number in range(12):
            committed.commit(names("row", 50 + number))
            sender.notify()
            network.reset_after = network.sent + 7000 * number
            time.sleep(0.02)
        network.reset_after = None
        assert drained(sender).is_complete
        committed.assert_delivered(client)


# A server that ends


@on(EVERY)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_ends_within_a_put_gets_the_rest_later(
    start: Start, committed: CommittedRows, kind: str, how: str
) -> None:
    """Rules 2 and 3. Longbow says GOAWAY when it is stopped, and nothing when it is killed."""
    served = start(kind)
    committed.commit(names("early", 50))
    with served.client() as client:
        assert committed.deliver(client).is_complete
    committed.commit(names("row", 2000))
    network = SlowNetwork(served.process.address.data, bytes_per_second=150_000)
    with network, served.client(data=network.address) as client, Sender(committed.generation, client, QUICK) as sender:
        wait_until(lambda: network.sent > 40_000)
        threading.Timer(0.2, network.reset).start()  # else a stopped server waits for the put to end
        getattr(served.process, how)()
        wait_until(lambda: sender.report().unavailable)
        served.process.start()
        network.bytes_per_second = None
        assert drained(sender).is_complete
        committed.assert_delivered(client)


@on(EVERY)
def test_a_server_that_came_back_empty_gets_everything_again(start: Start, committed: CommittedRows, kind: str) -> None:
    """Section 12: find out by reading, not by trusting one's own record of OKs."""
    served = start(kind)
    committed.commit(names("row", 20))
    committed.commit(["row 1"], deletes=["row 2"])
    with served.client() as client, Sender(committed.generation, client, QUICK) as sender:
        assert drained(sender).is_complete
        served.process.wipe()
        assert drained(sender).is_complete
        committed.assert_delivered(client, once=True)


@on(EVERY)
def test_a_server_that_came_back_older_gets_what_it_lacks(
    start: Start, committed: CommittedRows, kind: str, tmp_path: Path
) -> None:
    """Its rows are set back to an earlier state, as a restored backup has them."""
    served = start(kind)
    data, backup = served.process.folder / "data", tmp_path / "backup"
    committed.commit(names("row", 20))
    with served.client() as client:
        assert committed.deliver(client).is_complete
        served.process.stop()
        shutil.copytree(data, backup)
        served.process.start()
    committed.commit(names("row", 5), deletes=["row 7"])
    with served.client() as client:
        assert committed.deliver(client).is_complete
        served.process.stop()
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        served.process.start()
    with served.client() as client:
        assert committed.deliver(client).is_complete
        committed.assert_delivered(client, once=True)


@on(REAL)
@pytest.mark.parametrize("cut", [1, 200, 5000])
def test_a_torn_end_of_the_write_ahead_log_costs_no_row(
    start: Start, committed: CommittedRows, kind: str, cut: int
) -> None:
    """Section 12: a torn tail is tolerated once and may stop the next start; the way out is an empty folder."""
    served = start(kind)
    log = served.process.write_ahead_log
    with served.client() as client:
        for number in range(4):
            committed.commit(names(f"row {number}", 40))
        assert committed.deliver(client).is_complete
        served.process.kill()
    for _ in range(2):
        with log.open("ab") as file:
            file.truncate(max(0, log.stat().st_size - cut))
        start_or_wipe(served)
        with served.client() as client:
            assert committed.deliver(client).is_complete
            committed.assert_delivered(client)
            committed.commit(["row 1 1"], deletes=["row 2 2"] if "row 2 2" in committed.live else [])
            assert committed.deliver(client).is_complete
            committed.assert_delivered(client)
        served.process.kill()
        start_or_wipe(served)
        with served.client() as client:
            assert committed.deliver(client).is_complete
            committed.assert_delivered(client)
        served.process.kill()


def start_or_wipe(served: Any) -> None:
    try:
        served.process.start()
    except RuntimeError:
        served.process.wipe()


@on(REAL)
def test_a_server_that_stands_still_holds_nobody_up(start: Start, committed: CommittedRows, kind: str) -> None:
    """Its process is stopped: connections stay open, and nothing is answered."""
    served = start(kind)
    committed.commit(names("early", 5))
    with (
        served.client(put_timeout=0.3, call_timeout=0.3, read_timeout=0.3) as client,
        Sender(committed.generation, client, QUICK) as sender,
    ):
        assert drained(sender).is_complete
        served.process.pause()
        try:
            committed.commit(names("row", 200))
            report = sender.drain(10)
            assert "no answer before the deadline" in report.unavailable
        finally:
            served.process.go_on()
        assert drained(sender).is_complete
        committed.assert_delivered(client)


@on(EVERY)
def test_segments_on_their_way_at_once_do_not_mix(start: Start, committed: CommittedRows, kind: str) -> None:
    served = start(kind)
    for number in range(24):
        committed.commit(names(f"row {number}", 30))
    with served.client(streams=6) as client:
        assert committed.deliver(client).is_complete
        committed.assert_delivered(client, once=True)


# A server that is full, or says that it is


@pytest.mark.parametrize(("kind", "settings"), [(kind, {"GRPC_MAX_CONCURRENT_STREAMS": 1}) for kind in REAL])
def test_a_server_that_takes_one_stream_at_a_time_gets_one_after_the_other(
    start: Start, committed: CommittedRows, kind: str, settings: dict[str, int]
) -> None:
    served = start(kind, **settings)
    for number in range(6):
        committed.commit(names(f"row {number}", 200))
    with served.client(streams=4) as client:
        assert committed.deliver(client).is_complete
        committed.assert_delivered(client, once=True)


@on(REAL)
def test_a_rate_limit_slows_delivery_down_and_loses_nothing(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 9: RESOURCE_EXHAUSTED is tried again."""
    served = start(kind, RATE_LIMIT_RPS=8, RATE_LIMIT_BURST=1)
    for number in range(3):
        committed.commit(names(f"row {number}", 20))
    with served.client(call_timeout=0.05) as client:
        client.list_datasets()
        with pytest.raises(LongbowUnavailable, match="out of a resource"):
            client.list_datasets()
    with served.client() as client:
        assert committed.deliver(client).is_complete
    served.process.start(RATE_LIMIT_RPS=0)
    with served.client() as client:
        committed.assert_delivered(client)


@pytest.mark.parametrize(
    ("kind", "settings", "relieved"),
    [
        ("embedded", {"stall_before_flush": True}, {"stall_before_flush": False}),
        ("newest", {"MAX_MEMORY": 105 * 2**20}, {"MAX_MEMORY": 64 * 2**30}),
    ],
)
def test_a_server_over_its_memory_limit_wedges_puts_and_no_row_is_lost(
    start: Start, committed: CommittedRows, kind: str, settings: dict[str, Any], relieved: dict[str, Any]
) -> None:
    """Section 11: every put hangs until its deadline while the server says READY. Rule 9: let a put decide."""
    served = start(kind, **settings)
    with served.client(put_timeout=1.0) as client, Sender(committed.generation, client, QUICK) as sender:
        for number in range(4):  # the first may pass: its index is what fills the account
            committed.commit(names(f"row {number}", 100))
            sender.notify()
        wait_until(lambda: sender.report().unavailable, 60)
        assert "LONGBOW_MAX_MEMORY" in sender.report().unavailable
        assert client.readiness().status in ("READY", "BUSY")
        served.process.start(**relieved)
        assert drained(sender).is_complete
        committed.assert_delivered(client)


@pytest.mark.parametrize(
    ("kind", "settings", "relieved"),
    [
        ("v0.1.1", {"MAX_MEMORY": 20_000, "TTL": "10s"}, {"MAX_MEMORY": 2**33, "TTL": "0s"}),
        ("embedded", {"drop_after_ok": True}, {"drop_after_ok": False}),
    ],
)
def test_rows_that_the_server_drops_for_want_of_memory_come_back(
    start: Start, committed: CommittedRows, kind: str, settings: dict[str, Any], relieved: dict[str, Any]
) -> None:
    """Section 11: put OK, then evicted (v0.1.1, within a second) or never kept. An OK is no receipt: rule 3."""
    served = start(kind, **settings)
    committed.commit(names("row", 500))
    with served.client() as client:
        with Sender(committed.generation, client, QUICK) as sender:
            sender.drain(10)
            wait_until(lambda: client.present_ids(committed.generation.name, segment_of(committed)).size == 0)
        assert len(committed.live) == 500
        served.process.start(**relieved)
    with served.client() as client:
        assert committed.deliver(client).is_complete
        committed.assert_delivered(client)


def segment_of(committed: CommittedRows) -> str:
    return str(committed.generation.segments()[0].label)


@on(CURRENT)
def test_a_dataset_that_vanishes_is_delivered_again(start: Start, committed: CommittedRows, kind: str) -> None:
    """Section 11: a put to one dataset may evict others whole; their readers get NOT_FOUND."""
    served = start(kind)
    committed.commit(names("row", 20))
    with served.client() as client, Sender(committed.generation, client, QUICK) as sender:
        assert drained(sender).is_complete
        client.delete_dataset(committed.generation.name)
        committed.commit(["row 3"])
        assert drained(sender).is_complete
        committed.assert_delivered(client, once=True)


@on(EMBEDDED)
def test_an_exhausted_server_is_tried_again(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 9, by a fault: a real server says so only of its rate limit."""
    served = start(kind, resource_exhausted=True)
    committed.commit(names("row", 20))
    with served.client() as client, Sender(committed.generation, client, QUICK) as sender:
        wait_until(lambda: "out of a resource" in sender.report().unavailable)
        served.process.start(resource_exhausted=False)
        assert drained(sender).is_complete
        committed.assert_delivered(client, once=True)


@on(EMBEDDED)
def test_slow_down_is_obeyed_and_nothing_is_aborted(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 8, by a fault: a real server says it over 8,000 waiting log entries, which is hardly ever seen."""
    served = start(kind, slow_down=True)
    for number in range(5):
        committed.commit(names(f"row {number}", 10))
    with served.client() as client:
        report = committed.deliver(client)
        assert report.is_complete
        assert report.puts == 5
        committed.assert_delivered(client, once=True)


# What the server keeps that it should not, and the rows that it should not have


@on(EVERY)
def test_superseded_and_deleted_rows_stay_on_the_server_and_are_never_found(
    start: Start, committed: CommittedRows, kind: str
) -> None:
    """Rule 4: there is no upsert; `search` over-fetches and drops what is not current."""
    served = start(kind)
    with served.client() as client:
        for _ in range(10):
            committed.commit(names("row", 6))
        committed.commit([], deletes=["row 0", "row 5"])
        assert committed.deliver(client).is_complete
        held = client.present_ids(committed.generation.name, *ends(committed))
        assert len(held) == 60
        committed.assert_delivered(client, once=True)


def ends(committed: CommittedRows) -> tuple[str, str]:
    labels = [segment.label for segment in committed.generation.segments()]
    return min(labels), max(labels)


@on(EVERY)
def test_rows_that_a_restart_brings_back_are_never_found(start: Start, committed: CommittedRows, kind: str) -> None:
    """Section 12: deletes are not logged."""
    served = start(kind, **({"resurrect_deletes": True} if kind == "embedded" else {}))
    committed.commit(names("row", 6))
    committed.commit(["row 1", "row 2"], deletes=["row 0"])
    with served.client() as client:
        assert committed.deliver(client).is_complete
        served.process.stop()
        served.process.start()
    with served.client() as client:
        assert committed.deliver(client).is_complete
        committed.assert_delivered(client, once=True)
        unfiltered = set(client.scan(committed.generation.name)["key"].to_pylist())
        assert unfiltered >= set(committed.live)


@on(CURRENT)
def test_unfiltered_scans_go_on_working_after_many_deletes(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 4: a real server's scans fail for good once every row of a stored batch is deleted; so one is left."""
    served = start(kind, **({"wholly_deleted_batch_breaks_scan": True} if kind == "embedded" else {}))
    with served.client() as client:
        for _ in range(4):
            committed.commit(names("row", 5))
        committed.commit([], deletes=names("row", 4))
        report = committed.deliver(client)
        assert report.is_complete
        assert report.rows_retired > 0
        assert "row 4" in client.scan(committed.generation.name)["key"].to_pylist()
        committed.assert_delivered(client, once=True)


@on(CURRENT)
def test_a_dataset_of_another_dimension_is_refused_and_other_datasets_go_on(
    start: Start, committed: CommittedRows, tmp_path: Path, kind: str
) -> None:
    """Rule 5: one schema to a name for ever. Ours carry model and dimension; here somebody else took the name."""
    served = start(kind)
    stranger = pa.table({"vector": pa.array([[1.0, 2.0]], pa.list_(pa.field("item", pa.float32()), 2))})
    committed.commit(names("row", 5))
    with served.client() as client:
        client.put(committed.generation.name, stranger)
        report = committed.deliver(client)
        assert "schema mismatch" in report.rejected
        other = CommittedRows(tmp_path / "other")
        other.commit(["a"])
        assert other.generation.name != committed.generation.name
        assert other.deliver(client).is_complete
        other.assert_delivered(client, once=True)
        other.close()


@on(CURRENT)
def test_float16_is_refused_before_anything_is_sent(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 6: today's Longbow stores such vectors and never finds them."""
    served = start(kind)
    committed.commit(names("row", 5))
    with served.client(transport="fp16") as client:
        assert "cannot search float16" in committed.deliver(client).rejected
        assert client.list_datasets() == []


@on(EVERY)
def test_what_travels_is_what_every_server_can_index(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 5: float32 of unit length, the item nullable. Rule 4: ids below 2^32, an own one a version."""
    served = start(kind)
    committed.commit(names("row", 5))
    committed.commit(names("row", 5))
    with served.client() as client:
        assert committed.deliver(client).is_complete
        table = client.scan(committed.generation.name, [("segment", ">=", "")])
    assert table.schema.field("vector").type == pa.list_(pa.field("item", pa.float32(), nullable=True), DIMENSION)
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIMENSION)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    ids = table["id"].to_pylist()
    assert len(set(ids)) == 10
    assert max(ids) < 2**32
    assert table["version"].to_pylist() == ids


@on(EVERY)
def test_no_put_is_larger_than_lands_whole_or_not_at_all(start: Start, kind: str) -> None:
    """Rule 1: under 50,000 rows and 32 MiB."""
    served = start(kind)
    table = pa.table({"id": pa.array(np.arange(50_000, dtype=np.uint64))})
    with served.client() as client:
        with pytest.raises(LongbowRejected, match="split the table"):
            client.put("docs", table)
        assert client.list_datasets() == []


@on(EMBEDDED)
def test_an_index_that_falls_behind_is_waited_for(start: Start, committed: CommittedRows, kind: str) -> None:
    """Rule 3: applied is not yet searchable; compare `index_len` with what is expected."""
    served = start(kind, index_delay=0.5)
    committed.commit(names("row", 5))
    with served.client() as client, Sender(committed.generation, client, QUICK) as sender:
        wait_until(lambda: sender.report().segments["applied"] == 1)
        assert sender.report().is_complete is False
        assert drained(sender).is_complete
        committed.assert_delivered(client, once=True)


@on(EVERY)
def test_two_senders_side_by_side_deliver_each_row_once(start: Start, committed: CommittedRows, kind: str) -> None:
    served = start(kind)
    for number in range(10):
        committed.commit(names(f"row {number}", 20))
    with served.client() as one, served.client() as two:
        with Sender(committed.generation, one, QUICK) as first, Sender(committed.generation, two, QUICK) as second:
            assert drained(first).is_complete
            assert drained(second).is_complete
        committed.assert_delivered(one, once=True)


@on(EVERY)
def test_a_client_outlives_several_restarts_of_its_server(start: Start, kind: str) -> None:
    """gRPC's own pauses between attempts grow to two minutes; ours stay below a second."""
    served = start(kind)
    with served.client() as client:
        for number in range(3):
            served.process.kill()
            with pytest.raises(LongbowUnavailable):
                client.list_datasets()
            served.process.start()
            wait_until(lambda: answers(client), 15)  # one attempt to connect may take 5 s
            client.put("docs", pa.table({"id": pa.array([number], pa.uint64()), "segment": ["s1"]}))


def answers(client: LongbowClient) -> bool:
    try:
        client.list_datasets()
        client.present_ids("docs", "s1")
    except LongbowUnavailable:
        return False
    return True

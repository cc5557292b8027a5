"""The sender against a server that is down, emptied, set back, stalled or lying: nothing lost, nothing twice."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core.errors import LongbowRejected
from fletcher_core.longbow.breaker import BreakerSettings
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.retirement import safe_to_delete
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.longbow.server import Faults
from fletcher_core.longbow.wire import BLOCK_ROWS
from fletcher_core.models.card import ModelCard
from fletcher_core.search import search
from fletcher_core.store.segments import Segment
from fletcher_core.store.store import VectorStore

QUICK = SenderSettings(patience=0.2, slow_down_pause=0.01)
ONCE = BreakerSettings(failures=1, backoff=60, max_backoff=60)
"""After one failure nothing is tried until the breaker is reset."""
Connect = Callable[..., LongbowClient]


def deliver(collection: Any, client: LongbowClient, settings: SenderSettings = QUICK) -> DeliveryReport:
    """One sender, from start to close, as a run has it."""
    with Sender(collection.generation, client, settings) as sender:
        return sender.drain(20)


def drain_through_outages(sender: Sender, seconds: float = 20) -> DeliveryReport:
    """As somebody waits who does not mind that the server is down for now."""
    deadline = time.monotonic() + seconds
    while not (report := sender.drain(0.5)).is_complete and time.monotonic() < deadline:
        time.sleep(0.01)
    return report


def copies(collection: Any, client: LongbowClient) -> dict[str, int]:
    """How often the server holds each current version of a row, whatever else it holds."""
    counts = dict.fromkeys(collection.live, 0)
    by_sequence = {sequence: row for row, sequence in collection.live.items()}
    for segment in collection.generation.segments():
        for sequence in client.present_ids(collection.generation.name, segment.label).tolist():
            if sequence in by_sequence:
                counts[by_sequence[sequence]] += 1
    return counts


def once_each(collection: Any, client: LongbowClient) -> bool:
    return copies(collection, client) == dict.fromkeys(collection.live, 1)


def state(collection: Any, client: LongbowClient, segment: Segment) -> str:
    return collection.store.manifest.delivery(client.address.data, segment.label).state


def test_segments_arrive_in_order_and_every_step_is_recorded(collection: Any, client: LongbowClient) -> None:
    first = collection.write(["a", "b", "c"])
    with Sender(collection.generation, client, QUICK) as sender:
        assert sender.drain(20).is_complete
        second = collection.write(["d"])
        sender.notify()
        report = sender.drain(20)
    assert report.is_complete
    assert report.segments == {"pending": 0, "sending": 0, "sent": 0, "applied": 0, "searchable": 2}
    assert report.rows["searchable"] == 4
    assert (report.puts, report.rows_sent) == (2, 4)
    assert report.bytes_sent > 4 * 8 * 4

    assert (report.unavailable, report.rejected, report.not_searchable) == ("", "", "")
    for segment, rows in ((first, 3), (second, 1)):
        delivery = collection.store.manifest.delivery(client.address.data, segment.label)
        assert delivery.rows == rows
        assert delivery.sending_at <= delivery.sent_at <= delivery.applied_at <= delivery.searchable_at
    assert once_each(collection, client)


def test_a_segment_over_a_block_goes_as_several_puts(collection: Any, client: LongbowClient) -> None:
    collection.write([f"row {n}" for n in range(BLOCK_ROWS + 10)])
    report = deliver(collection, client)
    assert report.is_complete
    assert report.puts == 2
    assert report.rows_sent == BLOCK_ROWS + 10
    assert client.readiness(collection.generation.name).index_len == BLOCK_ROWS + 10


def test_a_put_over_the_byte_limit_is_split(collection: Any, connect: Connect) -> None:
    client = connect(max_put_bytes=1000)
    collection.write([f"row {n}" for n in range(100)])
    report = deliver(collection, client)
    assert report.is_complete
    assert report.puts > 10
    assert once_each(collection, client)


def test_changed_and_deleted_rows_vanish_from_unfiltered_scans(collection: Any, client: LongbowClient) -> None:
    collection.write(["a", "b", "c", "d"])
    deliver(collection, client)
    collection.write(["a"], deletes=["b"])
    report = deliver(collection, client)
    assert (report.rows_retired, report.rows_kept) == (2, 0)
    assert sorted(client.scan(collection.generation.name)["id"].to_pylist()) == sorted(collection.live.values())
    again = deliver(collection, client)
    assert (again.puts, again.rows_retired) == (0, 0)


def test_the_last_row_of_a_stored_batch_is_left(server: Any, collection: Any, client: LongbowClient) -> None:
    server.faults = Faults(wholly_deleted_batch_breaks_scan=True)
    collection.write(["a", "b"])
    collection.write(["c"])
    deliver(collection, client)
    collection.write(["a"])
    collection.write(["b", "c"], deletes=["a"])
    report = deliver(collection, client)
    assert report.is_complete
    assert report.rows_retired + report.rows_kept == 4
    assert report.rows_kept >= 2
    remaining = client.scan(collection.generation.name)["id"].to_pylist()
    assert set(collection.live.values()) <= set(remaining)


def test_which_stale_rows_are_safe_to_delete() -> None:
    def segment(first: int, last: int) -> Segment:
        return Segment(f"seg-{first}", "g", "", Path("f"), last - first + 1, 0, first, last, 0, "r", 0.0)

    segments = [segment(0, 9), segment(20, 29), segment(BLOCK_ROWS - 5, BLOCK_ROWS + 5)]

    def safe(stale: list[int], live: list[int]) -> list[int]:
        return safe_to_delete(np.array(stale), segments, np.array(live, dtype=np.int64)).tolist()

    assert safe([1, 2], [3, 25]) == [1, 2]
    assert safe([1, 2], [25]) == [1]
    assert safe([1, 2, 21], []) == [1]
    assert safe([12, 35, 10_000], [1]) == []
    assert safe([BLOCK_ROWS - 1, BLOCK_ROWS], [BLOCK_ROWS + 1]) == [BLOCK_ROWS]
    assert safe([1], [0]) == [1]
    assert safe_to_delete(np.array([1]), [], np.array([], dtype=np.int64)).tolist() == []


def test_retiring_can_be_switched_off(collection: Any, client: LongbowClient) -> None:
    collection.write(["a", "b"])
    deliver(collection, client)
    collection.write(["a"])
    report = deliver(collection, client, SenderSettings(retire_stale=False))
    assert report.is_complete
    assert report.rows_retired == 0
    assert client.scan(collection.generation.name).num_rows == 3


def test_a_segment_of_deletes_alone_is_delivered_without_a_put(collection: Any, client: LongbowClient) -> None:
    collection.write(["a", "b"])
    deliver(collection, client)
    collection.write(deletes=["a"])
    report = deliver(collection, client)
    assert report.is_complete
    assert (report.puts, report.rows_retired) == (0, 1)


def test_deletes_alone_to_a_server_that_never_saw_the_dataset(collection: Any, client: LongbowClient) -> None:
    collection.write(["a"])
    collection.write(deletes=["a"])
    collection.generation.compact()
    assert [segment.upserts for segment in collection.generation.segments()] in ([], [0])
    assert deliver(collection, client).is_complete


def test_a_server_that_is_down_holds_nobody_up_and_gets_all_when_it_is_back(
    server: Any, collection: Any, client: LongbowClient
) -> None:
    server.stop()
    collection.write(["a", "b"])
    with Sender(collection.generation, client, QUICK) as sender:
        report = sender.drain()
        assert "not reachable" in report.unavailable
        assert report.segments["pending"] == 1
        collection.write(["c"])
        sender.notify()
        server.start()
        report = drain_through_outages(sender)
    assert report.is_complete
    assert (report.unavailable, report.circuit) == ("", "closed")
    assert once_each(collection, client)


def test_the_sender_goes_on_by_itself_after_an_outage(server: Any, collection: Any, client: LongbowClient) -> None:
    server.stop()
    segment = collection.write(["a"])
    with Sender(collection.generation, client, QUICK) as sender:
        sender.drain()
        server.start()
        for _ in range(500):
            if state(collection, client, segment) == "searchable":
                break
            threading.Event().wait(0.02)
    assert state(collection, client, segment) == "searchable"


def test_a_server_that_came_back_empty_gets_everything_again(
    server: Any, collection: Any, client: LongbowClient, tmp_path: Path
) -> None:
    collection.write(["a", "b", "c"])
    collection.write(["a"], deletes=["b"])
    with Sender(collection.generation, client, QUICK) as sender:
        assert sender.drain(20).is_complete
        server.start(tmp_path / "another folder")
        report = sender.drain(20)
    assert report.is_complete
    assert once_each(collection, client)
    assert sorted(client.scan(collection.generation.name)["id"].to_pylist()) == sorted(collection.live.values())


def test_a_server_that_came_back_older_gets_what_it_lacks(server: Any, collection: Any, connect: Connect) -> None:
    client = connect(streams=1)  # so that the last two puts are of the last two segments
    for rows in (["a", "b"], ["c"], ["d", "e"], ["f"]):
        collection.write(rows)
    assert deliver(collection, client).is_complete
    server.start(faults=Faults(lose_last_puts=2))
    report = deliver(collection, client)
    assert report.is_complete
    assert report.rows_sent == 3
    assert once_each(collection, client)


def test_a_server_that_lost_rows_in_the_middle_of_a_run(server: Any, collection: Any, client: LongbowClient) -> None:
    with Sender(collection.generation, client, QUICK) as sender:
        for number in range(6):
            collection.write([f"row {number}", "shared"])
            assert sender.drain(20).is_complete
            if number == 3:
                server.start(faults=Faults(lose_last_puts=3, resurrect_deletes=True))
    assert once_each(collection, client)


def test_a_partly_delivered_segment_is_read_back_and_completed(server: Any, collection: Any, connect: Connect) -> None:
    client = connect(breaker=ONCE)
    collection.write([f"row {n}" for n in range(50)])
    server.faults = Faults(unavailable_mid_stream=20)
    with Sender(collection.generation, client, QUICK) as sender:
        report = sender.drain(20)
        assert "connection reset" in report.unavailable
        assert report.segments["sending"] == 1
        server.faults = Faults()
        client.breaker.reset()
        report = sender.drain(20)
    assert report.is_complete
    assert report.rows_sent == 30
    assert once_each(collection, client)


def test_rows_that_arrived_although_the_put_failed_are_not_sent_again(
    server: Any, collection: Any, connect: Connect
) -> None:
    client = connect(breaker=ONCE)
    collection.write(["a", "b"])
    server.faults = Faults(unavailable_mid_stream=2)
    deliver(collection, client)
    server.faults = Faults()
    client.breaker.reset()
    report = deliver(collection, client)
    assert report.is_complete
    assert report.puts == 0
    assert once_each(collection, client)


def test_a_put_that_stalls_ends_at_its_deadline_and_is_tried_again(
    server: Any, collection: Any, connect: Connect
) -> None:
    client = connect(put_timeout=0.2)
    segment = collection.write(["a"])
    server.faults = Faults(stall_before_flush=True)
    with Sender(collection.generation, client, QUICK) as sender:
        report = sender.drain(20)
        assert "before the deadline" in report.unavailable
        assert state(collection, client, segment) == "sending"
        server.faults = Faults()
        assert drain_through_outages(sender).is_complete
    assert once_each(collection, client)


def test_resource_exhausted_is_tried_again(server: Any, collection: Any, client: LongbowClient) -> None:
    collection.write(["a"])
    server.faults = Faults(resource_exhausted=True)
    with Sender(collection.generation, client, QUICK) as sender:
        assert "out of a resource" in sender.drain(20).unavailable
        server.faults = Faults()
        assert drain_through_outages(sender).is_complete
    assert once_each(collection, client)


def test_rows_dropped_after_the_ok_are_never_recorded_as_applied(
    server: Any, collection: Any, connect: Connect
) -> None:
    client = connect(breaker=ONCE)
    segment = collection.write(["a", "b"])
    server.faults = Faults(drop_after_ok=True)
    with Sender(collection.generation, client, SenderSettings(patience=0.1)) as sender:
        report = sender.drain(20)
        assert "2 of its 2 rows cannot be read back" in report.unavailable
        assert state(collection, client, segment) == "sent"
        assert report.circuit == "open"
        server.faults = Faults()
        client.breaker.reset()
        assert sender.drain(20).is_complete
    assert once_each(collection, client)


def test_rows_that_are_not_indexed_are_applied_but_not_searchable(
    server: Any, collection: Any, client: LongbowClient
) -> None:
    server.faults = Faults(index_stall=True)
    with Sender(collection.generation, client, QUICK) as sender:
        first = collection.write(["a"])
        sender.notify()
        assert not sender.drain(0.3).is_complete
        assert state(collection, client, first) == "applied"
        second = collection.write(["b"])  # the next put does not wait for the index
        sender.notify()
        sender.drain(0.3)
        assert state(collection, client, second) == "applied"
        server.faults = Faults()
        assert sender.drain(20).is_complete
    assert state(collection, client, first) == "searchable"


def test_an_index_that_stays_short_is_reported_instead_of_waited_for(
    server: Any, collection: Any, client: LongbowClient
) -> None:
    server.faults = Faults(index_collapse=True)
    collection.write([f"row {n}" for n in range(10_001)])
    report = deliver(collection, client)
    assert report.segments["applied"] == 1
    assert "holds 1001 of 10001 rows" in report.not_searchable
    assert "LONGBOW_AUTO_SHARDING_ENABLED" in report.not_searchable
    server.faults = Faults()
    report = deliver(collection, client)
    assert report.is_complete
    assert (report.puts, report.not_searchable) == (0, "")


def test_slow_down_does_not_lose_or_double_anything(server: Any, collection: Any, client: LongbowClient) -> None:
    server.faults = Faults(slow_down=True)
    for number in range(3):
        collection.write([f"row {number}"])
    assert deliver(collection, client).is_complete
    assert once_each(collection, client)


def test_a_refusal_for_good_ends_the_sender_and_is_reported(collection: Any, client: LongbowClient) -> None:
    other = collection.generation.name
    client.put(
        other, pa.table({"id": pa.array([1], pa.uint64()), "vector": pa.array([[1.0]], pa.list_(pa.float32(), 1))})
    )
    collection.write(["a"])
    report = deliver(collection, client)
    assert "schema mismatch" in report.rejected
    assert not report.is_complete
    with (
        Sender(collection.generation, client, SenderSettings(raise_on_failure=True)) as sender,
        pytest.raises(LongbowRejected, match="schema mismatch"),
    ):
        sender.drain(20)


def test_two_senders_at_once_deliver_each_row_once(collection: Any, connect: Connect, tmp_path: Path) -> None:
    for number in range(12):
        collection.write([f"row {number} {n}" for n in range(20)])
    second = VectorStore.open(tmp_path / "store", collection="docs")
    clients = [connect(), connect()]
    generations = [collection.generation, second.current()]
    senders = [Sender(g, c, QUICK).start() for g, c in zip(generations, clients, strict=True)]  # type: ignore[arg-type]
    reports = [sender.drain(20) for sender in senders]
    for sender in senders:
        sender.close()
    assert all(report.is_complete for report in reports)
    assert sum(report.rows_sent for report in reports) == 240
    assert once_each(collection, clients[0])


def test_a_server_that_has_the_rows_but_a_store_without_a_ledger(collection: Any, client: LongbowClient) -> None:
    collection.write(["a", "b"])
    collection.write(["c"])
    deliver(collection, client)
    with collection.store.manifest._database.writing() as connection:
        connection.execute("DELETE FROM deliveries")
    report = deliver(collection, client)
    assert report.is_complete
    assert report.puts == 0
    assert once_each(collection, client)


def test_compaction_between_deliveries(server: Any, collection: Any, client: LongbowClient, tmp_path: Path) -> None:
    collection.write(["a", "b", "c"])
    collection.write(["a"], deletes=["b"])
    assert deliver(collection, client).is_complete
    collection.write(["a", "d"])
    collection.generation.compact()
    assert deliver(collection, client).is_complete
    assert once_each(collection, client)
    collection.generation.compact()
    server.start(tmp_path / "another folder")
    assert deliver(collection, client).is_complete
    assert sorted(client.scan(collection.generation.name)["id"].to_pylist()) == sorted(collection.live.values())


def test_a_sender_that_is_never_drained_can_be_closed_at_any_time(collection: Any, client: LongbowClient) -> None:
    collection.write(["a"])
    sender = Sender(collection.generation, client, QUICK)
    sender.close()
    sender = Sender(collection.generation, client, QUICK).start()
    sender.close()
    assert deliver(collection, client).is_complete
    assert once_each(collection, client)


@pytest.mark.parametrize("seed", range(2))
def test_after_any_mixture_of_changes_faults_and_restarts_search_sees_exactly_the_store(
    server: Any, collection: Any, connect: Connect, seed: int
) -> None:
    chance = random.Random(seed)
    client = connect(put_timeout=0.2)
    faults = [
        *[Faults() for _ in range(4)],
        Faults(drop_after_ok=True),
        Faults(stall_before_flush=True),
        Faults(unavailable_mid_stream=chance.randint(0, 5)),
        Faults(resource_exhausted=True),
        Faults(index_delay=0.05),
    ]
    with Sender(collection.generation, client, QUICK) as sender:
        for _ in range(20):
            upserts = chance.sample([f"row {n}" for n in range(30)], chance.randint(1, 6))
            deletes = chance.sample(sorted(collection.live), min(2, len(collection.live)))
            collection.write(upserts, deletes=[row for row in deletes if row not in upserts])
            sender.notify()
            if chance.random() < 0.2:
                lost = Faults(lose_last_puts=chance.randint(0, 4), resurrect_deletes=chance.random() < 0.5)
                server.start(faults=lost)
            server.faults = chance.choice(faults)
            if chance.random() < 0.3:
                sender.drain(0.5)
        server.faults = Faults()
        assert drain_through_outages(sender).is_complete
    for row, sequence in collection.live.items():
        hits = search(collection.store, client, Vector(collection.vectors[sequence]), row, k=30)
        assert sorted(hit.id for hit in hits) == sorted(collection.live)
        assert hits[0].id == row
        assert hits[0].cosine == pytest.approx(1, abs=1e-6)


class Vector:
    """An embedder that has one answer."""

    def __init__(self, vector: np.ndarray) -> None:
        self.card = ModelCard("tiny", "ab" * 16, len(vector))
        self.vector = vector

    def embed_query(self, text: str) -> np.ndarray:
        return self.vector


KILLED = """
import sys
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.sender import Sender
from fletcher_core.store.store import VectorStore

root, data, meta = sys.argv[1:]
generation = VectorStore.open(root, collection="docs").current()
with Sender(generation, LongbowClient(LongbowSettings(data, meta))) as sender:
    print("started", flush=True)
    sender.drain()
    print("drained", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("faults", [Faults(stall_before_flush=True), Faults(index_stall=True), Faults()])
def test_a_sender_killed_in_the_middle_leaves_nothing_behind_that_is_sent_twice(
    server: Any, collection: Any, client: LongbowClient, tmp_path: Path, faults: Faults
) -> None:
    segments = [collection.write([f"row {number} {n}" for n in range(5)]) for number in range(3)]
    server.faults = faults
    arguments = [str(tmp_path / "store"), server.address.data, server.address.meta]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    reached = "sending" if faults.stall_before_flush else "applied" if faults.index_stall else "searchable"
    for _ in range(1000):
        if state(collection, client, segments[0]) == reached:
            break
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state(collection, client, segments[0]) == reached
    server.faults = Faults()
    assert deliver(collection, client).is_complete
    assert once_each(collection, client)

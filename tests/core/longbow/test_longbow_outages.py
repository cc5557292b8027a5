"""Servers that refuse, hang, break off or fail by chance: nobody waits for them, and nothing is lost or doubled."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fletcher_core.errors import LongbowNotFound, LongbowUnavailable
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.breaker import BreakerSettings, Proof
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.longbow.sender import Sender, SenderSettings
from fletcher_core.longbow.server import Faults

QUICK = SenderSettings(patience=0.2, slow_down_pause=0.01)
Connect = Callable[..., LongbowClient]


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A port that takes connections and never says anything."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[tuple[LongbowAddress, Callable[[], None]]]:
    """A server process that spoke, and a way to stop it as a debugger does: connections stay, answers do not come."""
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(tmp_path / "frozen")]
    process = subprocess.Popen([*command, "--data-port", "0", "--meta-port", "0"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    yield LongbowAddress(ready["data"], ready["meta"]), lambda: os.kill(process.pid, signal.SIGSTOP)
    process.kill()
    process.wait()


def test_calls_fail_at_once_while_the_circuit_is_open_and_say_why(server: Any, connect: Connect) -> None:
    client = connect(breaker=BreakerSettings(failures=2, backoff=60, max_backoff=60))
    server.stop()
    for _ in range(2):
        with pytest.raises(LongbowUnavailable, match="not reachable"):
            client.readiness()
    server.start()
    for call in (client.readiness, lambda: client.scan("docs"), lambda: client.delete("docs", 1)):
        with pytest.raises(LongbowUnavailable, match=r"not tried.*next try is in \d\d\.\d s.*not reachable"):
            call()
    table = pa.table({"id": pa.array([1], pa.uint64())})
    with pytest.raises(LongbowUnavailable, match="put of 1 rows to dataset 'docs': not tried"):
        connect().put("docs", table)  # another client of the same server in this process


def test_a_server_that_refuses_or_lacks_something_is_alive(server: Any, connect: Connect) -> None:
    client = connect(breaker=BreakerSettings(failures=1))
    for _ in range(3):
        with pytest.raises(LongbowNotFound):
            client.search("none", [[1.0]], 1)
        with pytest.raises(LongbowNotFound):
            client.delete("none", 1)
    client.put("empty", pa.table({"id": pa.array([], pa.uint64()), "vector": pa.array([], pa.list_(pa.float32(), 1))}))
    with pytest.raises(LongbowUnavailable, match="no index yet"):
        client.search("empty", [[1.0]], 1)
    assert client.breaker.state == "closed"


def test_the_end_of_a_run_waits_for_a_black_hole_no_longer_than_for_one_call_and_then_not_at_all(
    collection: Any, black_hole: str
) -> None:
    breaker = BreakerSettings(seconds_in_vain=0.5, backoff=60, max_backoff=60)
    collection.write(["a"])
    with LongbowClient(LongbowSettings(black_hole, call_timeout=0.6, breaker=breaker)) as client:
        started = time.monotonic()
        with Sender(collection.generation, client) as sender:
            report = sender.drain()
        assert 0.5 < time.monotonic() - started < 8.0  # and not the 10 s of patience
        assert (report.circuit, report.rows["pending"]) == ("open", 1)
        assert "no answer before the deadline" in report.unavailable
    with LongbowClient(LongbowSettings(black_hole, call_timeout=9.0, breaker=breaker)) as client:
        started = time.monotonic()
        for _ in range(5):  # runs of other partitions of the same process
            with Sender(collection.generation, client) as sender:
                assert "no answer before the deadline" in sender.drain().unavailable
        assert time.monotonic() - started < 30  # and not 5 calls of 9 s


def test_a_frozen_server_holds_up_neither_the_end_of_a_run_nor_close(
    collection: Any, frozen: tuple[LongbowAddress, Callable[[], None]]
) -> None:
    address, freeze = frozen
    breaker = BreakerSettings(seconds_in_vain=0.5, backoff=0.01, max_backoff=0.01)  # nearly always on trial
    settings = LongbowSettings(address.data, address.meta, call_timeout=0.6, put_timeout=20, breaker=breaker)
    with LongbowClient(settings) as client:
        sender = Sender(collection.generation, client).start()
        assert drain(sender).is_complete
        freeze()
        collection.write([f"row {n}" for n in range(10)])
        sender.notify()
        time.sleep(2.0)
        started = time.monotonic()
        report = sender.drain(0.5)
        sender.close()
        assert time.monotonic() - started < 10  # and not the 20 s of a put
        assert report.circuit != "closed"
        assert report.rows["pending"] + report.rows["sending"] == 10


def test_close_returns_while_a_put_hangs_at_a_server_known_to_be_down(
    server: Any, collection: Any, connect: Connect
) -> None:
    client = connect(put_timeout=40.0)
    server.faults = Faults(stall_before_flush=True)
    segment = collection.write(["a"])
    sender = Sender(collection.generation, client, QUICK).start()
    for _ in range(500):
        if collection.store.manifest.delivery(client.address.data, segment.label).state == "sending":
            break
        time.sleep(0.01)
    client.breaker.trip(Proof.KEEPS_ROWS, "another sender's rows were gone")
    started = time.monotonic()
    sender.drain()
    sender.close()
    assert time.monotonic() - started < 30  # and not the 40 s of a put
    assert collection.store.manifest.delivery(client.address.data, segment.label).state == "sending"


def test_a_server_that_is_ready_but_takes_no_puts_is_tried_with_one_short_put_at_a_time(
    server: Any, collection: Any, connect: Connect
) -> None:
    """What a server over its memory limit does."""
    client = connect(call_timeout=0.2, put_timeout=0.8, breaker=BreakerSettings(seconds_in_vain=0.5, backoff=0.01))
    for number in range(6):
        collection.write([f"row {number}"])
    server.faults = Faults(stall_before_flush=True)
    deadlines: list[float] = []
    ask = client.breaker.deadline

    def noted(short: float, full: float) -> float:
        deadlines.append(ask(short, full))
        return deadlines[-1]

    client.breaker.deadline = noted  # type: ignore[method-assign]
    with Sender(collection.generation, client, QUICK) as sender:
        assert "before the deadline" in sender.drain(20).unavailable
        for _ in range(500):
            if len(deadlines) >= 6:
                break
            time.sleep(0.01)
        assert deadlines[:6] == [0.8, 0.8, 0.8, 0.2, 0.4, 0.8]  # three streams at first, then one
        server.faults = Faults()
        assert drain(sender, timeout=20).is_complete
    assert once_each(collection, client)


@pytest.mark.parametrize("seed", range(2))
def test_of_a_server_that_fails_three_calls_in_ten_everything_is_delivered_once(
    server: Any, collection: Any, connect: Connect, seed: int
) -> None:
    client = connect()
    for number in range(12):
        collection.write([f"row {number} {n}" for n in range(20)], deletes=["row 0 1"] if number == 5 else [])
    server.faults = Faults(fail_share=0.3, fail_seed=seed)
    with Sender(collection.generation, client, SenderSettings(patience=2.0)) as sender:
        assert drain(sender, timeout=30).is_complete
    server.faults = Faults()
    client.breaker.reset()
    assert once_each(collection, client)


def test_a_connection_reset_in_the_middle_of_every_put_loses_and_doubles_nothing(
    server: Any, collection: Any, connect: Connect
) -> None:
    client = connect()
    collection.write([f"row {n}" for n in range(30)])
    server.faults = Faults(unavailable_mid_stream=4)
    with Sender(collection.generation, client, QUICK) as sender:
        report = drain(sender, timeout=20)  # each put leaves four rows behind
    assert report.is_complete
    assert report.rows_sent == 0  # none of these puts got an OK, so all 30 were found by reading back
    server.faults = Faults()
    client.breaker.reset()
    assert once_each(collection, client)


def test_two_senders_of_one_process_share_the_breaker_and_get_everything_through(
    server: Any, collection: Any, connect: Connect
) -> None:
    first, second = connect(), connect()
    assert first.breaker is second.breaker
    for number in range(6):
        collection.write([f"row {number}"])
    server.stop()
    with Sender(collection.generation, first, QUICK) as one, Sender(collection.generation, second, QUICK) as two:
        assert one.drain(20).circuit == "open" or two.drain(20).circuit == "open"
        server.start()
        assert drain(one, timeout=20).is_complete
        assert drain(two, timeout=20).is_complete
    assert once_each(collection, first)


def test_an_embedded_server_that_is_started_again_is_tried_at_once(tmp_path: Path) -> None:
    folder = tmp_path / ".longbow"
    address = ensure_embedded(folder)
    breaker = BreakerSettings(backoff=60, max_backoff=60)
    try:
        with LongbowClient(LongbowSettings(address.data, address.meta, breaker=breaker)) as client:
            assert client.breaker.settings == breaker
            client.breaker.trip(Proof.KEEPS_ROWS, "it loses rows")
            assert ensure_embedded(folder) == address
            assert client.breaker.state == "open"  # it is the same server
            assert stop_embedded(folder)
            assert ensure_embedded(folder) == address
            assert client.readiness().status == "READY"
            assert not client.breaker.is_on_trial
    finally:
        stop_embedded(folder)


def once_each(collection: Any, client: LongbowClient) -> bool:
    """Whether the server holds each current version of a row, and once."""
    ids: list[int] = []
    for segment in collection.generation.segments():
        ids += client.present_ids(collection.generation.name, segment.label).tolist()
    current = set(collection.live.values())
    return sorted(row for row in ids if row in current) == sorted(current)


def test_threads_of_one_process_wait_for_nothing_together(server: Any, collection: Any, connect: Connect) -> None:
    client = connect(breaker=BreakerSettings(failures=1, backoff=60, max_backoff=60))
    server.stop()
    with pytest.raises(LongbowUnavailable):
        client.readiness()
    collection.write(["a"])
    started = time.monotonic()

    def run() -> None:
        with Sender(collection.generation, client, QUICK) as sender:
            assert sender.drain().circuit == "open"

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 30  # and not the 60 s until the next try

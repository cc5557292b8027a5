"""Random Flight calls at a server: through pyarrow as any client makes them, and with bytes that no client makes.

Every attack takes the server and a `Random`, and returns what the server said of itself that it should not have.
"""

import contextlib
import datetime
import decimal
import json
import re
import socket
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from chaos import wire_bytes
from chaos.embedded_server import EmbeddedServer
from chaos.mutations import any_value, mutate_bytes, mutate_value, write_json

Said = list[str]
NAMES = ("fuzz", "fuzz", "fuzz", "other", "", "a/b", "..", "\x00", "\u202e", "é" * 100, "x" * 5000, "%s%n", "kept")
_SECONDS = 5.0
_ACTIONS: tuple[str, ...] = (
    "check_readiness",
    "delete",
    "Delete",
    "delete-vector",
    "delete-dataset",
    "VectorSearch",
    "VectorSearchByID",
)
_ACTIONS += ("HybridSearch", "cluster-status", "fault", "CreateNamespace", "DeleteNamespace", "ListNamespaces")
_ACTIONS += ("GetTotalNamespaceCount", "GetNamespaceDatasetCount", "", "x" * 1000)
_FIELDS = (
    "dataset",
    "name",
    "id",
    "vector_id",
    "vector",
    "vectors",
    "k",
    "filters",
    "text_query",
    "alpha",
    "namespace",
)
_TICKET = ("name", "dataset", "filters", "limit", "search", "columns")
_FAULTS = ("slow_down", "drop_after_ok", "lose_last_puts", "index_delay", "index_stall", "unavailable_mid_stream", "x")


def conversations(server: EmbeddedServer) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Real exchanges with the server, recorded: what clients said, and what was answered."""
    proxy = wire_bytes.RecordingProxy(server.data)
    table = rows(Random(0), 50, 4)
    for name in ("recorded", "again"):
        with flight.FlightClient(f"grpc://{proxy.address}") as client:
            list(client.do_action(("check_readiness", b"{}")))
            writer, _ = client.do_put(flight.FlightDescriptor.for_path(name), table.schema)
            writer.write_table(table)
            writer.close()
            client.do_get(flight.Ticket(name.encode())).read_all()
            query = {"dataset": name, "vectors": [[0.0] * 4] * 3, "k": 5}
            list(client.do_action(("VectorSearch", json.dumps(query).encode())))
    proxy.close()
    return [said for said in proxy.said if said], [said for said in proxy.answered if said]


def raw_bytes(server: EmbeddedServer, random: Random, recorded: list[list[bytes]]) -> Said:
    """Bytes on the port: noise, a damaged conversation, a flood of small frames."""
    address = random.choice((server.data, server.data, server.meta))
    for _ in range(random.randrange(1, 12)):
        kind = random.randrange(6)
        if kind == 0:
            pieces = [random.randbytes(random.choice((1, 100, 10_000))) for _ in range(3)]
        elif kind == 1:
            pieces = [wire_bytes.PREFACE, *(wire_bytes.random_frame(random) for _ in range(random.randrange(20)))]
        elif kind == 2:
            pieces = wire_bytes.flood(random)
        else:
            pieces = wire_bytes.damaged_conversation(random.choice(recorded), random)
        wire_bytes.talk(address, pieces, random)
    return []


def messages(server: EmbeddedServer, random: Random) -> Said:
    """Flight's own messages through grpcio: protobuf and Arrow IPC with damaged bytes, in any number and order."""
    said: Said = []
    with grpc.insecure_channel(server.data, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        for _ in range(random.randrange(1, 8)):
            method = random.choice(
                ("DoPut", "DoPut", "DoPut", "DoExchange", "DoGet", "DoAction", "GetSchema", "Nothing")
            )
            if method in ("DoPut", "DoExchange"):
                path = (b"fuzz",) if method == "DoPut" else (b"ingest", b"fuzz")
                sent = wire_bytes.flight_data(random_table(random), *path)
            elif method == "DoGet":
                sent = [wire_bytes.field(1, _ticket(random))]
            else:
                sent = [wire_bytes.action(random.choice(_ACTIONS), _body(random))]
            sent = _damaged(sent, random)
            call = channel.stream_stream(wire_bytes.SERVICE + method)
            _note(said, lambda call=call, sent=sent: list(call(iter(sent), timeout=_SECONDS)))  # type: ignore[misc]
    return said


def _damaged(sent: list[bytes], random: Random) -> list[bytes]:
    for _ in range(random.choice((0, 1, 1, 1, 3))):
        at = random.randrange(len(sent))
        change = random.randrange(8)
        if change < 5:
            sent[at] = mutate_bytes(sent[at], random)
        elif change == 5:
            sent.insert(at, sent[random.randrange(len(sent))])
        elif change == 6 and len(sent) > 1:
            del sent[at]
        else:
            sent[at] = random.randbytes(random.choice((0, 1, 100)))
    return sent


def calls(server: EmbeddedServer, random: Random) -> Said:
    """Calls of every kind with arguments of every kind."""
    said: Said = []
    port = random.choice((server.data, server.data, server.meta))
    options = flight.FlightCallOptions(timeout=_SECONDS)
    with flight.FlightClient(f"grpc://{port}") as client:
        for _ in range(random.randrange(1, 10)):
            kind = random.randrange(10)
            if kind < 3:
                _note(said, lambda: _put(client, options, random))
            elif kind < 6:
                body = (random.choice(_ACTIONS), _body(random))
                _note(said, lambda body=body: list(client.do_action(body, options)))  # type: ignore[misc]
            elif kind < 8:
                ticket = flight.Ticket(_ticket(random))
                _note(said, lambda ticket=ticket: client.do_get(ticket, options).read_all())  # type: ignore[misc]
            elif kind == 8:
                _note(said, lambda: _exchange(client, options, random))
            else:
                _note(said, lambda: _listing(client, options, random))
    return said


def cancelled(server: EmbeddedServer, random: Random) -> Said:
    """Calls that end in the middle: cancelled, abandoned, over their deadline, or with the connection cut."""
    client = flight.FlightClient(f"grpc://{server.data}")
    table = rows(random, random.choice((10, 20_000)), 16)
    for _ in range(random.randrange(1, 6)):
        with contextlib.suppress(pa.ArrowException, flight.FlightError, OSError, KeyError, StopIteration):
            kind = random.randrange(4)
            options = flight.FlightCallOptions(timeout=random.choice((0.001, 0.01, _SECONDS)))
            if kind == 0:
                writer, reader = client.do_put(flight.FlightDescriptor.for_path("fuzz-16"), table.schema, options)
                for _ in range(random.randrange(4)):
                    writer.write_table(table, max_chunksize=random.choice((1000, 20_000)))
                if random.random() < 0.5:
                    client.close()
                    client = flight.FlightClient(f"grpc://{server.data}")
                del writer, reader
            elif kind == 1:
                stream = client.do_get(flight.Ticket(b"fuzz-16"), options)
                stream.read_chunk()
                stream.cancel()
            elif kind == 2:
                client.do_get(flight.Ticket(b"fuzz-16"), flight.FlightCallOptions(timeout=0.001)).read_all()
            else:
                query = {"dataset": "fuzz-16", "vectors": [[0.5] * 16] * 200, "k": 1000}
                list(client.do_action(("VectorSearch", json.dumps(query).encode()), options))
    client.close()
    return []


def many_connections(server: EmbeddedServer, random: Random) -> Said:
    """Connections that say nothing or half a sentence, and many clients at once."""
    host, _, port = server.data.rpartition(":")
    idle = []
    with contextlib.suppress(OSError):
        for _ in range(random.choice((20, 100, 200))):
            connection = socket.create_connection((host, int(port)), timeout=2.0)
            connection.sendall(wire_bytes.PREFACE[: random.randrange(len(wire_bytes.PREFACE) + 1)])
            idle.append(connection)
    said: Said = []

    def client_of_its_own(seed: int) -> None:
        said.extend(calls(server, Random(seed)))

    threads = [threading.Thread(target=client_of_its_own, args=(random.getrandbits(32),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in idle:
        connection.close()
    return said


def rows(random: Random, count: int, dimension: int) -> pa.Table:
    """Plain rows as Fletcher puts them."""
    values = np.random.default_rng(random.getrandbits(32)).normal(size=count * dimension).astype(np.float32)
    kind = pa.list_(pa.field("item", pa.float32()), dimension)
    vectors = pa.array(values.reshape(count, dimension).tolist(), kind)
    keys = [f"key {n}" for n in range(count)]
    return pa.table([pa.array(range(count), pa.uint64()), vectors, pa.array(keys)], names=["id", "vector", "key"])


def random_table(random: Random) -> pa.Table:
    """A few columns of any type, some of them under the names that mean something; now and then two of one name."""
    if random.random() < 0.3:
        return rows(random, random.choice((0, 1, 20)), random.choice((0, 1, 4, 8)))
    count = random.choice((0, 1, 3, 50))
    names, arrays = [], []
    for _ in range(random.choice((0, 1, 2, 3, 60))):
        names.append(random.choice(("id", "vector", "key", "segment", "embedding", "", "é", "a", "b", "c", "d")))
        make: Callable[[Random, int], pa.Array] = random.choice(_COLUMNS)
        arrays.append(make(random, count))
    return pa.table(arrays, names=names)


def _vectors(kind: pa.DataType) -> Callable[[Random, int], pa.Array]:
    def make(random: Random, count: int) -> pa.Array:
        size = random.choice((0, 1, 4, 8))
        whole = pa.types.is_integer(kind)
        some = [0, 1, None] if whole else [0.0, 1e30, -1.0, float("nan"), float("inf"), None]
        numbers = _half if kind == pa.float16() else (lambda value: value)
        items = [
            [None if (v := random.choice(some)) is None else numbers(v) for _ in range(size)] for _ in range(count)
        ]
        column: list[Any] = [None if random.random() < 0.05 else item for item in items]
        return pa.array(column, pa.list_(kind, size) if random.random() < 0.8 else pa.list_(kind))

    return make


def _half(value: float) -> np.float16:
    with np.errstate(over="ignore"):
        return np.float16(value)


_MOMENT = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_COLUMNS: tuple[Callable[[Random, int], pa.Array], ...] = (
    *(_vectors(kind) for kind in (pa.float32(), pa.float32(), pa.float16(), pa.float64(), pa.int8())),
    lambda random, count: pa.array([random.getrandbits(63) for _ in range(count)], pa.uint64()),
    lambda random, count: pa.array([random.choice((None, -1, 2**63 - 1)) for _ in range(count)], pa.int64()),
    lambda random, count: pa.array(
        [random.choice((None, "", "1", "²", "٣", "x" * 1000)) for _ in range(count)], pa.string()
    ),
    lambda random, count: pa.array(["é"] * count, pa.large_string()),
    lambda random, count: pa.array(["view"] * count, pa.string_view()),
    lambda random, count: pa.array([b"\xff\x00"] * count, pa.binary()),
    lambda random, count: pa.nulls(count),
    lambda random, count: pa.array(["a", "b", None] * count, pa.string())[:count].dictionary_encode(),
    lambda random, count: pa.array(
        [{"a": 1, "b": [None]}] * count, pa.struct({"a": pa.int8(), "b": pa.list_(pa.null())})
    ),
    lambda random, count: pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int32())),
    lambda random, count: pa.array([decimal.Decimal("1.5")] * count, pa.decimal128(38, 10)),
    lambda random, count: pa.array([_MOMENT] * count, pa.timestamp("ns", "UTC")),
    lambda random, count: pa.array([True, None] * count, pa.bool_())[:count],
    lambda random, count: pa.array([1, 1, 2] * count, pa.int32())[:count].cast(pa.float64()),
    lambda random, count: pa.array([[[1.0]]] * count, pa.list_(pa.list_(pa.float32(), 1), 1)),
    lambda random, count: pa.array([None] * count, pa.duration("us")),
)


def _put(client: flight.FlightClient, options: flight.FlightCallOptions, random: Random) -> None:
    table = random_table(random)
    paths: list[tuple[str, ...]] = [(random.choice(NAMES),), (), ("fuzz", "b"), ("a",) * 100]
    path = random.choices(paths, [8, 1, 1, 1])[0]
    made = flight.FlightDescriptor.for_command(b"\xff") if random.random() < 0.05 else None
    writer, reader = client.do_put(made or flight.FlightDescriptor.for_path(*path), table.schema, options)
    try:
        for batch in table.to_batches():
            writer.write_with_metadata(batch, random.randbytes(4)) if random.random() < 0.3 else writer.write_batch(
                batch
            )
        writer.done_writing()
        while reader.read() is not None:
            pass
    finally:
        writer.close()


def _exchange(client: flight.FlightClient, options: flight.FlightCallOptions, random: Random) -> None:
    path = random.choice((("ingest", "fuzz"), ("ingest",), ("x", "y"), ()))
    table = random_table(random)
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path(*path), options)
    try:
        writer.begin(table.schema)
        writer.write_table(table)
        writer.done_writing()
        for _ in reader:
            pass
    finally:
        writer.close()


def _listing(client: flight.FlightClient, options: flight.FlightCallOptions, random: Random) -> None:
    name = random.choice(NAMES)
    kind = random.randrange(4)
    if kind == 0:
        list(client.list_flights(_ticket(random), options))
    elif kind == 1:
        client.get_flight_info(flight.FlightDescriptor.for_path(*random.choice(((name,), ()))), options)
    elif kind == 2:
        client.get_schema(flight.FlightDescriptor.for_path(name), options)
    else:
        list(client.list_actions(options))


def _request(random: Random) -> dict[str, Any]:
    """A request that a search, a delete or a scan would take."""
    size = random.choice((1, 4, 8))
    vector = [random.random() for _ in range(size)]
    filters = [{"field": random.choice(("id", "key", "vector", "nothing")), "operator": "=", "value": "1"}]
    whole: dict[str, Any] = {"dataset": random.choice(NAMES), "vector": vector, "k": random.choice((1, 10, 10**6))}
    whole |= random.choice(({}, {"filters": filters}, {"vectors": [vector] * random.choice((1, 50))}))
    return whole | random.choice(({}, {"id": "1"}, {"vector_id": 0}, {"name": "fuzz"}))


def _body(random: Random) -> bytes:
    if random.random() < 0.1:
        return random.choice(
            (b"", b" ", b"[" * 100_000, b"\xff\xfe", b"nul", b'{"k":' + b"9" * 5000 + b"}", b"[]", b"1")
        )
    request = _request(random)
    if random.random() < 0.1:
        request = {name: any_value(random) for name in random.sample(_FAULTS, 2)}
    for _ in range(random.choice((0, 1, 1, 2))):
        if random.random() < 0.5 or not isinstance(request, dict):
            request = mutate_value(request, random)
        else:
            request[random.choice(_FIELDS)] = any_value(random)
    text = write_json(request, random)
    return mutate_bytes(text, random) if random.random() < 0.1 else text


def _ticket(random: Random) -> bytes:
    if random.random() < 0.15:
        return random.choice((b"", b"fuzz", b"\xff", b"{", b"{}", b'{"name":"fuzz"', b"x" * 100_000, b'{"a":' * 50_000))
    filters = [
        {
            "field": random.choice(("id", "key", "vector", "a", "")),
            "operator": random.choice(("=", "!=", ">", "<=", "contains", "")),
            "value": random.choice(("1", "", "x", "nan", "1e999", "9" * 5000, "-1", "\x00")),
        }
    ]
    request: dict[str, Any] = {"name": random.choice(NAMES)}
    request |= random.choice(({}, {"filters": filters}, {"search": _request(random)}, {"columns": ["id"]}))
    for _ in range(random.choice((0, 1, 1, 2))):
        if random.random() < 0.5 or not isinstance(request, dict):
            request = mutate_value(request, random)
        else:
            request[random.choice(_TICKET)] = any_value(random)
    return write_json(request, random)


def _note(said: Said, call: Callable[[], object]) -> None:
    """Make the call; a failure is what is expected, but for one that the server did not mean."""
    try:
        call()
    except grpc.RpcError as error:
        words = f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    except (pa.ArrowException, flight.FlightError, OSError, KeyError, NotImplementedError) as error:
        words = f"{type(error).__name__}: {error.args[0] if error.args else error}"
    except (UnicodeError, RecursionError, ValueError, TypeError):  # pyarrow refuses to send it
        return
    else:
        return
    if unmeant := _unmeant(words):
        said.append(unmeant)


def _unmeant(words: str) -> str:
    """What the server raised without meaning to, "" where it did: it has taken something in that it should refuse.

    pyarrow sends the traceback along. Its last line of code is a `raise` where the exception was on purpose; or Arrow
    itself refused what it read.
    """
    _, found, trace = words.partition("Detail: Python exception: ")
    trace = trace.partition(". Client context:")[0]
    lines = [line.strip() for line in trace.splitlines() if set(line.strip()) - set("^~ .")]
    places = [place for place, line in enumerate(lines) if line.startswith("File ")]
    if not found or not places or lines[places[-1] + 1 :][:1] == []:
        return ""
    place = places[-1]
    refused = lines[place + 1].startswith("raise ")
    by_arrow = "pyarrow" in lines[place] and re.match(r"pyarrow\S*(Invalid|Error)|OSError", lines[-1]) is not None
    known = refused or (by_arrow and "KeyError" not in lines[-1]) or lines[-1] == "NotImplementedError"
    return "" if known else f"{lines[-1][:300]} {lines[place]}"


ATTACKS: dict[str, int] = {"raw": 3, "messages": 4, "calls": 6, "cancelled": 1, "connections": 1}


def attack(kind: str, server: EmbeddedServer, random: Random, recorded: list[list[bytes]]) -> Said:
    """One burst of the kind."""
    if kind == "raw":
        return raw_bytes(server, random, recorded)
    if kind == "messages":
        return messages(server, random)
    if kind == "cancelled":
        return cancelled(server, random)
    return many_connections(server, random) if kind == "connections" else calls(server, random)

"""Servers that no client should meet: what they answer is noise, of another form, too much, or without an end."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.flight as flight

from chaos import wire_bytes
from chaos.flight_calls import random_table, rows
from chaos.mutations import any_value, mutate_bytes, mutate_value, write_json


class NoiseServer:
    """Answers every connection with recorded answers that are damaged, with noise, with nothing, or hangs up."""

    def __init__(self, random: Random, answered: list[list[bytes]]) -> None:
        self._random, self._answered = random, answered
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(2.0)
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        random = self._random
        kind = random.randrange(6)
        with contextlib.suppress(OSError):
            if kind == 0:
                connection.close()
            elif kind == 1:
                connection.sendall(random.randbytes(random.choice((1, 50, 5000))))
            elif kind == 2:  # as much as it takes
                while True:
                    connection.sendall(wire_bytes.frame(4, 0, 0, b"") + random.randbytes(1000))
            elif kind == 3:
                connection.recv(65536)  # and not a word
            else:
                for piece in wire_bytes.damaged_conversation(random.choice(self._answered), random):
                    connection.recv(65536)
                    connection.sendall(piece)

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.close()


class LyingServer(flight.FlightServerBase):  # type: ignore[misc]
    """Speaks Flight, with answers of other schemas, counts and types than were asked for, or without an end."""

    def __init__(self, random: Random) -> None:
        self._random = random
        super().__init__("grpc://127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Any:
        random = self._random
        kind = random.randrange(8)
        if kind == 0:
            raise random.choice((pa.ArrowInvalid, flight.FlightUnavailableError, ValueError, MemoryError))(
                "x" * 100_000
            )
        if kind == 1:
            return self._for_ever(context)
        if kind == 2:
            return iter([b"\x00" * 50_000_000])
        return iter([self._body() for _ in range(random.choice((0, 1, 1, 1, 2, 3)))])

    def _for_ever(self, context: flight.ServerCallContext) -> Iterator[bytes]:
        while not context.is_cancelled():
            yield b"{}"

    def _body(self) -> bytes:
        random = self._random
        if random.random() < 0.4:
            sink = pa.BufferOutputStream()
            table = random_table(random) if random.random() < 0.5 else _hits()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            data = sink.getvalue().to_pybytes()
            return mutate_bytes(data, random) if random.random() < 0.7 else data
        said: Any = {"status": "READY", "reason": "", "index_len": 3, "vector_types": ["float32"], "scan_columns": True}
        for _ in range(random.choice((0, 1, 1, 2))):
            said = mutate_value(said, random)
        text = write_json(said, random)
        return mutate_bytes(text, random) if random.random() < 0.2 else text

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        random = self._random
        if random.random() < 0.1:
            raise random.choice((pa.ArrowKeyError, pa.ArrowInvalid, NotImplementedError, RuntimeError))("no")
        if random.random() < 0.2:
            batch = rows(random, 1000, 64).to_batches()[0]
            return flight.GeneratorStream(batch.schema, (batch for _ in iter(context.is_cancelled, True)))
        return flight.RecordBatchStream(random_table(random))

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        random = self._random
        kind = random.randrange(5)
        if kind == 0:
            raise pa.ArrowInvalid("gRPC returned resource exhausted error")
        if kind == 1:
            while not context.is_cancelled():
                writer.write(b'{"status": "slow_down"}')
        if kind == 2:
            writer.write(self._body())
        if kind == 3:
            writer.write(write_json({"status": any_value(random)}, random))
        for _ in reader:
            pass

    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> Iterator[flight.FlightInfo]:
        random = self._random
        descriptors = (
            *(flight.FlightDescriptor.for_path(*path) for path in ((), ("a", "b"), (b"\xff",))),
            flight.FlightDescriptor.for_command(b"\xff"),
        )
        infinite = random.random() < 0.2
        while True:
            made = random.choice(descriptors)
            yield flight.FlightInfo(pa.schema([]), made, [], random.choice((-1, 0, 2**63 - 1)), -1)
            if context.is_cancelled() or (not infinite and random.random() < 0.3):
                return

    def close(self) -> None:
        self.shutdown()


class DamagingServer:
    """gRPC whose messages are Flight's with other bytes: Arrow IPC that says one thing and is another."""

    def __init__(self, random: Random) -> None:
        self._random = random
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(4), options=options)
        self._server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]
        return grpc.stream_stream_rpc_method_handler(lambda sent, context: self._answer(method))

    def _answer(self, method: str) -> Iterator[bytes]:
        random = self._random
        for message in self._messages(method):
            yield mutate_bytes(message, random) if random.random() < 0.5 else message

    def _messages(self, method: str) -> list[bytes]:
        random = self._random
        if method == "DoGet":
            table = random_table(random) if random.random() < 0.4 else rows(random, 20, 4)
            return wire_bytes.flight_data(table)
        if method == "DoAction":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, _hits().schema) as writer:
                writer.write_table(_hits())
            body = sink.getvalue().to_pybytes() if random.random() < 0.6 else json.dumps({"status": "READY"}).encode()
            return [wire_bytes.field(1, mutate_bytes(body, random))]
        if method == "DoPut":
            return [wire_bytes.field(1, b'{"status": "slow_down"}')]
        return [wire_bytes.field(2, wire_bytes.descriptor(b"a", b"\xff"))]

    def close(self) -> None:
        self._server.stop(None)


def _hits() -> pa.Table:
    return pa.table({"id": pa.array([1, 2, 3], pa.uint64()), "score": pa.array([1.0, 0.5, 0.25], pa.float32())})


BadServer = NoiseServer | LyingServer | DamagingServer


def bad_server(random: Random, answered: list[list[bytes]]) -> BadServer:
    """One of the three."""
    kind = random.randrange(3)
    if kind == 0:
        return NoiseServer(random, answered)
    return LyingServer(random) if kind == 1 else DamagingServer(random)

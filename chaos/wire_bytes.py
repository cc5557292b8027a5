"""Flight at the level of bytes: protobuf messages with Arrow IPC inside, and whole HTTP/2 conversations as recorded."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from random import Random

import pyarrow as pa

from chaos.mutations import mutate_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/arrow.flight.protocol.FlightService/"
_READ_SECONDS = 0.15


def field(number: int, value: bytes | int) -> bytes:
    """One protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def descriptor(*path: bytes) -> bytes:
    """A FlightDescriptor of the kind PATH."""
    return field(1, 1) + b"".join(field(3, part) for part in path)


def flight_data(table: pa.Table, *path: bytes) -> list[bytes]:
    """The FlightData messages of a table's stream; the first has the descriptor where there is a path."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    messages = []
    for message in pa.ipc.MessageReader.open_stream(sink.getvalue()):
        body = message.body.to_pybytes() if message.body is not None else b""
        messages.append(field(2, message.metadata.to_pybytes()) + field(1000, body))
    return [field(1, descriptor(*path)) + messages[0], *messages[1:]] if path else messages


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 127
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


class RecordingProxy:
    """Passes connections on to `target` ("host:port"); `said` and `answered` hold the bytes of each, in order."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.said: list[list[bytes]] = []
        self.answered: list[list[bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self.said.append([])
                self.answered.append([])
                for source, sink, kept in ((near, far, self.said[-1]), (far, near, self.answered[-1])):
                    threading.Thread(target=_pump, args=(source, sink, kept), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket, kept: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """One HTTP/2 frame; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind & 255, flags & 255]) + struct.pack(">I", stream) + payload


def damaged_conversation(said: list[bytes], random: Random) -> list[bytes]:
    """What a client said, with frames left out, twice, in another order, cut short, or with other bytes."""
    frames = split_frames(b"".join(said))
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(frames))
        change = random.randrange(7)
        if change == 0:
            frames[at] = mutate_bytes(frames[at], random)
        elif change == 1:
            frames.insert(at, frames[random.randrange(len(frames))])
        elif change == 2:
            del frames[at]
        elif change == 3:
            other = random.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        elif change == 4:
            frames = [*frames[:at], frames[at][: random.randrange(len(frames[at]) + 1)]]
        elif change == 5:
            frames.insert(at, random_frame(random))
        else:
            frames[at] *= random.choice((2, 50))
        if not frames:
            return [b""]
    return frames


def split_frames(data: bytes) -> list[bytes]:
    """The preface and each frame of what one side of a connection said."""
    start = len(PREFACE) if data.startswith(PREFACE) else 0
    pieces = [data[:start]] if start else []
    while start < len(data):
        end = start + 9 + int.from_bytes(data[start : start + 3], "big")
        pieces.append(data[start:end])
        start = end
    return pieces or [b""]


def random_frame(random: Random) -> bytes:
    """Any kind, flags and stream; lengths that may not fit."""
    payload = random.randbytes(random.choice((0, 1, 4, 5, 6, 8, 100, 16384, 20000)))
    stream = random.choice((0, 1, 2, 3, 2**31 - 1, 2**32 - 1))
    length = random.choice((None, None, None, 0, 2**24 - 1, len(payload) + 1))
    return frame(random.choice((*range(10), 255)), random.getrandbits(8), stream, payload, length)


def flood(random: Random) -> list[bytes]:
    """Frames that cost the receiver more than the sender: pings, settings, resets, continuations, windows."""
    settings = frame(4, 0, 0, b"")
    one: Callable[[int], bytes] = random.choice(
        (
            lambda n: frame(6, 0, 0, bytes(8)),
            lambda n: frame(4, 0, 0, struct.pack(">HI", random.randrange(1, 7), random.getrandbits(32))),
            lambda n: frame(1, 4, 2 * n + 1, b"\x82\x84\x86") + frame(3, 0, 2 * n + 1, bytes(4)),
            lambda n: frame(1, 0, 1, b"\x82") if n == 0 else frame(9, 0, 1, b"\x00" + b"\x7f" * 100),
            lambda n: frame(8, 0, 0, struct.pack(">I", 2**31 - 1)),
            lambda n: frame(0, 8, 1, b"\xff" * 10),
            lambda n: frame(2, 0, 2 * n + 1, struct.pack(">IB", 2 * n + 1, 255)),
        )
    )
    return [PREFACE, settings, *(one(n) for n in range(random.choice((10, 1000, 5000))))]


def talk(address: str, pieces: list[bytes], random: Random) -> bytes:
    """Send the pieces and read what comes back for a moment. A connection that the other side ends is no failure."""
    host, _, port = address.rpartition(":")
    answer = bytearray()
    try:
        with socket.create_connection((host, int(port)), timeout=5.0) as connection:
            for piece in pieces:
                connection.sendall(piece)
                if random.random() < 0.02:
                    time.sleep(0.01)
            if random.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(_READ_SECONDS)
            while len(answer) < 2**20 and (data := connection.recv(65536)):
                answer += data
    except OSError:
        pass
    return bytes(answer)


def action(name: str, body: object) -> bytes:
    """A protobuf Action with a JSON body."""
    return field(1, name.encode()) + field(2, body if isinstance(body, bytes) else json.dumps(body).encode())

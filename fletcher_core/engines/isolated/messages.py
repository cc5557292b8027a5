"""What the two processes say to each other: JSON objects, each behind its length, over a pair of sockets.

Never pickle, and no tensors: those lie in the shared memory. From the parent: `load`, then for each stream of batches
`begin`, the `batch`es, and `end`, or `stop` at any time. From the worker: `ready` or `refused`; then for each stream
`done` for each batch, in order, or `failed`, and `over` once it has heard `end` or `stop`. `log` comes at any time. A
`done` carries when it was, and what the metrics are to know: seconds of `layers` that were sampled, and now and then
the `memory`.
"""

import json
import select
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
_LARGEST = 1 << 24

Message = dict[str, Any]


class Closed(Exception):
    """The other process has gone."""


class Messages:
    """One end of the pair. Sending and receiving may be done by one thread each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self._waiting = select.poll()  # unlike select(), for files of any number
        self._waiting.register(connection, select.POLLIN)

    def send(self, *messages: Message) -> None:
        """Send all of them at once. Raises `Closed`."""
        bodies = [json.dumps(message).encode() for message in messages]
        try:
            self._connection.sendall(b"".join(_LENGTH.pack(len(body)) + body for body in bodies))
        except OSError as error:
            raise Closed from error

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None when none came for `timeout` seconds. Raises `Closed`."""
        while (message := self._next()) is None:
            try:
                if timeout is not None and not self._waiting.poll(1000 * timeout):
                    return None
                data = self._connection.recv(1 << 16)
            except (OSError, ValueError) as error:
                raise Closed from error
            if not data:
                raise Closed
            self._received += data
        return message

    def fileno(self) -> int:
        """Of the connection."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close this end: the other one sees that it is alone."""
        self._connection.close()

    def _next(self) -> Message | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > _LARGEST:
            raise Closed
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message: Message = json.loads(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

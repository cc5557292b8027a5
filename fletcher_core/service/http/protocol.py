"""HTTP's bytes on one connection, within bounds that uvicorn does not set: of a head, of its time, of what is piled up.

Without them a client that sends a header without end, or nothing more at all, keeps memory or a connection for good.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 20.0
_PIPELINED = 16  # requests on one connection that wait for the one before them
_REST_SECONDS = 5.0  # for a body that nobody reads, after its request was answered


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; a connection that keeps to no bound is closed, with 431 if its head is too long."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._in_message = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        was_in_head = self._in_head
        super().data_received(data)
        if not self._in_head:
            if was_in_head or self._head_timer is not None:
                self._end_head()
        elif self._in_message:  # else it was the rest of a body
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse_head()
            elif self._head_timer is None:
                self._await_head()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            raise ValueError("too many requests wait on this connection")  # the parser makes a bad request of it
        self._in_head = self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and self.timeout_keep_alive_task is not None:
            self._end_head()
            self._head_timer = self.loop.call_later(_REST_SECONDS, self._close_if_unread, self.cycle)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while; an answer that is not even read holds its memory no longer."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent and not self.transport.is_closing():
            self._unsent = unsent
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif unsent:
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_unread(self, cycle: object) -> None:
        if self.cycle is cycle and self._in_message:
            self._close()

    def _close(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse_head(self) -> None:
        if self.transport.is_closing():
            return
        said = b"the request's head is over %d bytes" % _HEAD_BYTES
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
        )
        self._close()

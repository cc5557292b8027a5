"""HTTP's bytes on one connection, within bounds that uvicorn does not set: of a head, of its time, of what is piled up.

Without them a client that sends a header without end, or nothing more at all, keeps memory or a connection for good.
"""

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 20.0
_PIPELINED = 16  # requests on one connection that wait for the one before them
_REST_SECONDS = 5.0  # for a body that nobody reads, and for an answer of which nothing is taken
_GOODBYE_SECONDS = 1.0


class _Forgiving:
    """A transport; what is written to one that is closed goes nowhere.

    Of a connection that its client reset, a task hears a moment later, and uvloop raises for what it writes in between.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; a connection that keeps to no bound is closed, with 431 if its head is too long."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = False  # between the first byte of a request and the end of its headers
        self._in_message = False  # between its first byte and its last one
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._last_timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._reads_on = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Forgiving(transport))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._last_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            self._see_off()
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse_head()
        self._watch_head()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on(data[upgrade.args[0] :])

    def _read_on(self, rest: bytes) -> None:
        """After a request to speak another protocol from here on, as of Java's and curl's clients that would rather
        speak HTTP/2: it may be ignored, but the parser reads nothing more, and has left the request's body out."""
        self.parser = httptools.HttpRequestParser(self)
        framing = [
            b"%b: %b\r\n" % header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")
        ]
        if framing and self.scope["method"] != "CONNECT":
            self._reads_on = True  # its head is known
            self.cycle.more_body = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self._reads_on = False
        if rest:
            self._feed(rest)

    def on_url(self, url: bytes) -> None:
        if not self._reads_on:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reads_on:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        if self._reads_on:
            self._in_message = True
            return
        if len(self.pipeline) >= _PIPELINED:
            raise ValueError("too many requests wait on this connection")  # the parser makes a bad request of it
        self._in_head = self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._reads_on:
            return
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._see_off()
        elif self._in_message and not self.pipeline:
            self._last_timer = self.loop.call_later(_REST_SECONDS, self._close_if_unread, self.cycle)

    def shutdown(self) -> None:
        """uvicorn's word for the service's end."""
        super().shutdown()
        if self.transport.is_closing():
            self._see_off()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        self._close()

    def _watch_head(self) -> None:
        """A connection that has nothing to wait for but a head has so long for it; between two requests less holds."""
        is_due = self._in_head or self.cycle is None or (self.cycle.response_complete and not self._in_message)
        if not is_due or self.transport.is_closing():
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _close_if_unread(self, cycle: object) -> None:
        if self.cycle is cycle and self._in_message:
            self._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._see_off()

    def _see_off(self) -> None:
        """A connection is closed once its client has read the answer, and over TLS has said goodbye: wait for neither
        longer than it takes to see that it does not."""
        if self._last_timer is not None:
            self._last_timer.cancel()
        self._unsent = self.transport.get_write_buffer_size()
        self._last_timer = self.loop.call_later(_REST_SECONDS if self._unsent else _GOODBYE_SECONDS, self._abort)

    def _abort(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent < self._unsent:
            self._see_off()
        else:
            self.transport.abort()

    def _refuse_head(self) -> None:
        if self.transport.is_closing():
            return
        said = b"the request's head is over %d bytes" % _HEAD_BYTES
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
        )
        self._close()

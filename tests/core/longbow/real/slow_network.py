"""A network in between that can be told to be slow, to fall silent and to break.

In: the address of a server. Out: an address that passes everything on, at most so many bytes a second, each piece so
much later.
"""

import asyncio
import contextlib
import threading
from typing import Self

_PIECE = 16 * 1024


class SlowNetwork:
    """Passes TCP connections on to `target`, from a thread of its own. What is set holds from the next piece on.

    `bytes_per_second` is that of each connection and direction, None without a limit; `latency` is in seconds, one way.
    """

    def __init__(self, target: str, *, bytes_per_second: float | None = None, latency: float = 0.0) -> None:
        self.bytes_per_second = bytes_per_second
        self.latency = latency
        self.sent = 0
        """Bytes that came from clients so far."""
        self.stall_after: int | None = None
        """Pass nothing more on, either way, once so many bytes came from clients; connections stay open."""
        self.hold_answers_after: int | None = None
        """Hold what the server says back, once so many bytes came from clients; what clients say goes on."""
        self.reset_after: int | None = None
        """Reset every connection once so many bytes came from clients; only once, then it is None again."""
        self._target = target.rpartition(":")
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Break every connection now, without a farewell."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """Break every connection and stop listening."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        self._abort()
        ours = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not ours]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # for the sockets to be closed

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        except OSError:  # the server is down: so are we
            writer.transport.abort()
            return
        pair = {writer, server_writer}
        self._writers |= pair
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pass_on(reader, server_writer, from_client=True),
                self._pass_on(server_reader, writer, from_client=False),
            )
        for one in pair:
            one.close()
        self._writers -= pair

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool) -> None:
        while piece := await reader.read(_PIECE):
            self.sent += len(piece) if from_client else 0
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.bytes_per_second:
                await asyncio.sleep(len(piece) / self.bytes_per_second)
            while self._is_past(self.stall_after) or (not from_client and self._is_past(self.hold_answers_after)):
                await asyncio.sleep(0.01)
            if self._is_past(self.reset_after):
                self.reset_after = None
                self._abort()
            writer.write(piece)
            await writer.drain()
        writer.close()

    def _is_past(self, mark: int | None) -> bool:
        return mark is not None and self.sent >= mark

"""The HTTP service in a thread, over a real batcher; and raw sockets to it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from fletcher_core import Embedder
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http import HttpService
from fletcher_core.service.http.protocol import BoundedProtocol
from fletcher_core.service.readiness import Readiness
from fletcher_core.service.settings import ServiceSettings

_COMMAND = "import sys; from fletcher_core.cli import main; sys.exit(main())"
ROOT = Path(__file__).parents[3]


class Serving:
    """A service on a free port. `batcher` is what it asks; `url` where it is."""

    def __init__(self, batcher: Any, settings: ServiceSettings, readiness: Any = None) -> None:
        self.batcher, self.settings = batcher, settings
        self.http = HttpService(batcher, settings, readiness or Readiness(batcher, 5.0))
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.http.app,
            http=BoundedProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=settings.max_connections + 1,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([listener])), daemon=True)
        self._thread.start()
        wait_for(lambda: self.server.started)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, timeout: float = 60.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)


@contextmanager
def serving(embedder: Embedder, **settings: Any) -> Iterator[Serving]:
    """A service of its own, with these settings."""
    chosen = ServiceSettings(**settings)
    batcher = Batcher(embedder, chosen.batching)
    service = Serving(batcher, chosen)
    try:
        yield service
    finally:
        service.close()
        batcher.close(5.0)


def post(body: bytes | object, path: str = "/v1/embeddings", *headers: str, version: str = "1.1") -> bytes:
    """A request as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: here", f"content-length: {len(data)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer: status, headers, body. 0 where the connection ended instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return 0, {}, data
        data += piece
    head, rest = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    while len(rest) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        if not piece:
            break
        rest += piece
    return int(first.split()[1]), headers, rest


def ask(service: Serving, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    with service.connect() as connection:
        connection.sendall(request)
        return answer_of(connection)


def wait_for(holds: Any, seconds: float = 60.0) -> None:
    """Until `holds()`; fails when it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)


class Gate:
    """Holds the batcher's engine up between `close` and `open`."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._open = threading.Event()
        self._open.set()
        self.waiting = threading.Event()

    def compute(self, batches: Any, *rest: Any) -> Any:
        """In the place of `Embedder.compute`."""
        yield from self._compute(self._held(batches), *rest)

    def _held(self, batches: Any) -> Any:
        for batch in batches:
            if not self._open.is_set():
                self.waiting.set()
                self._open.wait(30)
            yield batch

    @contextmanager
    def closed(self, monkeypatch: Any) -> Iterator[None]:
        self._compute = self._embedder.compute
        monkeypatch.setattr(self._embedder, "compute", self.compute)
        self.waiting.clear()
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()
            monkeypatch.undo()


class Process:
    """`fletcher serve` with these arguments, in a process of its own. `log` is what it wrote on standard error."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-c", _COMMAND, "serve", "--port", "0", "--json", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(iter(self.process.stderr.readline, "")), daemon=True).start()

    def url(self) -> str:
        """Once it serves."""
        wait_for(lambda: self._found() or self.process.poll() is not None, 60)
        found = self._found()
        assert found, self.log
        self.port = int(found.rsplit(":", 1)[1])
        return found

    def _found(self) -> str:
        said = [found[0] for line in self.log if (found := re.search(r"https?://[^\s\"]+:\d+", line))]
        return said[0] if said else ""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30.0) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

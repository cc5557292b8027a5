"""The service from start to end: the embedder loaded, HTTP and Flight opened, and on SIGTERM what is begun finished."""

import asyncio
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType

import uvicorn

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.credentials import read_key_pair
from fletcher_core.longbow.server.access import ServerTls
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.flight import FlightService, FlightSettings
from fletcher_core.service.http import HttpService
from fletcher_core.service.http.protocol import BoundedProtocol
from fletcher_core.service.readiness import Readiness
from fletcher_core.service.settings import ServiceSettings

_LOG = logging.getLogger(__name__)

# Threads that compute let go of the interpreter by themselves; one that does not holds up answers for no longer.
_SWITCH_SECONDS = 0.0005
_KEEP_ALIVE_SECONDS = 75
_PAUSE = 0.1

NICENESS = 5
"""For `Embedder.load`: a request that is turned away waits half a millisecond for its answer then, and several without
it, when the engine computes on all cores (bench/service.py)."""


@dataclass(frozen=True)
class Addresses:
    """Where the service listens: URLs; `flight` is None where it is not served."""

    http: str
    flight: str | None


def serve(
    embedder: Embedder, settings: ServiceSettings | None = None, *, started: Callable[[Addresses], None] | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was begun. On the main thread.

    Args:
        embedder: what embeds; it is closed at the end.
        settings: where to listen, and what to let through.
        started: called once requests are answered.

    Raises:
        ConfigError: an address cannot be listened to, or TLS files cannot be read.
        EngineError: the engine does not compute a known text.
    """
    settings = settings or ServiceSettings()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # what it says of its beginning and end, we say
    sys.setswitchinterval(_SWITCH_SECONDS)
    end = _End(settings.drain_timeout)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port))
        stack.callback(embedder.close)
        if settings.tls_certificate is not None and settings.tls_key is not None:
            read_key_pair(settings.tls_certificate, settings.tls_key, "tls_certificate", "tls_key")  # in words
        longbow = stack.enter_context(LongbowClient(settings.longbow)) if settings.longbow is not None else None
        batcher = Batcher(embedder, settings.batching)
        stack.callback(lambda: batcher.close(end.seconds_left))
        readiness = Readiness(batcher, settings.probe_timeout, longbow)
        stack.callback(gc.unfreeze)
        gc.freeze()  # to look through all that is loaded for garbage would hold up answers for a tenth of a second
        flight = _flight_service(batcher, settings, longbow, readiness)
        if flight is not None:
            stack.callback(flight.close)
            stack.callback(lambda: flight.drain(end.seconds_left))
        server = _http_server(HttpService(batcher, settings, readiness), settings, end)
        readiness.draining = lambda: server.should_exit
        scheme = "https" if settings.tls_certificate else "http"
        host, port = listener.getsockname()[:2]
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        addresses = Addresses(address, flight.address if flight is not None else None)

        async def run() -> None:
            serving = asyncio.create_task(server.serve([listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if started is not None and server.started:
                started(addresses)
            while not (await asyncio.wait({serving}, timeout=_PAUSE))[0]:
                if server.should_exit and flight is not None:
                    flight.drain(0)  # which only refuses what is new
            await serving

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
    _LOG.info("ended")


class _End:
    """When the service was told to end, and how long what was begun may take since then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._told_at: float | None = None
        self.at_once = False

    def tell(self) -> None:
        """In order; told again, at once."""
        if self._told_at is not None:
            self.at_once = True
            _LOG.warning("told to end once more: ending at once")
        else:
            self._told_at = time.monotonic()
            _LOG.info("told to end: what was begun has %g s to be answered", self._seconds)

    @property
    def seconds_left(self) -> float:
        if self.at_once or self._told_at is None:
            return 0.0
        return max(0.0, self._told_at + self._seconds - time.monotonic())


class _Server(uvicorn.Server):
    """uvicorn's server, that a first signal ends in order and a second one at once."""

    def __init__(self, config: uvicorn.Config, end: _End) -> None:
        super().__init__(config)
        self._end = end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn would raise the signal once more when it has ended: here, the end is only to begin."""
        self._end.tell()
        self.should_exit = True
        if self._end.at_once:
            self.force_exit = True
            for task in self.server_state.tasks:
                task.cancel()


def _flight_service(
    batcher: Batcher, settings: ServiceSettings, longbow: LongbowClient | None, readiness: Readiness
) -> FlightService | None:
    if settings.flight_port is None:
        return None
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = ServerTls(settings.tls_certificate, settings.tls_key)
    chosen = FlightSettings(
        host=settings.host,
        port=settings.flight_port,
        keys=settings.hidden_keys,
        tls=tls,
        calls=settings.max_flight_calls,
        dictionaries=False,  # of which damaged ones end the process before anybody can look at them
    )
    return FlightService(batcher, chosen, longbow=longbow, health=lambda: readiness.check().as_dict())


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=2048)
    except (OSError, UnicodeError) as error:  # the latter of a name that can be none
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; choose another") from error


def _http_server(service: HttpService, settings: ServiceSettings, end: _End) -> _Server:
    try:
        config = uvicorn.Config(
            service.app,
            http=BoundedProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections + 1,  # uvicorn refuses the one that reaches it
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        config.load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_certificate or tls_key cannot be used: {error}") from error
    return _Server(config, end)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # as on Windows
        return None
    return uvloop.new_event_loop

"""The service from start to end: the embedder loaded, HTTP and Flight opened, and on SIGTERM what is begun finished."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import uvicorn

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.server.access import ServerTls
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.flight import FlightService, FlightSettings
from fletcher_core.service.http import HttpService
from fletcher_core.service.readiness import Readiness
from fletcher_core.service.settings import ServiceSettings

_LOG = logging.getLogger(__name__)

# Threads that compute let go of the interpreter by themselves; one that does not holds up answers for no longer.
_SWITCH_SECONDS = 0.0005
_KEEP_ALIVE_SECONDS = 75

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
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port))
        stack.callback(embedder.close)
        longbow = stack.enter_context(LongbowClient(settings.longbow)) if settings.longbow is not None else None
        batcher = Batcher(embedder, settings.batching)
        stack.callback(batcher.close, settings.drain_timeout)
        readiness = Readiness(batcher, settings.probe_timeout, longbow)
        stack.callback(gc.unfreeze)
        gc.freeze()  # to look through all that is loaded for garbage would hold up answers for a tenth of a second
        flight = _flight_service(batcher, settings, longbow, readiness)
        if flight is not None:
            stack.callback(flight.close)
            stack.callback(flight.drain, settings.drain_timeout)
        server = _http_server(HttpService(batcher, settings, readiness), settings)
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
            await serving

        # uvicorn sees to signals, and raises what came once more when it has ended: here, the end is only to begin.
        with _ignored(signal.SIGTERM), _ignored(signal.SIGINT), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


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
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another") from error


def _http_server(service: HttpService, settings: ServiceSettings) -> uvicorn.Server:
    try:
        config = uvicorn.Config(
            service.app,
            http="httptools",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        config.load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_certificate or tls_key cannot be used: {error}") from error
    return uvicorn.Server(config)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # as on Windows
        return None
    return uvloop.new_event_loop

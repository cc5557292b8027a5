"""A Flight service on a free port over the real MiniLM, and clients of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.flight as flight
import pytest
from http_server import Serving, serving
from local_batcher import LocalBatcher

from fletcher_core import Embedder
from fletcher_core.service.flight import FlightService, FlightSettings
from fletcher_core.service.settings import BatcherSettings


@pytest.fixture
def batcher(minilm: Embedder) -> Iterator[LocalBatcher]:
    local = LocalBatcher(minilm)
    yield local
    local.close()


@pytest.fixture
def serve(batcher: LocalBatcher) -> Iterator[Callable[..., FlightService]]:
    """Starts services; keyword arguments are settings, `longbow` and `health`."""
    services = []

    def start(**given: Any) -> FlightService:
        own = {name: given.pop(name) for name in ("longbow", "health") if name in given}
        services.append(FlightService(batcher, FlightSettings(**given), **own))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., flight.FlightClient]]:
    clients = []

    def new_client(service: FlightService, **arguments: Any) -> flight.FlightClient:
        options = [("grpc.use_local_subchannel_pool", 1)]
        clients.append(flight.FlightClient(service.address, generic_options=options, **arguments))
        return clients[-1]

    yield new_client
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def http(minilm: Embedder) -> Iterator[Serving]:
    """A service over HTTP without keys, which tests share."""
    # A busy machine is slow, which no request here should be turned away for.
    batching = BatcherSettings(request_timeout=600.0)
    with serving(minilm, model_aliases=("text-embedding-3-small",), batching=batching) as service:
        yield service

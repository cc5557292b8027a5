"""A server on free ports, clients of it, and a small store whose rows can be changed and deleted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core.longbow.breaker import BreakerSettings, forget_breakers
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.server import Faults, LongbowServer
from fletcher_core.models.card import ModelCard
from fletcher_core.store.segments import Segment
from fletcher_core.store.store import VectorStore

DIMENSION = 8
QUICK_BREAKER = BreakerSettings(backoff=0.01, max_backoff=0.05)


@pytest.fixture(autouse=True)
def no_breaker_of_an_earlier_test() -> None:
    """A server may get the port of one that another test took down."""
    forget_breakers()


class RestartableServer:
    """An embedded server that can be stopped and started again on the same ports, with other contents if need be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: LongbowServer | None = LongbowServer(folder)
        self.address = self.running.address

    def stop(self) -> None:
        if self.running is not None:
            self.running.close()
            self.running = None

    def start(self, folder: Path | None = None, faults: Faults | None = None) -> None:
        self.stop()
        self.folder = folder or self.folder
        ports = [int(address.rpartition(":")[2]) for address in (self.address.data, self.address.meta)]
        self.running = LongbowServer(self.folder, data_port=ports[0], meta_port=ports[1], faults=faults)

    @property
    def faults(self) -> Faults:
        assert self.running is not None
        return self.running.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        assert self.running is not None
        self.running.faults = faults


class Collection:
    """A store with one generation; writes know which version of a row they supersede."""

    def __init__(self, root: Path, metadata: pa.Schema | None = None) -> None:
        self.store = VectorStore.open(root, collection="docs")
        card = ModelCard("tiny", "ab" * 16, DIMENSION)
        self.generation = self.store.generation(card, metadata or pa.schema([("note", pa.string())]))
        self.live: dict[str, int] = {}
        self.vectors: dict[int, np.ndarray] = {}
        self._random = np.random.default_rng(7)

    def write(self, upserts: list[str] = (), deletes: list[str] = (), partition: str = "") -> Segment:  # type: ignore[assignment]
        """Commit one segment: a fresh random unit vector for each upsert."""
        vectors = self._random.standard_normal((len(upserts), DIMENSION)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [*upserts, *deletes]
        rows = pa.table(
            {
                "id": ids,
                "op": ["upsert"] * len(upserts) + ["delete"] * len(deletes),
                "content_hash": [f"hash of {row}" for row in ids],
                "metadata_hash": [""] * len(ids),
                "tokens": pa.array([3] * len(ids), pa.int32()),
                "truncated": [False] * len(ids),
                "replaces": pa.array([self.live.get(row) for row in ids], pa.int64()),
                "note": [f"note of {row}" for row in ids],
                "vector": pa.array([*vectors, *[None] * len(deletes)], pa.list_(pa.float32(), DIMENSION)),
            }
        )
        segment = self.generation.write_segment(partition, rows, run_id="test")
        for place, row in enumerate(ids):
            if row in deletes:
                del self.live[row]
            else:
                self.live[row] = segment.first_sequence + place
                self.vectors[self.live[row]] = vectors[place]
        return segment


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestartableServer]:
    restartable = RestartableServer(tmp_path / "server")
    yield restartable
    restartable.stop()


@pytest.fixture
def connect(server: RestartableServer) -> Iterator[Callable[..., LongbowClient]]:
    """Clients of the server; keyword arguments are settings."""
    clients = []

    def new_client(**settings: Any) -> LongbowClient:
        settings.setdefault("breaker", QUICK_BREAKER)
        clients.append(LongbowClient(LongbowSettings(server.address.data, server.address.meta, **settings)))
        return clients[-1]

    yield new_client
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., LongbowClient]) -> LongbowClient:
    return connect()


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path / "store")

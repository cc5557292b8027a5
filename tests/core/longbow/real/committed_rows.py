"""A small store whose rows are put, changed and deleted, and what a server must show of it.

In: row ids. Out: segments in the store, and the checks that search shows the current rows only and the books balance.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from v0_1_1_client import FOUND_BY_V0_1_1, V011Client

from fletcher_core.longbow.breaker import BreakerSettings
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.models.card import ModelCard
from fletcher_core.search import search
from fletcher_core.store.segments import Segment
from fletcher_core.store.store import VectorStore

DIMENSION = 8
NEAREST = 20
_COSINE_ERROR = 1e-4
QUICK = SenderSettings(patience=1.0, slow_down_pause=0.01)
QUICK_BREAKER = BreakerSettings(backoff=0.01, max_backoff=0.05)
_CARD = ModelCard("tiny", "ab" * 16, DIMENSION)


class Query:
    """An embedder that has one answer."""

    card = _CARD

    def __init__(self, vector: npt.NDArray[np.float32]) -> None:
        self.vector = vector

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return self.vector


class CommittedRows:
    """`live` has the sequence of each current row, `vectors` the vector of each sequence ever committed."""

    def __init__(self, root: Path, seed: int = 7) -> None:
        self.store = VectorStore.open(root, collection="docs")
        self.generation = self.store.generation(_CARD, pa.schema([("note", pa.string())]))
        self.live: dict[str, int] = {}
        self.vectors: dict[int, npt.NDArray[np.float32]] = {}
        self._random = np.random.default_rng(seed)

    def close(self) -> None:
        self.store.close()

    def commit(self, upserts: Sequence[str], deletes: Sequence[str] = (), partition: str = "") -> Segment:
        """One segment: a fresh random unit vector for each upsert."""
        vectors = self._random.standard_normal((len(upserts), DIMENSION)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [*upserts, *deletes]
        none = [None] * len(deletes)
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
                "vector": pa.array([*vectors, *none], pa.list_(pa.float32(), DIMENSION)),
            }
        )
        segment = self.generation.write_segment(partition, rows, run_id="test")
        for place, row in enumerate(ids):
            if place < len(upserts):
                self.live[row] = segment.first_sequence + place
                self.vectors[self.live[row]] = vectors[place]
            else:
                del self.live[row]
        return segment

    def deliver(self, client: LongbowClient, settings: SenderSettings = QUICK) -> DeliveryReport:
        """One sender, from start to close, as a run has it; it goes on until all is delivered or it is refused."""
        with Sender(self.generation, client, settings) as sender:
            return drained(sender)

    def copies(self, client: LongbowClient) -> dict[str, int]:
        """The books: how often the server holds the current version of each row, whatever else it holds."""
        held: list[int] = []
        for segment in self.generation.segments():
            held += client.present_ids(self.generation.name, segment.label).tolist()
        return {row: held.count(sequence) for row, sequence in self.live.items()}

    def found(self, client: LongbowClient, near: str) -> dict[str, float]:
        """What a user finds near a row: ids and cosines, at most NEAREST."""
        query = Query(self.vectors[self.live[near]])
        hits = search(self.store, client, query, near, k=NEAREST)
        assert len({hit.id for hit in hits}) == len(hits), "a row twice"
        assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
        return {hit.id: hit.cosine for hit in hits}

    def cosines(self, near: str) -> dict[str, float]:
        """Of each current row, as it is now, to one of them."""
        query = self.vectors[self.live[near]]
        return {row: float(self.vectors[sequence] @ query) for row, sequence in self.live.items()}

    def assert_nothing_else_found(self, client: LongbowClient, near: str) -> None:
        """What is found is current; rows may be missing."""
        cosines = self.cosines(near)
        wrong = {row: cosine for row, cosine in self.found(client, near).items() if not _near(cosine, cosines.get(row))}
        assert wrong == {}, "rows that are outdated or deleted"

    def assert_delivered(self, client: LongbowClient, *, once: bool = False) -> None:
        """Every current row is on the server, and a search finds the nearest current rows and nothing else."""
        copies = self.copies(client)
        assert [row for row, count in copies.items() if count == 0] == [], "rows that the server lacks"
        if once:
            assert [row for row, count in copies.items() if count > 1] == [], "rows that the server holds twice"
        for row in [*self.live][:3]:
            if not (isinstance(client, V011Client) and len(self.live) > FOUND_BY_V0_1_1):
                self._assert_nearest_found(client, row)
            self.assert_nothing_else_found(client, row)

    def _assert_nearest_found(self, client: LongbowClient, near: str) -> None:
        nearest = sorted(self.cosines(near).values(), reverse=True)[:NEAREST]
        for _ in range(500):  # a server indexes later than it says OK
            found = [*self.found(client, near).values()]
            if len(found) == len(nearest) and all(map(_near, found, nearest)):
                break
            time.sleep(0.02)
        assert found == pytest.approx(nearest, abs=_COSINE_ERROR)


def _near(cosine: float, expected: float | None) -> bool:
    return expected is not None and abs(cosine - expected) < _COSINE_ERROR


def drained(sender: Sender, seconds: float = 60.0) -> DeliveryReport:
    """The report once all is delivered or refused; a sender tries again after an outage, so that we ask again."""
    deadline = time.monotonic() + seconds
    while True:
        report = sender.drain(10)
        if report.is_complete or report.rejected or report.not_searchable or time.monotonic() > deadline:
            return report

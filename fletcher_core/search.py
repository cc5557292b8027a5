"""Search as a user means it: a query text in, the nearest current rows out, each once.

Longbow keeps superseded and deleted rows in its index and may hold a row twice. Every version of a row has a sequence
of its own as its id there, so the store can tell which hits are current; the others are dropped and more are fetched.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ConfigError, LongbowNotFound, StoreError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.models.card import ModelCard
from fletcher_core.store.generation import Generation
from fletcher_core.store.store import VectorStore

_SPARE_HITS = 16
_GROWTH = 4


class QueryEmbedder(Protocol):
    """What search needs of an embedder."""

    @property
    def card(self) -> ModelCard: ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Hit:
    """A current row. `score` is Longbow's 1 / (1 + distance); `cosine` is what it means for unit vectors, -1 to 1."""

    id: str
    score: float
    cosine: float
    partition_key: str
    metadata: dict[str, object] = field(default_factory=dict)


def search(
    store: VectorStore | Generation, client: LongbowClient, embedder: QueryEmbedder, query: str, k: int = 10
) -> list[Hit]:
    """The k rows nearest to the query text, best first; fewer when the dataset has fewer that are indexed.

    Of a store, its newest generation is searched. Raises StoreError when nothing was ever stored, ConfigError for a k
    below 1 or another model than the rows were embedded with, LongbowNotFound when the server does not hold the
    dataset, and the other LongbowErrors of the client.
    """
    if k < 1:
        raise ConfigError(f"search: k is {k}, it must be at least 1")
    generation = _generation(store)
    vector = np.asarray(embedder.embed_query(query), dtype=np.float32)
    _check_model(generation, embedder.card, vector)
    best: dict[str, tuple[int, Hit]] = {}
    for best in _growing_searches(generation, client, vector, k):
        if len(best) >= k:
            break
    hits = sorted((hit for _, hit in best.values()), key=lambda hit: -hit.score)
    return hits[:k]


def _growing_searches(
    generation: Generation, client: LongbowClient, vector: npt.NDArray[np.float32], k: int
) -> Iterator[dict[str, tuple[int, Hit]]]:
    """Current hits by row id, with their sequences, of ever larger searches until the index is exhausted."""
    wanted = 2 * k + _SPARE_HITS
    while True:
        try:
            (found,) = client.search(generation.name, vector[None, :], wanted)
        except LongbowNotFound as error:
            raise LongbowNotFound(
                f"{error}: it was never delivered there, or is lost. Send what is in the store with `fletcher "
                "deliver`, or run with that Longbow configured"
            ) from error
        yield _current(generation, dict(zip(found["id"].to_pylist(), found["score"].to_pylist(), strict=True)))
        if found.num_rows < wanted:
            return
        wanted *= _GROWTH


def _current(generation: Generation, scores: dict[int, float]) -> dict[str, tuple[int, Hit]]:
    """The hits that are live rows; of a row id that lives in two partitions, the newer version."""
    newest: dict[str, tuple[int, Hit]] = {}
    for row in generation.resolve([sequence for sequence, score in scores.items() if math.isfinite(score)]).to_pylist():
        sequence, row_id, partition_key = row.pop("sequence"), row.pop("id"), row.pop("partition_key")
        row.pop("content_hash")
        if row_id not in newest or newest[row_id][0] < sequence:
            score = scores[sequence]
            newest[row_id] = (sequence, Hit(row_id, score, _cosine(score), partition_key, row))
    return newest


def _cosine(score: float) -> float:
    """Of two unit vectors whose distance d makes the score 1 / (1 + d)."""
    distance = 1.0 / score - 1.0
    return 1.0 - distance * distance / 2.0


def _generation(store: VectorStore | Generation) -> Generation:
    if isinstance(store, Generation):
        return store
    current = store.current()
    if current is None:
        raise StoreError(
            f"the store {store.root} holds no vectors of {store.collection!r} yet: materialize the asset first"
        )
    return current


def _check_model(generation: Generation, card: ModelCard, vector: npt.NDArray[np.float32]) -> None:
    stored = generation.card
    if vector.shape != (stored.dimension,):
        raise ConfigError(
            f"the query's vector has shape {vector.shape}, but {generation.name} holds vectors of dimension "
            f"{stored.dimension}: load the embedder with dimension={stored.dimension}"
        )
    if card.fingerprint != stored.fingerprint:
        raise ConfigError(
            f"the query was embedded with {card.name} ({card.fingerprint[:12]}), but the rows of "
            f"{generation.name} with {stored.name} ({stored.fingerprint[:12]}): load that model with the same "
            "settings, or materialize again"
        )

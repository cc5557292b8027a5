"""Does Longbow find what it was given? Rows of the store are searched by their own vectors and must find themselves.

In come a generation, a client and partitions; out goes how many of the rows tried were among the k nearest current
ones. No model is loaded: the vectors are the store's. One search call asks for all of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.errors import LongbowNotFound
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.sql import literals, session
from fletcher_core.store.generation import Generation

_SPARE_HITS = 16  # superseded rows stay in Longbow's index
_ROWS = pa.schema([("sequence", pa.int64()), ("id", pa.string()), ("vector", pa.list_(pa.float32()))])
_SAME = 0.01  # Euclidean distance of unit vectors that a transport in float16 leaves between equal ones, and more


@dataclass(frozen=True)
class RecallProbe:
    """`found` of the `probed` rows found themselves; `missed` are ids of those that did not, and why if the server
    refused as a whole."""

    probed: int
    found: int
    missed: tuple[str, ...] = ()
    problem: str = ""


def probe_recall(
    generation: Generation,
    client: LongbowClient,
    partition_keys: Collection[str],
    *,
    rows: int = 20,
    k: int = 10,
    seed: int = 0,
) -> RecallProbe:
    """Searches for up to `rows` live rows that the ledger calls searchable on the client's server.

    Among several rows with one and the same vector the server may choose: each counts as found when all k hits have
    it. A server that does not know the dataset has found none.

    Raises:
        LongbowError: the server is down or refuses the search.
        StoreError: the store cannot be read.
    """
    drawn = _searchable_rows(generation, client.address.target, partition_keys, rows, seed)
    probes, vectors = _whole_vectors(drawn, generation.card.dimension)
    if not len(vectors):
        return RecallProbe(0, 0)
    ids: list[str] = probes["id"].to_pylist()
    try:
        answers = client.search(generation.name, vectors, 2 * k + _SPARE_HITS)
    except LongbowNotFound as error:
        return RecallProbe(len(vectors), 0, tuple(ids), str(error))
    hits = _current_hits(generation, answers, k)
    lost = [n for n, sequence in enumerate(probes["sequence"].to_pylist()) if sequence not in hits[n]]
    # Which of several rows with one and the same vector are named is the server's choice.
    rivals = _stored(generation, {found for n in lost for found in hits[n].values() if found is not None})
    missed = [n for n in lost if len(hits[n]) < k or not _are_equal(hits[n], rivals, vectors[n])]
    return RecallProbe(len(vectors), len(vectors) - len(missed), tuple(ids[n] for n in missed))


def _current_hits(generation: Generation, answers: Sequence[pa.Table], k: int) -> list[dict[int, int | None]]:
    """Of each answer the k best hits by sequence: current rows, and, as None, outdated ones that are no farther than a
    row is from itself, which may crowd it out."""
    named = sorted({sequence for answer in answers for sequence in answer["id"].to_pylist()})
    live = set(generation.resolve(named)["sequence"].to_pylist())
    hits = []
    for answer in answers:
        best = [
            (found, found if found in live else None)
            for found, score in zip(answer["id"].to_pylist(), answer["score"].to_pylist(), strict=True)
            if found in live or score >= 1 / (1 + _SAME)
        ]
        hits.append(dict(best[:k]))
    return hits


def _are_equal(
    hits: dict[int, int | None], stored: dict[int, npt.NDArray[np.float32]], vector: npt.NDArray[np.float32]
) -> bool:
    """Whether all current rows among the hits have this very vector in the store, too."""
    return all(
        stored[found].shape == vector.shape and float(np.linalg.norm(stored[found] - vector)) <= _SAME
        for found in hits.values()
        if found in stored
    )


def _stored(generation: Generation, sequences: Collection[int]) -> dict[int, npt.NDArray[np.float32]]:
    """Stored vectors of rows by sequence."""
    if not sequences:
        return {}

    def read() -> dict[int, npt.NDArray[np.float32]]:
        relation = f"read_parquet({literals(generation.files())}, hive_partitioning = false)"
        wanted = ", ".join(map(str, sorted(sequences)))
        with session() as connection:
            rows = connection.sql(f"SELECT sequence, vector FROM {relation} WHERE sequence IN ({wanted})").fetchall()
        return {sequence: np.array(vector or [], np.float32) for sequence, vector in rows}

    return generation.settled(read)


def _searchable_rows(
    generation: Generation, target: str, partition_keys: Collection[str], rows: int, seed: int
) -> pa.Table:
    """sequence, id and vector of rows drawn from at most `rows` of the partitions."""
    deliveries = generation.manifest.deliveries(target, generation.name)
    searchable = {delivery.label for delivery in deliveries if delivery.state == "searchable"}
    labels: dict[str, list[str]] = {}
    for segment in generation.segments():
        if segment.partition_key in partition_keys and segment.label in searchable and segment.upserts:
            labels.setdefault(segment.partition_key, []).append(segment.label)
    keys = sorted(labels)
    if len(keys) > rows:
        keys = sorted(np.random.default_rng(seed).choice(keys, rows, replace=False).tolist())
    share = -(-rows // max(len(keys), 1))
    drawn = [_drawn(generation, key, labels[key], share, seed) for key in keys]
    return pa.concat_tables([_ROWS.empty_table(), *drawn]).slice(0, rows)


def _drawn(generation: Generation, partition_key: str, labels: Sequence[str], rows: int, seed: int) -> pa.Table:
    """Rows of a partition drawn by `seed`. The vectors of the drawn ones alone are read."""

    def read() -> pa.Table:
        live = generation.live_sql(partition_key)
        chosen = (
            f"SELECT sequence FROM ({live}) WHERE list_contains({literals(labels)}, segment) "
            f"ORDER BY hash(sequence, {seed}), sequence LIMIT {rows}"
        )
        with session() as connection:
            sequences = [sequence for (sequence,) in connection.sql(chosen).fetchall()]
            wanted = ", ".join(map(str, sequences)) or "NULL"
            select = f"SELECT sequence, id, vector::FLOAT[] AS vector FROM ({live}) WHERE sequence IN ({wanted})"
            return connection.sql(f"{select} ORDER BY sequence").to_arrow_table().cast(_ROWS)

    return generation.settled(read)


def _whole_vectors(rows: pa.Table, dimension: int) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """Those of the rows that can be searched by, having all elements and no NaN, and their vectors."""
    vectors = [np.array(vector or [], np.float32) for vector in rows["vector"].to_pylist()]
    is_whole = [vector.shape == (dimension,) and bool(np.isfinite(vector).all()) for vector in vectors]
    kept = [vector for vector, keep in zip(vectors, is_whole, strict=True) if keep]
    return rows.filter(pa.array(is_whole, pa.bool_())), np.array(kept, np.float32).reshape(-1, dimension)

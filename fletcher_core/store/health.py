"""How sound the live vectors of a partition are: a generation in, figures and the ids of a few faulty rows out.

The vectors are read once, a row group of about 16 MiB at a time, so that memory does not grow with the partition. Ids
are compared in DuckDB, from narrow columns alone, as no single pass of bounded memory finds all duplicates.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError
from fletcher_core.setting_values import VectorType
from fletcher_core.sql import connect, literals, session
from fletcher_core.store.generation import Generation
from fletcher_core.store.schema import UPSERT
from fletcher_core.store.workspace import workspace

EXAMPLES = 5
"""Ids kept of each fault."""

_MEMORY_LIMIT = "1GB"
_TOLERANCES: dict[VectorType, float] = {"float32": 1e-4, "float16": 2e-3}  # rounding leaves 1e-6 and 5e-4


@dataclass(frozen=True)
class Fault:
    """How many rows have it, and ids of the first few."""

    rows: int = 0
    ids: tuple[str, ...] = ()

    def __add__(self, other: "Fault") -> "Fault":
        return Fault(self.rows + other.rows, (self.ids + other.ids)[:EXAMPLES])


@dataclass(frozen=True)
class VectorHealth:
    """The live vectors of a partition, or a sample of them.

    `rows` were looked at. Norms and `mean` (float64 [dimension]) are of the sound ones: right dimension, no NaN and no
    infinity. Without any, the norms are NaN and the mean is zero.
    """

    partition_key: str
    rows: int
    is_sample: bool
    wrong_dimension: Fault
    not_finite: Fault
    off_unit: Fault
    norm_min: float
    norm_mean: float
    norm_max: float
    mean: npt.NDArray[np.float64]

    @property
    def sound(self) -> int:
        """Rows that norms and mean are of."""
        return self.rows - self.wrong_dimension.rows - self.not_finite.rows


def unit_tolerance(vector_type: VectorType) -> float:
    """How far from 1 the norm of a unit vector may be, as it is stored."""
    return _TOLERANCES[vector_type]


def vector_health(
    generation: Generation,
    partition_key: str,
    *,
    tolerance: float | None = None,
    sample_rows: int | None = None,
    seed: int = 0,
) -> VectorHealth:
    """Figures of a partition's live vectors.

    Args:
        tolerance: how far from 1 a norm may be; None: as the type of the stored vectors needs.
        sample_rows: of a partition with more rows, only whole row groups with so many rows or a few more are read,
            chosen by `seed`; None: all.

    Raises:
        StoreError: a segment file is damaged or gone.
    """
    allowed = unit_tolerance(generation.vector_type) if tolerance is None else tolerance

    def read() -> VectorHealth:
        files = generation.files(partition_key)
        superseded = _superseded(files)
        groups = _row_groups(files)
        chosen = _chosen(groups, sample_rows, seed)
        figures = _Figures(generation.card.dimension, allowed)
        for batch in _batches(chosen):
            figures.add(_live(batch, superseded))
        return figures.health(partition_key, is_sample=len(chosen) < len(groups))

    return generation.settled(read)


def duplicate_ids(generation: Generation, partition_keys: Sequence[str]) -> dict[str, Fault]:
    """Live rows beyond the first of their id, in each of the partitions.

    Raises:
        StoreError: a segment file is damaged or gone, or there is no room to compare so many ids.
    """
    with (
        workspace(generation.root, "duplicates") as spill,
        connect(memory_limit=_MEMORY_LIMIT, spill=spill) as connection,
    ):

        def surplus(partition_key: str) -> Fault:
            repeated = f"SELECT id, count(*) - 1 AS surplus FROM ({generation.live_sql(partition_key)}) GROUP BY id"
            rows, ids = connection.execute(
                f"SELECT coalesce(sum(surplus), 0)::BIGINT, min(id, {EXAMPLES}) "
                f"FROM ({repeated} HAVING surplus > 0) AS repeated"
            ).fetchall()[0]
            return Fault(int(rows), tuple(ids or ()))

        return {key: generation.settled(partial(surplus, key)) for key in partition_keys}


class _Figures:
    """Sums over the rows seen so far."""

    def __init__(self, dimension: int, tolerance: float) -> None:
        self._dimension = dimension
        self._tolerance = tolerance
        self._rows = 0
        self._wrong, self._not_finite, self._off_unit = Fault(), Fault(), Fault()
        self._sum = np.zeros(dimension)
        self._norms = 0.0
        self._norm_min, self._norm_max = np.inf, -np.inf

    def add(self, rows: pa.RecordBatch) -> None:
        """Takes live rows (id, vector) into account."""
        self._rows += rows.num_rows
        ids, column = rows["id"], rows["vector"]
        is_right = np.asarray(pc.fill_null(pc.list_value_length(column), -1)) == self._dimension
        if not is_right.all():
            self._wrong += _fault(ids, ~is_right)
            ids, column = ids.filter(pa.array(is_right)), column.filter(pa.array(is_right))
        values = column.flatten().to_numpy(zero_copy_only=False)  # a null element becomes NaN
        vectors = values.astype(np.float32, copy=False).reshape(-1, self._dimension)
        with np.errstate(over="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        suspect = np.flatnonzero(~np.isfinite(squares))
        if len(suspect):  # NaN or infinite elements, or finite ones whose squares are too large for float32
            squares = squares.astype(np.float64)
            squares[suspect] = np.square(vectors[suspect], dtype=np.float64).sum(axis=1)
            is_finite = np.isfinite(squares)
            self._not_finite += _fault(ids, ~is_finite)
            ids, vectors, squares = ids.filter(pa.array(is_finite)), vectors[is_finite], squares[is_finite]
        if not len(vectors):
            return
        norms = np.sqrt(squares.astype(np.float64))
        self._off_unit += _fault(ids, np.abs(norms - 1.0) > self._tolerance)
        self._sum += vectors.sum(axis=0, dtype=np.float64)
        self._norms += float(norms.sum())
        self._norm_min, self._norm_max = min(self._norm_min, norms.min()), max(self._norm_max, norms.max())

    def health(self, partition_key: str, *, is_sample: bool) -> VectorHealth:
        sound = self._rows - self._wrong.rows - self._not_finite.rows
        return VectorHealth(
            partition_key=partition_key,
            rows=self._rows,
            is_sample=is_sample,
            wrong_dimension=self._wrong,
            not_finite=self._not_finite,
            off_unit=self._off_unit,
            norm_min=float(self._norm_min) if sound else float("nan"),
            norm_mean=self._norms / sound if sound else float("nan"),
            norm_max=float(self._norm_max) if sound else float("nan"),
            mean=self._sum / max(sound, 1),
        )


def _fault(ids: pa.Array, is_faulty: npt.NDArray[np.bool_]) -> Fault:
    places = np.flatnonzero(is_faulty)
    return Fault(len(places), tuple(ids.take(pa.array(places[:EXAMPLES])).to_pylist()))


def _superseded(files: list[Path]) -> npt.NDArray[np.int64]:
    """Sequences of the rows that later ones replace, ascending."""
    if not files:
        return np.empty(0, np.int64)
    select = f"SELECT replaces FROM read_parquet({literals(files)}, hive_partitioning = false)"
    with session() as connection:
        found = connection.sql(f"{select} WHERE replaces IS NOT NULL").fetchnumpy()["replaces"]
    return np.sort(np.asarray(found, np.int64))


def _row_groups(files: list[Path]) -> list[tuple[Path, int, int]]:
    """File, number and rows of every row group."""
    groups = []
    for path in files:
        with _opened(path) as file:
            groups += [(path, n, file.metadata.row_group(n).num_rows) for n in range(file.num_row_groups)]
    return groups


def _chosen(groups: list[tuple[Path, int, int]], sample_rows: int | None, seed: int) -> list[tuple[Path, int, int]]:
    """The row groups to read, in their order."""
    if sample_rows is None or sum(rows for _, _, rows in groups) <= sample_rows:
        return groups
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    so_far = np.cumsum([groups[place][2] for place in shuffled])
    return [groups[place] for place in np.sort(shuffled[: int(np.searchsorted(so_far, sample_rows)) + 1])]


def _batches(groups: list[tuple[Path, int, int]]) -> Iterator[pa.RecordBatch]:
    """id, op, sequence and vector of all rows of the row groups."""
    columns = ["id", "op", "sequence", "vector"]
    for path, numbers in itertools.groupby(groups, key=lambda group: group[0]):
        with _opened(path) as file:
            for _, number, _ in numbers:
                # Threads share a row group by columns, and nearly all of it is the vectors' one.
                yield from file.read_row_group(number, columns=columns, use_threads=False).to_batches()


def _live(rows: pa.RecordBatch, superseded: npt.NDArray[np.int64]) -> pa.RecordBatch:
    sequences = rows["sequence"].to_numpy()
    places = np.searchsorted(superseded, sequences)
    is_live = np.asarray(pc.equal(rows["op"].cast(pa.string()), UPSERT))
    if len(superseded):
        is_live &= superseded[np.minimum(places, len(superseded) - 1)] != sequences
    return rows if is_live.all() else rows.filter(pa.array(is_live))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except pa.ArrowException as error:
        raise StoreError(
            f"segment file {str(path)!r} is damaged ({error}): move it out of the folder; rows that only it held "
            "are embedded again on the next run"
        ) from error

"""Rows of one flush, and the exact search over them.

In: a stored batch and query vectors. Out: distances, the nearest rows of several batches, ids as a hit shows them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DIGITS = re.compile(r"[0-9]{1,4000}")  # Python reads no more as a number
_SEARCH_BLOCK = 2048  # rows whose differences to a query stay in the processor's cache


@dataclass
class StoredBatch:
    """Rows of one flush, with what searches and deletes need of them."""

    number: int
    table: pa.Table
    deleted: set[int]
    indexed_from: float
    stalled: bool
    deletable: bool
    vectors: npt.NDArray[np.generic] | None = field(init=False)
    id_range: tuple[int, int] | None = field(init=False)
    _text_ranges: dict[str, tuple[str, str] | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.vectors = _vectors(self.table)
        self.id_range = _id_range(self.table)

    def text_range(self, name: str) -> tuple[str, str] | None:
        """First and last of a text column's values, looked for once; None where there are none."""
        if name not in self._text_ranges:
            self._text_ranges[name] = _text_range(self.table, name)
        return self._text_ranges[name]

    def newest_row(self, identifier: str) -> int | None:
        """The last row with this id, as far as Longbow keeps an id map for the column's type."""
        if self.id_range is not None:
            number = as_integer(identifier)
            if number is None or not self.id_range[0] <= number <= self.id_range[1]:
                return None
            wanted = pa.scalar(number, self.table.schema.field("id").type)
        elif "id" in self.table.column_names and self.table.schema.field("id").type == pa.string():
            wanted = pa.scalar(identifier)
        else:
            return None
        rows = np.flatnonzero(pc.equal(self.table["id"], wanted).fill_null(False).to_numpy())
        return int(rows[-1]) if len(rows) else None


@dataclass(frozen=True)
class Hits:
    """Best first: ids uint64 [n] as Longbow shows them, scores float32 [n]."""

    ids: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float32]


NO_HITS = Hits(np.empty(0, np.uint64), np.empty(0, np.float32))


@dataclass(frozen=True)
class Candidates:
    """Rows of a batch that a search looked at, and their distances float32 [queries, rows].

    `first_ordinal` is the place of the batch's first row in the index.
    """

    batch: StoredBatch
    rows: npt.NDArray[np.int64]
    first_ordinal: int
    distances: npt.NDArray[np.float32]


def _vectors(table: pa.Table) -> npt.NDArray[np.generic] | None:
    """The `vector` column as [rows, dim], without a copy where none is null; null vectors are zeros."""
    if "vector" not in table.column_names or not pa.types.is_fixed_size_list(table.schema.field("vector").type):
        return None
    chunks = table["vector"].chunks
    column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    size = column.type.list_size
    values = column.values.slice(column.offset * size, len(column) * size)
    if not is_number(values.type):
        return None
    numbers = np.asarray(values.to_numpy(zero_copy_only=False))
    if values.null_count:
        numbers = np.where(values.is_null().to_numpy(zero_copy_only=False), 0, numbers)
    return numbers.reshape(len(column), size)


def is_number(kind: pa.DataType) -> bool:
    """Of a vector's elements: others are stored, and no search finds them."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _id_range(table: pa.Table) -> tuple[int, int] | None:
    """Smallest and largest id of an int64 or uint64 column, so that a delete looks at few batches."""
    if "id" not in table.column_names or table.schema.field("id").type not in (pa.int64(), pa.uint64()):
        return None
    extremes = pc.min_max(table["id"]).as_py()
    return (extremes["min"], extremes["max"]) if extremes["min"] is not None else None


def as_integer(identifier: str) -> int | None:
    """The number that an id is in decimal digits; None for another."""
    return int(identifier) if _INTEGER.fullmatch(identifier) else None


def _text_range(table: pa.Table, name: str) -> tuple[str, str] | None:
    if name not in table.column_names or table.schema.field(name).type != pa.string():
        return None
    extremes = pc.min_max(table[name]).as_py()
    return (extremes["min"], extremes["max"]) if extremes["min"] is not None else None


def candidates(
    batch: StoredBatch, rows: npt.NDArray[np.int64], first_ordinal: int, queries: npt.NDArray[np.float32]
) -> Candidates:
    """Euclidean distances of some rows, taken as differences so that an equal vector is at exactly 0."""
    assert batch.vectors is not None
    out = np.empty((len(queries), len(rows)), dtype=np.float32)
    whole = len(rows) == len(batch.vectors)
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), _SEARCH_BLOCK):
            stop = start + _SEARCH_BLOCK
            block = batch.vectors[start:stop] if whole else batch.vectors[rows[start:stop]]
            block = block.astype(np.float32, copy=False)
            for number, query in enumerate(queries):
                difference = block - query
                np.einsum("ij,ij->i", difference, difference, out=out[number, start:stop])
        return Candidates(batch, rows, first_ordinal, np.sqrt(out, out=out))


def nearest(parts: Sequence[Candidates], query: int, k: int) -> Hits:
    """The k smallest distances over all batches; a NaN distance counts as the smallest, as on a real server."""
    if not parts:
        return NO_HITS
    distances = np.concatenate([part.distances[query] for part in parts])
    keys = np.where(np.isnan(distances), -1.0, distances)
    k = min(k, len(keys))
    best = np.argpartition(keys, k - 1)[:k]
    best = best[np.argsort(keys[best], kind="stable")]
    starts = np.cumsum([0] + [len(part.rows) for part in parts])
    ids = np.empty(k, dtype=np.uint64)
    for place, position in enumerate(best):
        number = int(np.searchsorted(starts, position, side="right")) - 1
        part = parts[number]
        row = int(part.rows[position - starts[number]])
        ids[place] = _shown_id(part.batch, row, part.first_ordinal + row)
    return Hits(ids, (1.0 / (1.0 + distances[best])).astype(np.float32))


def _shown_id(batch: StoredBatch, row: int, ordinal: int) -> int:
    """What a hit shows as id: integers and decimal strings modulo 2^32, else the row's ordinal in the index."""
    if "id" not in batch.table.column_names:
        return ordinal
    column = batch.table["id"]
    value = column[row].as_py()
    if pa.types.is_integer(column.type) and value is not None:
        return int(value) % 2**32
    if column.type == pa.string() and value is not None and _DIGITS.fullmatch(value):
        return int(value) % 2**32
    return ordinal

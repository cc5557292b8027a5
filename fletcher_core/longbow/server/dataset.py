"""One dataset of the embedded server: stored batches, scans, deletes and vector search over them.

In: Arrow tables and queries. Out: Arrow tables and hits, with Longbow's rules: a re-put appends, a delete hides the
newest copy from unfiltered scans only, a score is 1 / (1 + Euclidean distance), ids are shown modulo 2^32.
"""

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.longbow.server.catalog import Catalog, CatalogBatch
from fletcher_core.longbow.server.faults import Faults
from fletcher_core.longbow.server.filters import Filter, UnusableFilterError, may_pass, row_mask
from fletcher_core.longbow.server.limits import refuse
from fletcher_core.longbow.server.schema import conform, union
from fletcher_core.longbow.server.stored_batch import (
    NO_HITS,
    Hits,
    StoredBatch,
    as_integer,
    candidates,
    is_number,
    nearest,
)

_COLLAPSE_ROWS = 10_000
_COLLAPSE_EVERY = 10
_FILTERS_KEPT = 10_000


class Dataset:
    """Rows under one name. Reads take a snapshot of the batches; writes are serialized by a lock."""

    def __init__(self, name: str, number: int, schema: pa.Schema, catalog: Catalog) -> None:
        self.name = name
        self.schema = schema
        self.number = number
        self._catalog = catalog
        self._lock = threading.Lock()
        self._batches: tuple[StoredBatch, ...] = ()
        self._id_bounds: tuple[tuple[StoredBatch, ...], npt.NDArray[np.float64]] = ((), np.empty((0, 2)))
        self._filter_batches: dict[tuple[Filter, ...], int] = {}

    def load(self, *, deletable: bool) -> None:
        """Take over the batches that the catalog knows, all of them indexed."""
        self._batches = tuple(
            _stored(batch, indexed_from=0.0, stalled=False, deletable=deletable)
            for batch in self._catalog.batches(self.number)
        )

    def accept(self, schema: pa.Schema, most_columns: int) -> None:
        """Take a put's schema into the union of columns.

        Raises ArrowInvalid when a column changes its type, or the dataset would have more than `most_columns`.
        """
        with self._lock:
            widened = union(self.schema, schema)
            if len(widened) > most_columns:
                refuse(f"dataset {self.name!r} would have {len(widened)} columns", most_columns)
            if len(widened) > len(self.schema):
                self._catalog.widen_dataset(self.number, widened)
            self.schema = widened

    def append(self, put: int, table: pa.Table, faults: Faults) -> None:
        """Store the rows as one batch."""
        with self._lock:
            own_columns = pa.schema([self.schema.field(name) for name in table.column_names])
            batch = self._catalog.append(self.number, put, conform(table, own_columns).combine_chunks())
            if not faults.drop_after_ok:
                indexed_from = time.monotonic() + faults.index_delay
                stored = _stored(batch, indexed_from=indexed_from, stalled=faults.index_stall, deletable=True)
                self._batches = (*self._batches, stored)

    @property
    def vector_type(self) -> str:
        """Element type of the `vector` column, such as 'float32'; '' where that is no list of a fixed size."""
        kind = self.schema.field("vector").type if "vector" in self.schema.names else None
        if kind is None or not pa.types.is_fixed_size_list(kind) or not is_number(kind.value_type):
            return ""
        return np.dtype(kind.value_type.to_pandas_dtype()).name

    @property
    def batch_count(self) -> int:
        return len(self._batches)

    @property
    def row_count(self) -> int:
        return sum(batch.table.num_rows for batch in self._batches)

    @property
    def byte_count(self) -> int:
        return sum(batch.table.nbytes for batch in self._batches)

    def scan(self, filters: Sequence[Filter], faults: Faults, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows with the columns of the first stored batch; deleted rows are hidden when nothing filters.

        `columns` leaves the others out, and is ours: a real server always answers whole rows.
        """
        batches = self._batches
        known = batches[0].table.schema if batches else self.schema
        schema = known if columns is None else pa.schema([field for field in known if field.name in columns])
        if not batches:
            return schema.empty_table()
        # Who reads a segment back must not look at the rows of all others: a delivery would take their square.
        looked_at = (batch for batch in batches if may_pass(batch.text_range, filters))
        visible = (self._visible(batch, filters, faults, schema.names) for batch in looked_at)
        parts = [conform(part, schema) for part in visible if part.num_rows]
        return pa.concat_tables(parts or [schema.empty_table()]).replace_schema_metadata(self.schema.metadata)

    def _visible(
        self, batch: StoredBatch, filters: Sequence[Filter], faults: Faults, columns: Sequence[str]
    ) -> pa.Table:
        table = batch.table
        mask = np.ones(table.num_rows, dtype=np.bool_)
        if filters:
            try:
                mask = row_mask(table, filters)
            except UnusableFilterError:
                mask[:] = False
        elif batch.deleted:
            if len(batch.deleted) == table.num_rows and faults.wholly_deleted_batch_breaks_scan:
                raise flight.FlightInternalError("index out of range [0] with length 0")
            mask[list(batch.deleted)] = False
        if not mask.any():
            return table.slice(0, 0)
        wanted = table.select([name for name in columns if name in table.column_names])
        return wanted if mask.all() else wanted.filter(pa.array(mask))

    def delete(self, identifier: str, faults: Faults) -> bool:
        """Mark the newest copy of a row; False when no row with this id can be deleted."""
        with self._lock:
            for batch in self._holders(identifier):
                row = batch.newest_row(identifier) if batch.deletable else None
                if row is not None:
                    self._mark(batch, row, faults)
                    return True
        return False

    def _holders(self, identifier: str) -> list[StoredBatch]:
        """Batches that may have a row of this id, the newest first: asking each of thousands would take longer than all
        else that a delete does."""
        batches, bounds = self._id_bounds
        if batches is not self._batches:
            batches = self._batches
            bounds = np.array([batch.id_range or (-np.inf, np.inf) for batch in batches], np.float64).reshape(-1, 2)
            self._id_bounds = batches, bounds
        found = np.isinf(bounds[:, 0])
        if (number := as_integer(identifier)) is not None:  # rounded as the bounds are: none is passed over
            found |= (bounds[:, 0] <= float(number)) & (float(number) <= bounds[:, 1])
        return [batches[place] for place in np.flatnonzero(found)[::-1]]

    def delete_ordinal(self, ordinal: int, faults: Faults) -> bool:
        """Mark the row at this place in the index."""
        with self._lock:
            for batch in self._batches:
                if ordinal < batch.table.num_rows:
                    self._mark(batch, ordinal, faults)
                    return True
                ordinal -= batch.table.num_rows
        return False

    def _mark(self, batch: StoredBatch, row: int, faults: Faults) -> None:
        if row not in batch.deleted:
            batch.deleted.add(row)
            if not faults.resurrect_deletes:
                self._catalog.mark_deleted(batch.number, row)

    def vector_of(self, identifier: str) -> npt.NDArray[np.float32] | None:
        """The vector of the newest copy of an id, None when there is none or it is deleted."""
        for batch in self._holders(identifier):
            row = batch.newest_row(identifier) if batch.deletable else None
            if row is not None and batch.vectors is not None:
                return None if row in batch.deleted else batch.vectors[row].astype(np.float32)
        return None

    def index_length(self, faults: Faults) -> int:
        """Vectors that a search looks at."""
        every = _kept_of(self._batches, faults)
        return sum(-(-batch.table.num_rows // every) for batch in self._batches if _is_in_index(batch, faults))

    def is_indexing(self, faults: Faults) -> bool:
        """Whether rows wait to be indexed."""
        return any(batch.vectors is not None and not _is_indexed(batch, faults) for batch in self._batches)

    def search(self, queries: npt.NDArray[np.float32], k: int, filters: Sequence[Filter], faults: Faults) -> list[Hits]:
        """The k nearest indexed rows of each query [n, dim], deleted rows included.

        Raises ArrowInvalid for a wrong dimension or where there is no index, UnusableFilterError for such a filter.
        """
        index = self._vector_type()
        if index is None:
            return [NO_HITS for _ in queries]
        if queries.shape[1] != index.list_size:
            raise pa.ArrowInvalid(f"dimension mismatch: expected {index.list_size}, got {queries.shape[1]}")
        parts = [
            candidates(batch, rows, ordinal, queries)
            for batch, rows, ordinal in self._indexed(faults, filters)
            if len(rows)
        ]
        return [nearest(parts, query, k) for query in range(len(queries))]

    def _vector_type(self) -> pa.FixedSizeListType | None:
        """The index's column type; None where Longbow has no hits, ArrowInvalid where no index."""
        names = self.schema.names
        kind = self.schema.field("vector").type if "vector" in names else None
        if self._batches and kind is not None and pa.types.is_fixed_size_list(kind):
            return kind
        if self._batches and (pa.types.is_list(kind) if kind is not None else "embedding" in names):
            return None
        raise pa.ArrowInvalid(
            "gRPC returned precondition failed error, with message: index not initialized for this dataset"
        )

    def _indexed(
        self, faults: Faults, filters: Sequence[Filter] = ()
    ) -> Iterator[tuple[StoredBatch, npt.NDArray[np.int64], int]]:
        """Batch, its rows that the index holds and the filters let pass, and the ordinal of its first row."""
        batches = self._batches
        if filters:  # a real server stores a filter's rows at its first use and never looks again
            if len(self._filter_batches) >= _FILTERS_KEPT:
                self._filter_batches.clear()
            batches = batches[: self._filter_batches.setdefault(tuple(filters), len(batches))]
        every = _kept_of(batches, faults)
        ordinal = 0
        for batch in batches:
            if _is_in_index(batch, faults):
                rows = np.flatnonzero(row_mask(batch.table, filters))
                yield batch, rows[::every], ordinal
            ordinal += batch.table.num_rows


def _stored(batch: CatalogBatch, *, indexed_from: float, stalled: bool, deletable: bool) -> StoredBatch:
    return StoredBatch(batch.number, batch.table, set(batch.deleted), indexed_from, stalled, deletable)


def _kept_of(batches: Sequence[StoredBatch], faults: Faults) -> int:
    """Of how many rows of a batch the index keeps one."""
    if not faults.index_collapse:
        return 1
    return _COLLAPSE_EVERY if sum(batch.table.num_rows for batch in batches) > _COLLAPSE_ROWS else 1


def _is_in_index(batch: StoredBatch, faults: Faults) -> bool:
    return batch.vectors is not None and _is_indexed(batch, faults) and not _is_left_out(batch, faults)


def _is_indexed(batch: StoredBatch, faults: Faults) -> bool:
    return time.monotonic() >= batch.indexed_from and not (batch.stalled and faults.index_stall)


def _is_left_out(batch: StoredBatch, faults: Faults) -> bool:
    """Whether the index never takes these rows up."""
    return faults.no_extensions and batch.vectors is not None and batch.vectors.dtype == np.float16

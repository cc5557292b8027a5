"""Everything the embedded server knows, behind both ports: datasets, faults, namespaces, the search cache.

In: parsed requests. Out: tables, JSON values, or the exceptions that pyarrow turns into Longbow's status codes.
"""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.longbow.server.catalog import Catalog
from fletcher_core.longbow.server.dataset import Dataset
from fletcher_core.longbow.server.faults import Faults
from fletcher_core.longbow.server.filters import Filter, UnusableFilterError
from fletcher_core.longbow.server.limits import Limits, refuse
from fletcher_core.longbow.server.schema import check_columns
from fletcher_core.longbow.server.stored_batch import Hits

FLUSH_ROWS = 50_000
FLUSH_BYTES = 32 * 2**20
SEARCHED_TYPES = ["float32", "float16"]
"""Element types of vectors that a search finds, as they should be found."""
_CACHE_SECONDS = 60.0
_CACHE_ENTRIES = 256


class ServerState:
    """One folder's datasets. Safe to call from the threads of both ports."""

    def __init__(self, folder: Path, faults: Faults, limits: Limits) -> None:
        self.faults = faults
        self.limits = limits
        self.namespaces = ["default"]
        self.last_call = time.monotonic()
        self.stopping = threading.Event()
        self._catalog = Catalog(folder)
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, Hits]] = {}
        self._call_numbers = itertools.count()
        if faults.lose_last_puts:
            self._catalog.forget_last_puts(faults.lose_last_puts)
        if faults.resurrect_deletes:
            self._catalog.forget_deletes()
        self._datasets = {}
        for name, (number, schema) in self._catalog.datasets().items():
            self._datasets[name] = Dataset(name, number, schema, self._catalog)
            self._datasets[name].load(deletable=not faults.resurrect_deletes)

    def close(self) -> None:
        self._catalog.close()

    def begin_call(self) -> None:
        """Note that a call came in; raises FlightUnavailableError for the share of them that is to fail."""
        self.last_call = time.monotonic()
        if self.faults.fail_share:
            number = next(self._call_numbers)
            if random.Random(f"{self.faults.fail_seed} {number}").random() < self.faults.fail_share:
                raise flight.FlightUnavailableError("fault: this call fails by chance")

    def datasets(self) -> list[Dataset]:
        return list(self._datasets.values())

    def dataset(self, name: str) -> Dataset:
        """Raises ArrowKeyError (NOT_FOUND) for an unknown name."""
        found = self._datasets.get(name)
        if found is None:
            raise pa.ArrowKeyError(f"dataset {name[:200]} not found")
        return found

    def dataset_for_put(self, name: str, schema: pa.Schema) -> Dataset:
        """The dataset, made when it is new; it stays even when the put then fails, but for columns that cannot be.

        Raises ArrowInvalid for such columns, and over a limit.
        """
        self.limits.check_schema(schema)
        check_columns(schema)
        with self._lock:
            if name not in self._datasets:
                if len(self._datasets) >= self.limits.datasets:
                    refuse(f"this put would make dataset {len(self._datasets) + 1}", self.limits.datasets)
                number = self._catalog.create_dataset(name, schema)
                self._datasets[name] = Dataset(name, number, schema, self._catalog)
        dataset = self._datasets[name]
        dataset.accept(schema, self.limits.columns)
        return dataset

    def delete_dataset(self, name: str) -> None:
        with self._lock:
            self._catalog.delete_dataset(self.dataset(name).number)
            del self._datasets[name]

    def put(self, dataset: Dataset, batches: Iterable[pa.RecordBatch], cancelled: Callable[[], bool]) -> None:
        """Store a stream: rows are held until 50,000 rows or 32 MiB, so that small messages become one stored batch."""
        put, held, rows, size = self._catalog.next_put(), [], 0, 0
        for batch in self.limits.checked_batches(batches):
            held.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if rows >= FLUSH_ROWS or size >= FLUSH_BYTES:
                self._flush(dataset, put, held, cancelled)
                held, rows, size = [], 0, 0
        if held:
            self._flush(dataset, put, held, cancelled)

    def _flush(self, dataset: Dataset, put: int, held: list[pa.RecordBatch], cancelled: Callable[[], bool]) -> None:
        faults, table = self.faults, pa.Table.from_batches(held)
        if faults.stall_before_flush:
            while not cancelled() and not self.stopping.wait(0.02):
                pass
            raise flight.FlightCancelledError("the client gave up")
        if faults.unavailable_mid_stream is not None:
            if faults.unavailable_mid_stream:
                dataset.append(put, table.slice(0, faults.unavailable_mid_stream), faults)
            raise flight.FlightUnavailableError("fault: connection reset in the middle of a put")
        dataset.append(put, table, faults)

    def readiness(self, name: str | None) -> dict[str, object]:
        """The JSON of `check_readiness`; another dataset's indexing makes all of them BUSY.

        What this server can do beyond Longbow v0.1.2 is in keys of its own: `vector_types`, the element types that it
        searches, `scan_columns`, whether a scan's ticket may name columns, and a dataset's own `vector_type`.
        """
        busy = any(dataset.is_indexing(self.faults) for dataset in self.datasets())
        answer: dict[str, object] = {"status": "BUSY" if busy else "READY"}
        if not self.faults.no_extensions:
            answer |= {"vector_types": SEARCHED_TYPES, "scan_columns": True}
        if busy:
            answer["reason"] = "index queue is not empty"
        if name:
            if name not in self._datasets:
                return {"status": "NOT_FOUND", "reason": "dataset not found"}
            answer["index_len"] = self.dataset(name).index_length(self.faults)
            if not self.faults.no_extensions:
                answer["vector_type"] = self.dataset(name).vector_type
        return answer

    def filters(self, request: Mapping[str, Any]) -> list[Filter]:
        """The `filters` of a ticket or an action. Raises ArrowInvalid when they are none or too many."""
        values = request.get("filters")
        if isinstance(values, list) and len(values) > self.limits.filters:
            refuse(f"the request has {len(values)} filters", self.limits.filters)
        return parse_filters(values)

    def search(self, request: Mapping[str, Any]) -> list[Hits]:
        """One Hits a query. Raises the exceptions of Dataset.search, ArrowInvalid for a malformed request."""
        name = request.get("dataset", "")
        if not isinstance(name, str):
            raise pa.ArrowInvalid("dataset must be a string")
        dataset = self.dataset(name)
        k, queries = request.get("k", 0), _queries(request)
        if type(k) is not int or k < 1:
            raise pa.ArrowInvalid("k must be at least 1")
        self.limits.check_search(len(queries), queries.shape[1], k, dataset.row_count)
        try:
            return dataset.search(queries, k, self.filters(request), self.faults)
        except UnusableFilterError as error:
            raise flight.FlightInternalError(f"filter failed: {error}") from error

    def cached_search(self, request: Mapping[str, Any]) -> Hits:
        """A search ticket: answered from the last minute's identical query, whatever was written since."""
        key, now = json.dumps(request, sort_keys=True), time.monotonic()
        with self._lock:
            kept = self._cache.get(key)
        if kept is not None and now - kept[0] < _CACHE_SECONDS:
            return kept[1]
        hits = self.search(request)[0]
        if len(hits.ids):
            with self._lock:
                if len(self._cache) >= _CACHE_ENTRIES:
                    self._cache.pop(min(self._cache, key=lambda entry: self._cache[entry][0]))
                self._cache[key] = (now, hits)
        return hits


def parse_filters(values: object) -> list[Filter]:
    """The `filters` list of a ticket or an action. Raises ArrowInvalid when it is none."""
    filters: Sequence[object] = values if isinstance(values, list) else []
    if values is not None and not isinstance(values, list):
        raise pa.ArrowInvalid("invalid ticket format: filters is no list")
    parsed = []
    for value in filters:
        if not isinstance(value, dict) or not isinstance(value.get("value", ""), str):
            raise pa.ArrowInvalid("invalid ticket format: a filter is an object of field, operator and value strings")
        operator = value.get("operator", value.get("op", ""))
        parsed.append(Filter(str(value.get("field", "")), str(operator), value.get("value", "")))
    return parsed


def _queries(request: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    queries = request.get("vectors") or ([request["vector"]] if request.get("vector") else [])
    if not queries:
        raise pa.ArrowInvalid("no query vector provided")
    try:
        array = np.array(queries, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise pa.ArrowInvalid(f"invalid query vector: {str(error)[:200]}") from error
    if array.ndim != 2 or not array.shape[1]:
        raise pa.ArrowInvalid("invalid query vector: not a list of numbers")
    return array

"""Fletcher's client with v0.1.1's words for the calls that this release has otherwise.

Fletcher itself refuses v0.1.1. These tests deliver to it all the same, because it is a real server: its connections,
its write-ahead log, its restarts and its evictions are Longbow's own.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import LongbowNotFound
from fletcher_core.longbow.calls import longbow_call
from fletcher_core.longbow.client import LongbowClient, Readiness

_SPARE_HITS = 100_000
FOUND_BY_V0_1_1 = 60
"""Rows up to which its index finds all: of 300 it finds 299, of 1,500 it finds 1,434, asked for every one."""


class V011Client(LongbowClient):
    """Puts and scans are the same. There is no readiness and no delete, and searches go to the meta port."""

    def readiness(self, dataset: str | None = None) -> Readiness:
        """As far as it can be seen: the rows that a scan shows stand for the index, which v0.1.1 says nothing of."""
        if dataset is None:
            self.list_datasets()
            return Readiness("READY")
        try:
            return Readiness("READY", index_len=self.scan(dataset).num_rows)
        except LongbowNotFound:
            return Readiness("NOT_FOUND")

    def search(self, dataset: str, vectors: Any, k: int) -> list[pa.Table]:
        """v0.1.1 answers distances, in JSON."""
        return [self._search(dataset, np.asarray(vector).tolist(), k) for vector in vectors]

    def delete(self, dataset: str, row: int) -> None:
        raise LongbowNotFound("v0.1.1 deletes nothing by its id")

    def _search(self, dataset: str, vector: Sequence[float], k: int) -> pa.Table:
        """It misses near rows when asked for few, and answers in no order: ask for more, and sort."""
        body = json.dumps({"dataset": dataset, "vector": vector, "k": k + _SPARE_HITS}).encode()
        options = flight.FlightCallOptions(timeout=self.settings.read_timeout)
        with longbow_call(self.address.meta, f"VectorSearch in dataset {dataset!r}"):
            (answer,) = self._meta.do_action(("VectorSearch", body), options)
        found = json.loads(answer.body.to_pybytes())
        distances = np.array(found["scores"], np.float32)
        hits = pa.table({"id": pa.array(found["ids"], pa.uint64()), "score": pa.array(1 / (1 + distances))})
        return hits.sort_by([("score", "descending")]).slice(0, k)

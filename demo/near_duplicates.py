"""Pairs of rows whose vectors point almost the same way: texts that say the same thing twice.

In come vectors, out come the pairs from a cosine upwards, and what Dagster shows of them. All rows are compared with
all others, but only one block of the products is in memory at a time.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.store import vector_matrix

COSINE = 0.95
"""From here upwards two texts are called near duplicates."""

_EQUAL = 0.99999  # the vectors of one text that two rows have, give or take rounding
_SHOWN = 10


@dataclass(frozen=True)
class Pairs:
    """Row numbers `first` < `second` and the cosines between their vectors, element by element."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    cosine: npt.NDArray[np.float32]


def near_duplicates(
    vectors: npt.NDArray[np.float32], cosine: float = COSINE, block_rows: int = 1024
) -> Iterator[Pairs]:
    """All pairs of rows of `vectors` (rows, dimension) at `cosine` or above, each once.

    A block of products takes 4 * block_rows ** 2 bytes. A vector of zeros is near to nothing.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)
    for upper in range(0, len(unit), block_rows):
        for left in range(upper, len(unit), block_rows):
            products = unit[upper : upper + block_rows] @ unit[left : left + block_rows].T
            near = products >= cosine
            if upper == left:
                near = np.triu(near, k=1)
            rows, columns = np.nonzero(near)
            if len(rows):
                yield Pairs(rows + upper, columns + left, products[rows, columns])


def duplicates_metadata(vectors: pa.Table) -> dict[str, Any]:
    """How many pairs there are among rows of id and vector, and the closest that are not of one and the same text."""
    ids = vectors["id"]
    pairs = equal = 0
    closest: list[tuple[float, int, int]] = []
    for found in near_duplicates(vector_matrix(vectors["vector"])):
        pairs += len(found.cosine)
        differing = found.cosine < _EQUAL
        equal += len(found.cosine) - int(differing.sum())
        best = np.argsort(-np.where(differing, found.cosine, -1), kind="stable")[: min(_SHOWN, differing.sum())]
        rows = zip(found.cosine[best].tolist(), found.first[best].tolist(), found.second[best].tolist(), strict=True)
        closest = heapq.nlargest(_SHOWN, [*closest, *rows])
    records = [
        dg.TableRecord({"first": ids[first].as_py(), "second": ids[second].as_py(), "cosine": round(cosine, 4)})
        for cosine, first, second in closest
    ]
    columns = [dg.TableColumn("first"), dg.TableColumn("second"), dg.TableColumn("cosine", "float")]
    return {
        "rows_compared": vectors.num_rows,
        "pairs": pairs,
        "pairs_of_equal_texts": equal,
        "examples": dg.MetadataValue.table(records, schema=dg.TableSchema(columns)),
    }

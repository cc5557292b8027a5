"""Pairs of rows whose vectors point almost the same way: texts that say the same thing twice.

In come unit or any other vectors, out come the pairs from a cosine upwards, block by block: all rows are compared with
all others, but only one block of the products is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pairs:
    """Row numbers `first` < `second` and the cosines between their vectors, element by element."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    cosine: npt.NDArray[np.float32]


def near_duplicates(vectors: npt.NDArray[np.float32], cosine: float = 0.95, block_rows: int = 1024) -> Iterator[Pairs]:
    """All pairs of rows of `vectors` (rows, dimension) at `cosine` or above, each once.

    A block of products takes 4 * block_rows ** 2 bytes. A vector of zeros is near to nothing.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths == 0, np.float32(1), lengths)
    for upper in range(0, len(unit), block_rows):
        for left in range(upper, len(unit), block_rows):
            products = unit[upper : upper + block_rows] @ unit[left : left + block_rows].T
            near = products >= cosine
            if upper == left:
                near = np.triu(near, k=1)
            rows, columns = np.nonzero(near)
            if len(rows):
                yield Pairs(rows + upper, columns + left, products[rows, columns])

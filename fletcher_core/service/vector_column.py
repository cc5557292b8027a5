"""Results of the engine in, a column of vectors out: null where a text has none, with the reason beside it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.embedder import Embedder, vector_array
from fletcher_core.guard import sound_vectors
from fletcher_core.text_window import EmbeddedTexts, Vectors


@dataclass(frozen=True)
class VectorColumn:
    """`vectors` FixedSizeList<float32>[dim], null for texts that are null or bad; `reasons`, by row, for the bad."""

    vectors: pa.FixedSizeListArray
    reasons: dict[int, str]

    def errors(self) -> list[dict[str, Any]]:
        """The bad rows as they are told to a client."""
        return [{"row": row, "reason": reason} for row, reason in sorted(self.reasons.items())]


def bad_texts(result: EmbeddedTexts, missing: npt.NDArray[np.bool_], embedder: Embedder, query: bool) -> dict[int, str]:
    """By row, why a text's vector must not be used, as a sentence with what to do; texts that are `missing` (bool [n])
    have no vector, and that is no fault."""
    reasons = {int(row): f"the vector {embedder.verdict}" for row in np.flatnonzero(~result.sound & ~missing)}
    reasons |= {row: f"the text cannot be computed: {said}" for row, said in result.failed.items()}
    reasons |= {text.row: f"the text {text.reason}" for text in result.invalid}
    if embedder.encoder.long_text == "error" and not query:
        limit = embedder.encoder.max_length
        for row in np.flatnonzero(result.cut).tolist():
            reasons[row] = f"the text has {result.token_counts[row]} tokens and the limit is {limit}: shorten it"
    return reasons


class VectorColumnBuilder:
    """Puts the vectors of a batch together, window by window. One that is a single window is not copied.

    Args:
        texts: of the batch, an Arrow array.
        embedder: whose vectors they are.
        query: whether they were embedded as queries.
        dimension: keep so many of the first elements, made unit length again where the model's vectors are; None for
            all.
    """

    def __init__(self, texts: pa.Array, embedder: Embedder, query: bool, dimension: int | None):
        self._embedder = embedder
        self._query = query
        self._missing = np.asarray(texts.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        self._dimension = embedder.dimension if dimension is None else dimension
        self._vectors: Vectors | None = None
        self._reasons: dict[int, str] = {}

    def accept(self, start: int, result: EmbeddedTexts) -> None:
        """Take the result for the texts from row `start` on."""
        count = len(result.vectors)
        missing = self._missing[start : start + count]
        reasons = bad_texts(result, missing, self._embedder, self._query)
        vectors = result.vectors
        if self._dimension < vectors.shape[1]:
            vectors = self._cut(vectors, missing, reasons)
        self._reasons |= {start + row: reason for row, reason in reasons.items()}
        if count == len(self._missing):
            self._vectors = vectors
        else:
            self._all()[start : start + count] = vectors

    def finish(self) -> VectorColumn:
        """The column. What lies under a null is zeros, never what the engine left there."""
        vectors, null = self._all(), self._missing.copy()
        null[list(self._reasons)] = True
        if null.any():
            if not vectors.flags.writeable:
                vectors = vectors.copy()
            vectors[null] = 0.0
        return VectorColumn(vector_array(np.ascontiguousarray(vectors), null), self._reasons)

    def nothing(self) -> VectorColumn:
        """The column where nothing came of the batch: all null."""
        zeros = np.zeros((len(self._missing), self._dimension), np.float32)
        return VectorColumn(vector_array(zeros, np.ones(len(zeros), bool)), {})

    def _all(self) -> Vectors:
        if self._vectors is None:
            self._vectors = np.empty((len(self._missing), self._dimension), np.float32)
        return self._vectors

    def _cut(self, vectors: Vectors, missing: npt.NDArray[np.bool_], reasons: dict[int, str]) -> Vectors:
        short = np.ascontiguousarray(vectors[:, : self._dimension])
        if self._embedder.normalize:
            with np.errstate(divide="ignore", invalid="ignore"):
                short /= np.linalg.norm(short, axis=1, keepdims=True)
        for row in np.flatnonzero(~sound_vectors(short, self._embedder.normalize) & ~missing).tolist():
            reasons.setdefault(row, f"the first {self._dimension} elements of the vector have no length")
        return short

"""One call to embed: which of its texts must be computed, and where their vectors go."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.batching import WINDOW
from fletcher_core.cache import TextKeys, VectorCache
from fletcher_core.tokenizers.request import Column, binary_type
from fletcher_core.tokens import Int64

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KeyedCache:
    """A cache with the keys of an embedder's texts and of its queries, which are equal where the prompts are."""

    cache: VectorCache
    texts: TextKeys
    queries: TextKeys


class EmbedCall:
    """Equal texts are computed once, and known ones not at all; without a cache and without `find_equal` every text is.

    Args:
        texts: of the call.
        missing: bool [n], texts whose vectors are zeros.
        dimension: of the vectors.
        keyed: what knows some of them already.
        dataset: names what the texts belong to.
        find_equal: whether equal texts are worth finding without a cache.
    """

    def __init__(
        self,
        texts: Column,
        missing: npt.NDArray[np.bool_],
        dimension: int,
        keyed: KeyedCache | None,
        dataset: str,
        find_equal: bool,
    ):
        self.texts = texts
        self.missing = missing
        self.keyed = keyed
        self.dataset = dataset
        self.computes_all = keyed is None and not find_equal
        self.vectors = np.zeros((len(texts), dimension), dtype=np.float32)
        self._row_of: dict[str | bytes, int] = {}  # key, or text -> the row where it stands first
        self._key_at: dict[int, bytes] = {}  # row -> key of texts on their way through the engine
        self._copies: list[tuple[Int64, Int64]] = []  # rows, and the rows whose vectors they take

    def windows(self) -> Generator[tuple[Int64, Column]]:
        """The texts to compute with their rows (int64, ascending), in windows of the input's that are merged while they
        are small; the vectors of known texts are put in their places on the way."""
        rows: list[Int64] = []
        parts: list[Column] = []
        for start in range(0, len(self.texts), WINDOW):
            part = self._window(start)
            chosen = self._to_compute(start, part)
            if not len(chosen):
                continue
            rows.append(start + chosen)
            parts.append(part if len(chosen) == len(part) else _take(part, chosen))
            if sum(map(len, rows)) > WINDOW // 2:
                yield np.concatenate(rows), _joined(parts)
                rows, parts = [], []
        if rows:
            yield np.concatenate(rows), _joined(parts)

    def place(self, rows: Int64) -> Vectors | None:
        """Where the vectors of the texts `rows` go if that is one piece: who writes there saves a copy."""
        first, last = int(rows[0]), int(rows[-1])
        return self.vectors[first : last + 1] if last - first + 1 == len(rows) else None

    def accept(self, rows: Int64, vectors: Vectors) -> None:
        """The good vectors [m, dim] of the texts `rows` (of those that are missing, anything), in their `place` or
        anywhere."""
        if vectors.base is not self.vectors:
            self.vectors[rows] = vectors
        missing = self.missing[rows]
        if missing.any():
            self.vectors[rows[missing]] = 0.0
        if self.keyed is not None:
            keys = [self._key_at.pop(row) for row in rows.tolist()]
            self.keyed.cache.put_many(keys, vectors, self.dataset)

    def finish(self) -> Vectors:
        """All vectors, float32 [n, dim]."""
        for rows, sources in self._copies:
            self.vectors[rows] = self.vectors[sources]
        return self.vectors

    def _window(self, start: int) -> Column:
        part = self.texts[start : start + WINDOW]
        return part if isinstance(part, list) or self.computes_all else _binary(part)

    def _to_compute(self, start: int, part: Column) -> Int64:
        """Places in the window `part`, which begins at row `start`, of the texts that have no vector yet."""
        if self.computes_all:
            return np.arange(len(part))
        places = np.flatnonzero(~self.missing[start : start + len(part)])
        texts = _items(part if len(places) == len(part) else _take(part, places))
        rows = start + places
        if self.keyed is None:
            return places[self._first_seen(texts, rows)]
        keys = self.keyed.texts.keys(texts)
        new = self._first_seen(keys, rows)
        return places[new][self._not_cached(self.keyed, [keys[at] for at in np.flatnonzero(new)], rows[new])]

    def _first_seen(self, keys: Sequence[str | bytes], rows: Int64) -> npt.NDArray[np.bool_]:
        """bool [m]: which of the texts at `rows` stand there first; the others will take the first one's vector."""
        first = np.fromiter(map(self._row_of.setdefault, keys, rows.tolist()), np.int64, len(rows))
        new: npt.NDArray[np.bool_] = first == rows
        if not new.all():
            self._copies.append((rows[~new], first[~new]))
        return new

    def _not_cached(self, keyed: KeyedCache, keys: list[bytes], rows: Int64) -> npt.NDArray[np.bool_]:
        unknown = ~keyed.cache.get_many(keys, self.vectors, rows, self.dataset)
        for at in np.flatnonzero(unknown).tolist():
            self._key_at[int(rows[at])] = keys[at]
        return unknown


def _take(texts: Column, places: Int64) -> Column:
    if isinstance(texts, list):
        return [texts[at] for at in places.tolist()]
    return texts.take(pa.array(places))


def _joined(parts: list[Column]) -> Column:
    """Lists, or Arrow arrays of one type, as one."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], list):
        return [text for part in parts for text in part]
    return pa.chunked_array([chunk for part in parts for chunk in getattr(part, "chunks", [part])])


def _binary(texts: "pa.Array | pa.ChunkedArray") -> "pa.Array | pa.ChunkedArray":
    """The same as bytes, which may be what is not valid UTF-8, and not as views, which Arrow cannot take from."""
    kind = binary_type(texts)
    data = texts.cast(kind)
    return data.cast(pa.large_binary()) if kind == pa.binary_view() else data


def _items(texts: Column) -> "list[str] | list[bytes]":
    if isinstance(texts, list):
        return texts
    items: list[bytes] = texts.to_numpy(zero_copy_only=False).tolist()
    return items

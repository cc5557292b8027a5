"""A window of rows on its way through the engine: which texts it needs, and what becomes of their vectors.

In: rows of the snapshot of changes. Out: rows for the store, and rows for the quarantine. Equal texts go through the
engine once, and rows whose vector the store knows already do not go at all.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.embedder import Embedder, vector_array
from fletcher_core.store.quarantine import ENGINE_FAILED
from fletcher_core.store.rows import delete_rows
from fletcher_core.store.schema import UPSERT
from fletcher_core.text_window import EmbeddedTexts


@dataclass(frozen=True)
class Window:
    """Rows of the snapshot. `unique` int64 [texts] are the rows whose texts go through the engine; `text_of` int64
    [rows] says which of those texts is a row's own, -1 where the row brings its vector along."""

    rows: pa.Table
    unique: npt.NDArray[np.int64]
    text_of: npt.NDArray[np.int64]

    @property
    def own(self) -> npt.NDArray[np.int64]:
        """The texts whose row is in this window: all of them, unless it is a piece."""
        return np.flatnonzero((self.unique >= 0) & (self.unique < self.rows.num_rows))

    def piece(self, offset: int, rows: int) -> "Window":
        """The window of `rows` rows from `offset` on. Its texts are numbered as here, and may stand in other pieces."""
        return Window(self.rows.slice(offset, rows), self.unique - offset, self.text_of[offset : offset + rows])


@dataclass(frozen=True)
class FinishedWindow:
    """`rows` as the store takes them; `refused` as the quarantine takes them; `truncated` counts rows of cut texts."""

    rows: pa.Table
    refused: pa.Table
    truncated: int


def open_window(rows: pa.Table) -> Window:
    """Find the texts of `rows` (columns of `Changes.changes_path`) that need a vector, each once."""
    hashes = rows["content_hash"].combine_chunks().dictionary_encode()
    codes = hashes.indices.to_numpy().astype(np.int64)
    needed = rows["vector"].is_null().to_numpy()
    first = np.full(len(hashes.dictionary), -1, np.int64)
    candidates = np.flatnonzero(needed)[::-1]
    first[codes[candidates]] = candidates  # backwards, so that the first row of a text is what remains
    unique = np.sort(first[first >= 0])
    place = np.full(len(hashes.dictionary), -1, np.int64)
    place[codes[unique]] = np.arange(len(unique))
    return Window(rows, unique, np.where(needed, place[codes], -1))


def finish_window(window: Window, result: EmbeddedTexts, embedder: Embedder, schema: pa.Schema) -> FinishedWindow:
    """Join the rows with the vectors of their texts.

    Rows that cannot be vouched for are refused, and the version of them that the store has, made from another text, is
    deleted. `schema` is the generation's.
    """
    rows, fresh = window.rows, window.text_of >= 0
    share = window.text_of[fresh]
    vectors = np.empty((rows.num_rows, embedder.dimension), np.float32)
    tokens = rows["tokens"].to_numpy().copy()
    cut = rows["truncated"].to_numpy().copy()
    reasons = np.full(rows.num_rows, "", dtype=object)
    vectors[fresh], tokens[fresh], cut[fresh] = result.vectors[share], result.token_counts[share], result.cut[share]
    reasons[fresh] = refusals(result, embedder)[share]
    if not fresh.all():
        known = rows["vector"].combine_chunks().filter(pa.array(~fresh))
        vectors[~fresh] = known.flatten().to_numpy().reshape(-1, embedder.dimension)
    good = reasons == ""
    table = rows.drop_columns(["text", "status", "vector", "tokens", "truncated"])
    table = table.append_column("op", pa.repeat(UPSERT, rows.num_rows))
    table = table.append_column("tokens", pa.array(tokens, pa.int32()))
    table = table.append_column("truncated", pa.array(cut.astype(bool)))
    table = table.append_column("vector", vector_array(vectors))
    if not good.all():
        bad = rows.filter(pa.array(~good))
        outdated = delete_rows(bad.filter(bad["replaces"].is_valid()), schema)
        table = table.filter(pa.array(good))
        # Where no row of the snapshot has a null, its schema forbids them, and deletes have nothing but.
        columns = pa.schema([field.with_nullable(True) for field in table.schema])
        table = pa.concat_tables([table.cast(columns), outdated.select(table.column_names).cast(columns)])
    return FinishedWindow(table, _refused_rows(rows, reasons), int(cut[good].sum()))


def refusals(result: EmbeddedTexts, embedder: Embedder) -> npt.NDArray[np.object_]:
    """For each text '' or why its vector must not be used, as 'reason: message'."""
    refused = np.full(len(result.sound), "", dtype=object)
    refused[~result.sound] = f"invalid_vector: the vector {embedder.verdict}"
    for at, said in result.failed.items():
        refused[at] = f"{ENGINE_FAILED}: the text cannot be computed: {said}"
    for text in result.invalid:
        refused[text.row] = f"not_tokenized: the text {text.reason}"
    if embedder.encoder.long_text == "error":
        for row in np.flatnonzero(result.cut):
            refused[row] = (
                f"too_long: the text has {result.token_counts[row]} tokens and the limit is "
                f"{embedder.encoder.max_length}; shorten it, or set long_text to 'truncate' or 'chunk'"
            )
    return refused


def _refused_rows(rows: pa.Table, reasons: npt.NDArray[np.object_]) -> pa.Table:
    """id, content_hash, reason, message of the rows that have a reason."""
    bad = np.flatnonzero(reasons != "")
    parts = [reason.split(": ", 1) for reason in reasons[bad]]
    table = rows.select(["id", "content_hash"]).take(pa.array(bad))
    table = table.append_column("reason", pa.array([reason for reason, _ in parts], pa.string()))
    return table.append_column("message", pa.array([message for _, message in parts], pa.string()))

"""Rows in, their vectors written out; no store in between. Reading, tokenizing and computing overlap.

Equal texts of a window go through the engine once. A row that cannot be embedded gets no vector, is counted by the
reason and named, or is an error by setting; none is left out.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.embedder import Embedder
from fletcher_core.errors import InputError
from fletcher_core.files.outputs import VectorOutput
from fletcher_core.files.rows import ID, Rows, RowWindow
from fletcher_core.stop import NEVER, Stop
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.window import refusals

OnError = Literal["null", "fail"]
_NOT_UTF8 = "the text is not valid UTF-8"  # as tokenizers say it
_NAMED = 5  # ids of a reason that are kept
# No text of people has nothing but these: separators, control and format characters.
_VISIBLE = r"[^\p{Z}\p{Cc}\p{Cf}]"


@dataclass
class Refused:
    """Rows without a vector for one reason: how many, the first ids, and what was said of the first."""

    count: int = 0
    ids: list[str] = field(default_factory=list)
    message: str = ""


@dataclass
class EmbedReport:
    """What was done. `rows` were read; `embedded` of them have a vector; `truncated` were cut to the model's limit;
    `computed` texts went through the engine, `tokens` of them; `refused` by reason: null_text, empty_text,
    invalid_text, not_tokenized, too_long, engine_failed or invalid_vector."""

    rows: int = 0
    embedded: int = 0
    truncated: int = 0
    computed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    refused: dict[str, Refused] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Rows without a vector."""
        return self.rows - self.embedded


@dataclass(frozen=True)
class _Window:
    """`text_of` int64 [rows]: which of the texts that are computed is a row's own, -1 for none; `reasons` object
    [rows], 'reason: message' where there is none and '' elsewhere."""

    rows: RowWindow
    text_of: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.object_]


def embed_rows(
    rows: Rows,
    embedder: Embedder,
    output: VectorOutput,
    *,
    on_error: OnError = "null",
    progress: Callable[[int], None] | None = None,
    stop: Stop = NEVER,
) -> EmbedReport:
    """Write the vectors of `rows` to `output`, in their order.

    Args:
        on_error: "null" leaves rows that cannot be embedded without a vector; "fail" makes the first one an error.
        progress: called with the rows that are done, after each batch.

    Raises:
        SourceError: the rows cannot be read.
        InputError: a row cannot be embedded, under "fail"; names its id.
        EngineError: the device failed.
        StoreError: the output cannot be written.
    """
    report = EmbedReport()
    started = time.perf_counter()
    through = 0

    def batch_done(sequences: int) -> None:
        nonlocal through
        through += sequences
        if progress is not None:
            progress(max(report.rows, through))

    results = embedder.stream(_windows(rows), stop, batch_done)
    try:
        for window, result in results:
            _write(window, result, embedder, output, report, on_error)
            through = report.rows
            if progress is not None:
                progress(report.rows)
    finally:
        results.close()
    report.seconds = time.perf_counter() - started
    return report


def _windows(rows: Rows) -> Iterator[tuple[_Window, pa.Array]]:
    for window in rows.windows():
        texts = window.texts
        texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        reasons = np.full(len(texts), "", dtype=object)
        reasons[_blank(texts)] = "empty_text: the text has no visible character"
        reasons[texts.is_null().to_numpy(zero_copy_only=False)] = "null_text: the text is null"
        usable = reasons == ""
        distinct = texts.filter(pa.array(usable)).dictionary_encode()
        text_of = np.full(len(texts), -1, np.int64)
        text_of[usable] = distinct.indices.to_numpy().astype(np.int64)
        yield _Window(window, text_of, reasons), distinct.dictionary


def _blank(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """bool [n]: texts without a visible character. Of bytes that are not UTF-8 the tokenizer says what is wrong."""
    plain = texts.cast(pa.large_binary()) if texts.type in (pa.string(), pa.large_string()) else texts
    try:
        plain = plain.cast(pa.large_string())
    except pa.ArrowInvalid:
        read = [None if (raw := text.as_py()) is None else raw.decode(errors="replace") for text in plain]
        plain = pa.array(read, pa.large_string())
    seen = pc.match_substring_regex(plain, _VISIBLE)
    return np.asarray(pc.fill_null(pc.invert(seen), False).to_numpy(zero_copy_only=False), dtype=bool)


def _write(
    window: _Window,
    result: EmbeddedTexts,
    embedder: Embedder,
    output: VectorOutput,
    report: EmbedReport,
    on_error: OnError,
) -> None:
    has_text = window.text_of >= 0
    share = window.text_of[has_text]
    reasons = window.reasons
    reasons[has_text] = refusals(result, embedder)[share]
    missing = reasons != ""
    vectors = result.vectors
    if len(share) != len(window.text_of) or not np.array_equal(share, np.arange(len(vectors))):
        vectors = np.zeros((len(window.text_of), embedder.dimension), np.float32)
        vectors[has_text] = result.vectors[share]
    if missing.any():
        _refuse(window, reasons, report, on_error)
    output.write(window.rows.columns, vectors, missing)
    report.rows += len(missing)
    report.embedded += int(len(missing) - missing.sum())
    report.computed += len(result.sound) - len(result.invalid)
    report.tokens += result.computed_tokens
    report.truncated += int(result.cut[share].sum()) if embedder.encoder.long_text == "truncate" else 0


def _refuse(window: _Window, reasons: npt.NDArray[np.object_], report: EmbedReport, on_error: OnError) -> None:
    ids = window.rows.columns[ID]
    for row in np.flatnonzero(reasons != ""):
        reason, message = reasons[row].split(": ", 1)
        if reason == "not_tokenized" and message.startswith(_NOT_UTF8):  # as the quarantine of a store calls it
            reason = "invalid_text"
        name = str(ids[int(row)].as_py())
        if on_error == "fail":
            raise InputError(f"id {name}: {message}. Correct or leave out the row, or let such rows have no vector")
        refused = report.refused.setdefault(reason, Refused(message=message))
        refused.count += 1
        if len(refused.ids) < _NAMED:
            refused.ids.append(name)

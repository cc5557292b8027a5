"""The ledger: ids, hashes and sequences of a partition's live rows, in one narrow Parquet file beside the segments.

Change detection compares every row of a source with it, so that at ten million rows neither vectors, superseded rows
nor hashes in text form are read. It is a copy: it says in its footer which segment files it was made of, counts only
while each of them is still in use, and can be deleted at any time. Segments written later are read beside it.

Hashes are numbers here, 16 bytes instead of 32: of type UUID, which Parquet and DuckDB both keep in 16 bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError
from fletcher_core.sql import connect, first_line, literal, literals
from fletcher_core.store.durable import move_into_place
from fletcher_core.store.schema import UPSERT
from fletcher_core.store.segments import Segment
from fletcher_core.store.versions import LEDGER_VERSION
from fletcher_core.store.workspace import workspace

LedgerSelect = NewType("LedgerSelect", str)  # id, content_hash UUID, metadata_hash UUID, sequence

_FOOTER_KEY = "fletcher.ledger"
_MIN_ROWS = 100_000  # fewer rows are read from the segments as fast
_DUE_SHARE = 8  # made anew once the segments it lacks have more than an eighth of its rows
_MEMORY_LIMIT = "2GB"
_UNREADABLE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError)
_LOW_DIGITS = f"CAST('0x{'0f' * 16}' AS UHUGEINT)"


@dataclass(frozen=True)
class Ledger:
    """A ledger file as its footer describes it: bytes of each segment file it was made of, and the last sequence."""

    path: Path
    rows: int
    sizes: dict[str, int]
    last_sequence: int

    def missing(self, segments: Sequence[Segment]) -> list[Segment] | None:
        """Those of the partition's segments that came later; None when the ledger says nothing about the partition."""
        sizes = {file.name: _size(file) for file in {segment.file for segment in segments}}
        if any(sizes.get(name) != size for name, size in self.sizes.items()):
            return None
        later = [segment for segment in segments if segment.file.name not in self.sizes]
        return later if all(segment.first_sequence > self.last_sequence for segment in later) else None


def number(md5_hex: str) -> str:
    """SQL: a hash in text form as `md5_number` gives it, which is its bytes backwards; null when it is no MD5."""
    return _digits_swapped(f"CAST(TRY_CAST(reverse({md5_hex}) AS UUID) AS UHUGEINT)")


def text_form(number: str) -> str:
    """SQL: the inverse of `number`."""
    return f"reverse(replace(CAST({_digits_swapped(f'CAST({number} AS UHUGEINT)')} AS VARCHAR), '-', ''))"


def read_ledger(path: Path) -> Ledger | None:
    """The ledger at `path`; None when there is none that can be read."""
    try:
        rows, content = _described(path)
        if content["version"] != LEDGER_VERSION:
            return None
        return Ledger(path, rows, content["sizes"], content["last_sequence"])
    except _UNREADABLE:
        return None


def _is_newer(path: Path) -> bool:
    try:
        return bool(_described(path)[1]["version"] > LEDGER_VERSION)
    except _UNREADABLE:
        return False


def _described(path: Path) -> tuple[int, dict[str, Any]]:
    """Rows of a ledger file, and what its footer says. Raises one of _UNREADABLE."""
    metadata = pq.read_metadata(path)
    return metadata.num_rows, json.loads((metadata.metadata or {})[_FOOTER_KEY.encode()])


def ledger_select(path: Path, segments: Sequence[Segment]) -> LedgerSelect:
    """A SELECT of the live rows of `segments`, all that the partition has, from the ledger as far as it goes."""
    ledger = read_ledger(path)
    later = None if ledger is None else ledger.missing(segments)
    if ledger is None or later is None:
        return _from_segments(segments)
    kept = f"SELECT id, content_hash, metadata_hash, sequence FROM read_parquet({literal(path)})"
    if not later:
        return LedgerSelect(kept)
    return LedgerSelect(f"{kept} WHERE {_not_replaced(later)} UNION ALL {_from_segments(later)}")


def refresh_ledger(root: Path, path: Path, segments: Sequence[Segment]) -> None:
    """Makes the ledger anew when it is due; removes it when it is of no more use. A newer Fletcher's is left alone.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    if _is_newer(path):
        return
    rows = sum(segment.rows for segment in segments)
    if rows < _MIN_ROWS:
        path.unlink(missing_ok=True)
        return
    ledger = read_ledger(path)
    later = None if ledger is None else ledger.missing(segments)
    if ledger is None or later is None or sum(s.rows for s in later) > max(_MIN_ROWS, ledger.rows // _DUE_SHARE):
        _write(root, path, segments)


def _write(root: Path, path: Path, segments: Sequence[Segment]) -> None:
    """In a workspace, so that nothing is left when the process dies; the rename is the commit."""
    sizes = {file.name: _size(file) for file in {segment.file for segment in segments}}
    footer = {
        "version": LEDGER_VERSION,
        "sizes": sizes,
        "last_sequence": max(segment.last_sequence for segment in segments),
    }
    options = f"FORMAT parquet, COMPRESSION snappy, KV_METADATA {{'{_FOOTER_KEY}': {literal(json.dumps(footer))}}}"
    with workspace(root, "ledger") as folder:
        made = folder / "ledger.parquet"
        with connect(memory_limit=_MEMORY_LIMIT, spill=folder / "spill") as connection:
            connection.execute("SET preserve_insertion_order = false")
            connection.execute("SET enable_progress_bar = false")
            try:
                connection.execute(f"COPY ({_from_segments(segments)}) TO {literal(made)} ({options})")
            except duckdb.Error as error:
                raise StoreError(
                    f"the ledger {str(path)!r} cannot be made: {first_line(error)}. Make room on the disk"
                ) from error
        move_into_place(made, path)


def _from_segments(segments: Sequence[Segment]) -> LedgerSelect:
    if not segments:
        empty = "SELECT NULL::VARCHAR AS id, NULL::UUID AS content_hash, NULL::UUID AS metadata_hash, "
        return LedgerSelect(f"{empty} NULL::BIGINT AS sequence WHERE false")
    return LedgerSelect(
        f"SELECT id, {number('content_hash')} AS content_hash, {number('metadata_hash')} AS metadata_hash, sequence "
        f"FROM {_relation(segments)} WHERE op = '{UPSERT}' AND {_not_replaced(segments)}"
    )


def _not_replaced(segments: Sequence[Segment]) -> str:
    return f"sequence NOT IN (SELECT replaces FROM {_relation(segments)} WHERE replaces IS NOT NULL)"


def _relation(segments: Sequence[Segment]) -> str:
    files = sorted({segment.file for segment in segments})
    return f"read_parquet({literals(files)}, hive_partitioning = false)"


def _digits_swapped(number: str) -> str:
    """The number with the two hexadecimal digits of each byte exchanged, as a UUID."""
    return f"CAST((({number} & {_LOW_DIGITS}) << 4) | (({number} >> 4) & {_LOW_DIGITS}) AS UUID)"


def _size(file: Path) -> int:
    """Bytes of a file; -1, which no ledger has, when it is gone."""
    return file.stat().st_size if file.exists() else -1

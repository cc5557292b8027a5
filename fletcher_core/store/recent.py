"""Segments that were just committed, still in memory for whoever sends them on: reading them back costs more than that.

Bounded in bytes; what was read once or does not fit is read from its file.
"""

import threading
from pathlib import Path

import pyarrow as pa


class RecentSegments:
    """Tables by label, together at most `limit` bytes, the oldest given up first. Safe to use from several threads."""

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._tables: dict[str, tuple[Path, pa.Table]] = {}
        self._bytes = 0

    def put(self, label: str, file: Path, table: pa.Table) -> None:
        """Keep what was committed under `label` in `file`."""
        with self._lock:
            self._tables[label] = file, table
            self._bytes += table.nbytes
            while self._bytes > self._limit:
                self._remove(next(iter(self._tables)))

    def take(self, label: str, file: Path) -> pa.Table | None:
        """The rows of `label`, once, if they are still here; `file` is where they are now: a merge may have left some
        of them out."""
        with self._lock:
            if label not in self._tables:
                return None
            written, table = self._remove(label)
            return table if written == file else None

    def _remove(self, label: str) -> tuple[Path, pa.Table]:
        written, table = self._tables.pop(label)
        self._bytes -= table.nbytes
        return written, table

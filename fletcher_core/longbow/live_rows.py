"""Which rows of a generation are live, for whoever asks again and again while a run goes on.

In: a generation. Out: live sequences near given ones. It reads narrow columns only, of each segment once and of all
after a merge, and keeps a byte for each sequence up to the last: a gigabyte at 10^9 rows, and never more than four.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.sql import literals, session
from fletcher_core.store.generation import Generation
from fletcher_core.store.schema import UPSERT

_STORED, _REPLACED = np.uint8(1), np.uint8(2)
_BATCH_ROWS = 1 << 16


class LiveRows:
    """For one thread. What other processes commit is taken up, too."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._known: dict[str, Path] = {}
        self._flags = np.zeros(0, np.uint8)

    def near(self, sequences: npt.NDArray[np.int64], block: int) -> npt.NDArray[np.int64]:
        """Live sequences, ascending, in the blocks of `block` sequences that any of `sequences` lies in.

        Raises StoreError when a file cannot be read.
        """
        self._catch_up()
        starts = np.unique(sequences // block) * block
        near = (starts[:, None] + np.arange(block)).reshape(-1)
        near = near[near < len(self._flags)]
        return near[self._flags[near] == _STORED]

    def are_stored(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each row was in the store's files when they were read, as an upsert: bool [n]."""
        self._catch_up()
        found = np.zeros(len(sequences), np.bool_)
        inside = sequences < len(self._flags)
        found[inside] = self._flags[sequences[inside]] & _STORED != 0
        return found

    def _catch_up(self) -> None:
        self._known = self._generation.settled(self._read)

    def _read(self) -> dict[str, Path]:
        """Reads what was committed since the last time; returns the files of all segments by label."""
        segments = self._generation.segments()
        current = {segment.label: segment.file for segment in segments}
        if any(current.get(label) != file for label, file in self._known.items()):
            # A merge: of rows that came and went before it, nothing may be left that says so.
            self._known, self._flags = {}, np.zeros(0, np.uint8)
        added = [segment for segment in segments if segment.label not in self._known]
        if not added:
            return current
        last = max(segment.last_sequence for segment in added)
        if last >= len(self._flags):
            self._flags = np.concatenate([self._flags, np.zeros(last + 1 - len(self._flags), np.uint8)])
        files = sorted({segment.file for segment in added})
        chosen = "" if not self._known else f"WHERE segment IN {literals([segment.label for segment in added])}"
        query = (
            f"SELECT sequence, op = '{UPSERT}' AS is_upsert, replaces "
            f"FROM read_parquet({literals(files)}, hive_partitioning = false) {chosen}"
        )
        with session() as connection:
            for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
                self._note(batch)
        return current

    def _note(self, rows: pa.RecordBatch) -> None:
        """In any order: a row is live that is stored and that none replaces."""
        upserts = rows["sequence"].filter(rows["is_upsert"]).to_numpy()
        replaced = rows["replaces"].drop_null().to_numpy()
        for marked, flag in ((upserts, _STORED), (replaced, _REPLACED)):
            marked = marked[marked < len(self._flags)]  # of what was committed since the list was made: next time
            self._flags[marked] |= flag

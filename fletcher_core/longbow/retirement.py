"""Old versions of rows, hidden on the server: what a segment supersedes in, `delete` calls out.

Cosmetic, for other people's unfiltered scans: Longbow's searches and filtered scans show deleted rows all the same, and
a restart brings them back. Fletcher's own search never relies on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import LongbowNotFound
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.live_rows import LiveRows
from fletcher_core.longbow.wire import BLOCK_ROWS
from fletcher_core.sql import session
from fletcher_core.store.generation import Generation
from fletcher_core.store.segments import Segment


@dataclass
class Retirement:
    """Retires what the segments of `generation` supersede; remembers which labels it has done.

    `retired` counts delete calls that hit a row, `kept` rows left because they were the last of their stored batch.
    """

    generation: Generation
    client: LongbowClient
    stopping: Callable[[], bool]
    retired: int = 0
    kept: int = 0
    _done: set[str] = field(default_factory=set)
    _live: LiveRows = field(init=False)

    def __post_init__(self) -> None:
        self._live = LiveRows(self.generation)

    def start_over(self) -> None:
        """Forget what was done: the server may have been started again without it."""
        self._done.clear()

    def outstanding(self, applied: Sequence[str]) -> list[str]:
        """Those of the applied segments that were not yet looked at."""
        return [label for label in applied if label not in self._done]

    def retire(self, label: str, replaced: npt.NDArray[np.int64] | None = None) -> None:
        """Delete the rows that a segment's rows supersede, as far as that is safe; `replaced` names them if known."""
        if replaced is None:
            replaced = self.generation.read_segment(label)["replaces"].drop_null().to_numpy()
        if len(replaced):
            segments = self.generation.segments()
            stale = self._perhaps_there(np.unique(replaced), segments)
            safe = safe_to_delete(stale, segments, self._live.near(stale, BLOCK_ROWS))
            for sequence in safe.tolist():
                if self.stopping():
                    return
                self._delete(sequence)
            self.kept += len(stale) - len(safe)
        self._done.add(label)

    def _delete(self, sequence: int) -> None:
        try:
            self.client.delete(self.generation.name, sequence)
        except LongbowNotFound:  # never delivered here, or the server forgot its ids when it was started again
            return
        self.retired += 1

    def _perhaps_there(self, stale: npt.NDArray[np.int64], segments: Sequence[Segment]) -> npt.NDArray[np.int64]:
        """Without rows that a merge dropped before their segment was sent, as to a server that came back empty: a call
        for each row that was ever replaced would take far longer than sending all rows again."""
        places = holders(segments, stale)
        is_gone = (places >= 0) & ~self._live.are_stored(stale)
        for place in np.unique(places[is_gone]).tolist():
            segment = segments[place]
            sent = self.generation.manifest.delivery(self.client.address.target, segment.label).rows
            if sent != segment.upserts:  # it was sent with more rows than it has now
                is_gone &= places != place
        return stale[~is_gone]


def safe_to_delete(
    stale: npt.NDArray[np.int64], segments: Sequence[Segment], live: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Those of the stale sequences whose deletion leaves a row in every stored batch of the server.

    A stored batch is one block of one segment. Live rows are never deleted, so a block with one is safe; of a block
    without, the newest of these rows is left. Rows of segments that are no more are left too: their batch is unknown.
    """
    places = holders(segments, stale)
    stale, places = stale[places >= 0], places[places >= 0]
    firsts, lasts = _bounds(segments)
    block = stale // BLOCK_ROWS
    low = np.maximum(firsts[places], block * BLOCK_ROWS)
    high = np.minimum(lasts[places], (block + 1) * BLOCK_ROWS - 1)
    has_live = np.searchsorted(live, high, side="right") > np.searchsorted(live, low, side="left")
    is_newest = np.ones(len(stale), dtype=np.bool_)
    is_newest[:-1] = low[:-1] != low[1:]
    return stale[has_live | ~is_newest]


def holders(segments: Sequence[Segment], sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each sequence the place among `segments`, in sequence order, of the one that has or had it; -1 for none."""
    if not segments:
        return np.full(len(sequences), -1, dtype=np.int64)
    firsts, lasts = _bounds(segments)
    places = np.searchsorted(firsts, sequences, side="right") - 1
    return np.where((places >= 0) & (sequences <= lasts[places]), places, -1)


def _bounds(segments: Sequence[Segment]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last sequence of each segment, int64 [segments]."""
    return (
        np.array([segment.first_sequence for segment in segments], dtype=np.int64),
        np.array([segment.last_sequence for segment in segments], dtype=np.int64),
    )


def live_sequences(generation: Generation) -> npt.NDArray[np.int64]:
    """Sequences of all live rows, sorted. Raises StoreError when a file cannot be read."""

    def read() -> npt.NDArray[np.int64]:
        with session() as connection:
            query = f"SELECT sequence FROM ({generation.live_sql()}) ORDER BY sequence"
            return np.asarray(connection.execute(query).fetchnumpy()["sequence"], dtype=np.int64)

    return generation.settled(read)

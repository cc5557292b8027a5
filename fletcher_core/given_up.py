"""Rows that an engine has failed on again and again: known, so that no run hangs or loses its engine over them again.

In: rows of the snapshot of changes. Out: those to try, and those to set aside as they were.
"""

import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.models import ModelCard
from fletcher_core.store.quarantine import Quarantine


class GivenUp:
    """The rows of a partition that the engine of model `card` failed on in `attempts` runs."""

    def __init__(self, quarantine: Quarantine, partition_key: str, card: ModelCard, attempts: int) -> None:
        self._rows = quarantine.given_up(partition_key, card.fingerprint, attempts)

    def part(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """`rows` (id, content_hash, ...) to try, and rows of the quarantine whose text is still the one that failed."""
        if not self._rows.num_rows:
            return rows, self._rows
        known, keys = _keys(self._rows), _keys(rows)
        return rows.filter(pc.invert(pc.is_in(keys, known))), self._rows.filter(pc.is_in(known, keys))


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    # A hash has one length, so that no two pairs look alike.
    return pc.binary_join_element_wise(rows["content_hash"].cast(pa.string()), rows["id"].cast(pa.string()), " ")

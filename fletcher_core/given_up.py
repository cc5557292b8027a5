"""Rows that an engine has failed on again and again: known, so that no run hangs or loses its engine over them again.

In: rows of the snapshot of changes. Out: those to try, and those to set aside, with what the quarantine has of them;
and which of them were refused before, for whatever reason.
"""

import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.models import ModelCard
from fletcher_core.store.quarantine import Quarantine


class GivenUp:
    """The rows of a partition that the engine of model `card` failed on in `attempts` runs."""

    def __init__(self, quarantine: Quarantine, partition_key: str, card: ModelCard, attempts: int) -> None:
        self._rows = quarantine.given_up(partition_key, card.fingerprint, attempts)
        self._refused = _keys(quarantine.refused(partition_key, card.fingerprint))

    def part(self, rows: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
        """`rows` (id, content_hash, ...) to try; those whose text is still the one that failed; the quarantine's rows
        of these."""
        if not self._rows.num_rows:
            return rows, rows.slice(0, 0), self._rows
        known, keys = _keys(self._rows), _keys(rows)
        failed = pc.is_in(keys, known)
        return rows.filter(pc.invert(failed)), rows.filter(failed), self._rows.filter(pc.is_in(known, keys))

    @property
    def any_refused(self) -> bool:
        """Whether `refused` can be true of some row."""
        return len(self._refused) > 0

    def refused(self, rows: pa.Table) -> pa.ChunkedArray:
        """For each row whether the model had it before, with this text, and it was set aside."""
        return pc.is_in(_keys(rows), self._refused)


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    # A hash has one length, so that no two pairs look alike.
    return pc.binary_join_element_wise(rows["content_hash"].cast(pa.string()), rows["id"].cast(pa.string()), " ")

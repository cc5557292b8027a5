"""Merging a partition's files into one, without the rows that later rows supersede.

Anyone may read the files by glob at any instant and take the newest row of each id. So deletes stay in a merge: until
its inputs are gone they hide what the inputs still show. Only a file that is alone in its partition is rewritten
without them. In between, manifest and files may disagree; `recovery` knows how from the footer's `inputs`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.sql import connect, first_line, literals
from fletcher_core.store.durable import committed
from fletcher_core.store.manifest import Manifest
from fletcher_core.store.place import Place
from fletcher_core.store.schema import DELETE, UPSERT
from fletcher_core.store.segments import (
    Footer,
    SegmentEntry,
    entry_counts,
    new_label,
    parquet_writer,
    read_footer,
    row_group_rows,
)
from fletcher_core.store.workspace import workspace

_LOG = logging.getLogger(__name__)

_MEMORY_LIMIT = "2GB"
_BATCH_ROWS = 1 << 16
# A segment takes 20 MiB at most; one of 8,192 rows 12 MiB for 384 elements, and 4 for 128.
_FULL_BYTES = 4 << 20
# macOS lets a process open 256 files, and readers open all of a partition.
_MANY_TIMES = 4
# Where so large a share of the rows was replaced, and there is so much of them, all files are merged.
_MOSTLY_REPLACED = 0.7
_WORTH_BYTES = 64 << 20


@dataclass(frozen=True)
class CompactionReport:
    """What compaction did; all zero when there was nothing to do. Reports can be added."""

    files_before: int = 0
    files_after: int = 0
    rows_before: int = 0
    rows_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    def __add__(self, other: "CompactionReport") -> "CompactionReport":
        mine, theirs = vars(self), vars(other)
        return CompactionReport(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class _Survivors:
    """Each id's newest row among some files: a bit in `bits` uint8 for each sequence from `first` on, and what those
    rows replace that have taken the place of others, `heirs` int64 ascending with `replaces`.

    The newest row takes over what the oldest dropped one replaced: when that lies in a file that is not merged, nothing
    else would say any more that it is superseded.
    """

    first: int
    bits: npt.NDArray[np.uint8]
    heirs: npt.NDArray[np.int64]
    replaces: pa.Int64Array

    @property
    def lowest(self) -> int | None:
        """The first sequence that survives; None where none does."""
        (used,) = np.nonzero(self.bits)
        if not len(used):
            return None
        lowest_bit = int(self.bits[used[0]]) & -int(self.bits[used[0]])
        return self.first + 8 * int(used[0]) + lowest_bit.bit_length() - 1

    def among(self, table: pa.Table) -> pa.Table:
        """The surviving rows of `table`."""
        places = table["sequence"].to_numpy() - self.first
        found = (self.bits[places >> 3] >> (places & 7)) & 1 == 1
        rows = table.filter(pa.array(found))
        if not len(self.heirs):
            return rows
        sequences = rows["sequence"].to_numpy()
        at = np.minimum(np.searchsorted(self.heirs, sequences), len(self.heirs) - 1)
        inherits = pa.array(self.heirs[at] == sequences)
        replaced = pc.if_else(inherits, self.replaces.take(pa.array(at)), rows["replaces"])
        return rows.set_column(table.schema.get_field_index("replaces"), "replaces", replaced)


def compact_partition(
    place: Place, manifest: Manifest, generation: str, schema: pa.Schema, partition_key: str, files: Sequence[Path]
) -> CompactionReport:
    """Merges `files`, neighbours in sequence order. The caller holds the partition's lock."""
    before = list(files)
    bytes_before, rows_before = _size(before)
    after = before
    if len(before) > 1:
        _LOG.info("merging %d files, %.1f MB, of %s into one", len(before), bytes_before / 1e6, before[0].parent)
        after = _replace(place, manifest, schema, before, keep_deletes=True)
    alone = len(manifest.files(generation, partition_key)) == 1
    if alone and _has_deletes(after) and manifest.deletes_delivered(generation, partition_key):
        after = _replace(place, manifest, schema, after, keep_deletes=False)
    bytes_after, rows_after = _size(after)
    return CompactionReport(len(before), len(after), rows_before, rows_after, bytes_before, bytes_after)


def files_to_merge(sizes: Mapping[Path, int], max_files: int, replaced: float = 0.0) -> list[Path]:
    """Which files of a partition a run merges at its end: none most times.

    Files written full are left alone, as a merge of them saves readers little and costs as much as writing them did;
    what runs add to them in small files is merged once there are more than `max_files` at the newest end. Where more
    than `_MANY_TIMES` as many in all would remain, the full ones are merged too, and all where most rows were replaced.

    Args:
        sizes: bytes of each file, in the order of their sequences.
        replaced: share of their rows that later ones replaced, 0 to 1.
    """
    files = list(sizes)
    if replaced > _MOSTLY_REPLACED and len(files) > 1 and sum(sizes.values()) > _WORTH_BYTES:
        return files
    small = list(takewhile(lambda file: sizes[file] < _FULL_BYTES, reversed(files)))[::-1]
    chosen = _newest_small_files(small, sizes, max_files) if len(small) > max_files else []
    remaining = len(files) - len(chosen) + bool(chosen)
    return _newest_small_files(files, sizes, max_files) if remaining > _MANY_TIMES * max_files else chosen


def _newest_small_files(files: Sequence[Path], sizes: Mapping[Path, int], max_files: int) -> list[Path]:
    """The newest of `files` up to the first that is larger than all newer ones together, so that over time a row is
    rewritten a logarithmic number of times.

    At least so many that `max_files` remain after their merge.
    """
    chosen: list[Path] = []
    total = 0
    for file in reversed(files):
        if sizes[file] > total and len(chosen) > len(files) - max_files:
            break
        chosen.append(file)
        total += sizes[file]
    return chosen[::-1]


def _replace(
    place: Place, manifest: Manifest, schema: pa.Schema, files: Sequence[Path], *, keep_deletes: bool
) -> list[Path]:
    """Puts one file in the place of several; none when no row survives."""
    survivors = _survivors(place.root, files, keep_deletes)
    folder = files[0].parent
    if survivors.lowest is None:
        manifest.drop_files(files)
        place.collect_garbage(manifest, folder)
        return []
    path = folder / f"{new_label(survivors.lowest)}.parquet"
    with committed(path) as target:
        footer = _write_survivors(target, schema, files, survivors)
    place.publish(path)
    try:
        manifest.add_file(path, footer)
    except StoreLockedError:  # replaced meanwhile; nobody after us would look for it
        place.withdraw(path)
        raise
    place.collect_garbage(manifest, folder)
    return [path]


def _survivors(root: Path, files: Sequence[Path], keep_deletes: bool) -> _Survivors:
    """A bit for each sequence, and 16 bytes for each row that others are dropped for: little memory for many rows."""
    newest_is_upsert = "" if keep_deletes else f"HAVING arg_max(op, sequence) = '{UPSERT}'"
    query = (
        "SELECT max(sequence) AS sequence, min(replaces) AS replaces, count(*) > 1 AS inherits "
        f"FROM read_parquet({literals(files)}, hive_partitioning = false) GROUP BY id {newest_is_upsert}"
    )
    entries = [entry for path in files for entry in read_footer(path).segments]
    first = min(entry.first_sequence for entry in entries)
    bits = np.zeros((max(entry.last_sequence for entry in entries) - first) // 8 + 1, np.uint8)
    heirs = [pa.table({"sequence": pa.array([], pa.int64()), "replaces": pa.array([], pa.int64())})]
    with workspace(root, "compaction") as spill, connect(memory_limit=_MEMORY_LIMIT, spill=spill) as connection:
        connection.execute("SET enable_progress_bar = false")
        try:
            for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
                places = batch["sequence"].to_numpy() - first
                np.bitwise_or.at(bits, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))
                heirs.append(pa.Table.from_batches([batch.filter(batch["inherits"])]).drop_columns("inherits"))
        except duckdb.Error as error:
            raise StoreError(
                f"{str(files[0].parent)!r} cannot be compacted: {first_line(error)}. Its rows are all there; make room "
                "on the disk or move a damaged file away, then try again"
            ) from error
    inherited = pa.concat_tables(heirs).sort_by("sequence")
    return _Survivors(first, bits, inherited["sequence"].to_numpy(), inherited["replaces"].combine_chunks())


def _write_survivors(target: IO[bytes], schema: pa.Schema, files: Sequence[Path], survivors: _Survivors) -> Footer:
    """Copies the surviving rows, a row group at a time, and returns the footer that the new file got."""
    counts: dict[str, dict[str, int]] = {}
    group_rows = row_group_rows(schema)
    pending = schema.empty_table()
    with parquet_writer(target, schema) as writer:
        for table in _row_groups(files):
            kept = survivors.among(table).cast(schema)
            entry_counts(kept, counts)
            pending = pa.concat_tables([pending, kept])
            whole = pending.num_rows - pending.num_rows % group_rows
            if whole:
                writer.write_table(pending.slice(0, whole), row_group_size=group_rows)
                pending = pending.slice(whole).combine_chunks()
        if pending.num_rows:
            writer.write_table(pending)
        footer = _merged_footer(files, counts)
        writer.add_key_value_metadata(footer.encode())
    return footer


def _row_groups(files: Sequence[Path]) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index)


def _merged_footer(files: Sequence[Path], counts: dict[str, dict[str, int]]) -> Footer:
    footers = [read_footer(path) for path in files]
    entries = [
        SegmentEntry(
            entry.label,
            counts[entry.label].get(UPSERT, 0),
            counts[entry.label].get(DELETE, 0),
            entry.first_sequence,
            entry.last_sequence,
            entry.run_id,
            entry.committed_at,
        )
        for footer in footers
        for entry in footer.segments
        if entry.label in counts
    ]
    inputs = tuple(path.name for path in files)
    return Footer(footers[0].generation, footers[0].partition_key, tuple(entries), inputs)


def _has_deletes(files: Sequence[Path]) -> bool:
    return any(entry.deletes for path in files for entry in read_footer(path).segments)


def _size(files: Sequence[Path]) -> tuple[int, int]:
    """Bytes and rows."""
    rows = sum(entry.upserts + entry.deletes for path in files for entry in read_footer(path).segments)
    return sum(path.stat().st_size for path in files), rows

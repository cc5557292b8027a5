"""Segments that are written by one process and committed by another.

Whoever holds the partition's lock plans a segment: its label, its sequences, and where to write it, beside the store's
own files or in its bucket. Another process that reaches the same disk or bucket writes it there; it counts for nothing
until the first one records it. A writer that was given up for lost may go on writing: whoever does its work again
writes to another file, and nobody looks at the first one any more.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.store.durable import committed
from fletcher_core.store.rows import checked_rows, segment_table
from fletcher_core.store.schema import DELETE
from fletcher_core.store.segments import Footer, SegmentEntry, new_label, parquet_writer, row_group_rows


@dataclass(frozen=True)
class PlannedSegment:
    """Made by `Generation.plan_segment`; can be sent to another process.

    Attributes:
        generation: name of the generation that it is of.
        partition_key: its partition.
        fingerprint: the model's.
        schema: Arrow schema of the file.
        label: of the segment.
        first_sequence: of its first row; `rows` sequences are its own, used or not.
        rows: the most rows that it can have.
        run_id: the run that will commit it.
        where: the file to write it to, or the address of the store on object storage that it goes into.
    """

    generation: str
    partition_key: str
    fingerprint: str
    schema: pa.Schema
    label: str
    first_sequence: int
    rows: int
    run_id: str
    where: Path | str

    def again(self) -> "PlannedSegment":
        """The same rows under another name, for another writer: what the first may still write is not in its way."""
        label = new_label(self.first_sequence)
        where = self.where.with_name(f"{label}.parquet") if isinstance(self.where, Path) else self.where
        return replace(self, label=label, where=where)


@dataclass(frozen=True)
class WrittenSegment:
    """A planned segment whose file is complete, to be committed with `Generation.adopt`; `bytes` long."""

    plan: PlannedSegment
    footer: Footer
    bytes: int


def write_planned(plan: PlannedSegment, rows: pa.Table, committed_at: float) -> WrittenSegment:
    """Writes a planned segment's file, whole or not at all; written again, it replaces the first.

    Args:
        rows: as `Generation.write_segment` takes them, at least one and at most `plan.rows`.
        committed_at: seconds since 1970.

    Raises:
        StoreError: rows that do not fit; the disk is full or cannot be written; the object storage does not answer.
    """
    table = segment_table(
        checked_rows(rows, plan.schema),
        plan.schema,
        partition_key=plan.partition_key,
        fingerprint=plan.fingerprint,
        first_sequence=plan.first_sequence,
        label=plan.label,
    )
    footer = footer_of(
        plan.generation, plan.partition_key, table, plan.label, plan.first_sequence, plan.run_id, committed_at
    )
    if isinstance(plan.where, Path):
        with committed(plan.where) as file:
            write_table(file, table, footer)
        return WrittenSegment(plan, footer, plan.where.stat().st_size)
    from fletcher_core.store.cloud.upload import put_segment  # needs the extra `cloud`

    content = io.BytesIO()
    write_table(content, table, footer)
    put_segment(plan.where, plan.generation, plan.partition_key, plan.label, content.getvalue())
    return WrittenSegment(plan, footer, content.tell())


def footer_of(
    generation: str, partition_key: str, table: pa.Table, label: str, first: int, run_id: str, committed_at: float
) -> Footer:
    """What a new segment's file says of itself: `table` is all of it."""
    deletes = pc.sum(pc.equal(table["op"], DELETE)).as_py()
    last = first + table.num_rows - 1
    entry = SegmentEntry(label, table.num_rows - deletes, deletes, first, last, run_id, committed_at)
    return Footer(generation, partition_key, (entry,))


def write_table(file: object, table: pa.Table, footer: Footer) -> None:
    """Writes a segment's file to an open one."""
    with parquet_writer(file, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_rows(table.schema))
        writer.add_key_value_metadata(footer.encode())

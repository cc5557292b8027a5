"""A generation: the vectors of one collection under one model, one schema and one vector type.

Rows go in as segments, one partition at a time; out come the live rows as SQL, segments as tables, and rows by their
sequence numbers.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, TypeVar

import duckdb
import pyarrow as pa

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.models.card import ModelCard
from fletcher_core.setting_values import VectorType
from fletcher_core.sql import first_line, identifier, literals, session
from fletcher_core.store.compaction import CompactionReport, compact_partition, files_to_merge
from fletcher_core.store.durable import committed, move_into_place
from fletcher_core.store.identity import FILE_NAME, Identity, read_identity
from fletcher_core.store.ledger import LedgerSelect, ledger_select, refresh_ledger
from fletcher_core.store.manifest import Manifest
from fletcher_core.store.place import Lock, Place
from fletcher_core.store.planned import PlannedSegment, WrittenSegment, footer_of, write_table
from fletcher_core.store.recent import RecentSegments
from fletcher_core.store.rows import checked_rows, delete_rows, segment_table
from fletcher_core.store.schema import check_text_name, folder_name
from fletcher_core.store.segments import Footer, Segment, new_label, read_labelled

_T = TypeVar("_T")
_ATTEMPTS = 5  # readings while another process compacts
_DELETES = 16_384  # rows of a segment of nothing else


class Generation:
    """Made by `VectorStore.generation`. Safe to use from several threads; a lock belongs to the object that took it.

    Attributes:
        place: where the files are.
        name: of the folder under `root`, and of the Longbow dataset.
        schema: Arrow schema of every segment.
        manifest: where deliveries are recorded.
        recent: what this object committed last, so that `read_segment` need not go to the disk for it; holds nothing
            until it is replaced by one with room.
    """

    def __init__(self, place: Place, manifest: Manifest, identity: Identity) -> None:
        self.place = place
        self.root = place.root
        self.manifest = manifest
        self.identity = identity
        self._held: set[str] = set()
        self.recent = RecentSegments(0)
        self.name: str = identity.name
        self.schema: pa.Schema = identity.schema

    @property
    def card(self) -> ModelCard:
        """The model whose vectors these are."""
        return self.identity.card

    @property
    def metadata_schema(self) -> pa.Schema:
        """Names and types of the metadata columns."""
        return self.identity.metadata_schema

    @property
    def vector_type(self) -> VectorType:
        """Element type of the stored vectors."""
        return self.identity.vector_type

    # Writing

    @contextmanager
    def locked(self, partition_key: str, run_id: str) -> Iterator[None]:
        """Keeps the partition for this object alone during a `with` block; what a crash left is put in order first.

        Raises:
            StoreLockedError: another run has it; names the run and the process.
            ConfigError: the key is not valid Unicode.
        """
        check_text_name("partition key", partition_key)
        with self._lock(partition_key).held(run_id):
            self._held.add(partition_key)
            try:
                self.place.recover(self.manifest, self._folder(partition_key))
                yield
            finally:
                self._held.discard(partition_key)

    def write_segment(self, partition_key: str, rows: pa.Table, run_id: str) -> Segment:
        """Commits rows: when this returns they are on disk, and when it raises they are not in the store.

        Args:
            rows: id, op ('upsert' | 'delete'), content_hash, metadata_hash, tokens int32, truncated bool,
                replaces int64 (sequence of the live version of the same id, null when there is none), vector
                FixedSizeList<float32, dimension> (null in a delete), and the metadata columns. An id at most once.

        Raises:
            StoreError: rows that do not fit the generation, or sequences used up.
            StoreLockedError: another run has the partition and this object does not hold it through `locked`.
        """
        table = checked_rows(rows, self.schema)
        with self._holding(partition_key, run_id):
            first = self.manifest.allocate(table.num_rows)
            label = new_label(first)
            table = segment_table(
                table,
                self.schema,
                partition_key=partition_key,
                fingerprint=self.card.fingerprint,
                first_sequence=first,
                label=label,
            )
            segment = self._commit(partition_key, table, label, first, run_id)
        self.recent.put(label, segment.file, table)
        return segment

    def plan_segment(self, partition_key: str, rows: int, run_id: str, folder: Path) -> PlannedSegment:
        """A segment of at most `rows` rows for another process to write.

        Args:
            folder: on the store's own disk, where its file waits for `adopt`. Of a store on object storage the file
                goes straight into the bucket, where nobody looks at it before.

        Raises:
            StoreError: sequences used up.
        """
        first = self.manifest.allocate(rows)
        label = new_label(first)
        where = folder / f"{label}.parquet" if self.place.holds_all else self.place.address
        fingerprint = self.card.fingerprint
        return PlannedSegment(self.name, partition_key, fingerprint, self.schema, label, first, rows, run_id, where)

    def adopt(self, written: WrittenSegment) -> Segment:
        """Commits a segment that another process wrote: when this returns it is in the store.

        Raises:
            StoreError: its file is gone or was not written whole.
            StoreLockedError: another run has the partition and this object does not hold it through `locked`.
        """
        plan, footer, waiting = written.plan, written.footer, written.plan.where
        path = self._folder(plan.partition_key) / f"{plan.label}.parquet"
        with self._holding(plan.partition_key, plan.run_id):
            if not isinstance(waiting, Path):
                try:
                    self.manifest.add_file(path, footer, written.bytes)
                except StoreLockedError:
                    self.place.withdraw(path)
                    raise
                return self._known(plan.label)
            with self._recorded(plan.label, path, footer):
                size = waiting.stat().st_size if waiting.exists() else None
                if size != written.bytes:
                    found = "gone" if size is None else f"{size} bytes long, not {written.bytes}"
                    raise StoreError(
                        f"the segment file {str(waiting)!r}, which another process wrote, is {found}: all of them "
                        "must see the store on one file system. Its rows are embedded again on the next run"
                    )
                move_into_place(waiting, path)
        return self._known(plan.label)

    def compact(self, partition_key: str | None = None) -> CompactionReport:
        """Merges each partition's files into one without superseded rows; deletes go too once every target has them.

        Raises:
            StoreLockedError: the named partition is in use. Without a name, partitions in use are passed over.
        """
        if partition_key is not None:
            with self._holding(partition_key, "compaction"):
                merged = self._compact(partition_key, self.manifest.files(self.name, partition_key))
            self.refresh_ledger(partition_key)
            return merged
        report = CompactionReport()
        for key in self.partitions():
            try:
                report += self.compact(key)
            except StoreLockedError:
                continue
        return report

    def compact_if_needed(
        self, partition_key: str, max_segments: int = 32, live_rows: int | None = None
    ) -> CompactionReport | None:
        """Merges the newest small files of a partition once it has more than `max_segments` of them, its files once
        they would be four times as many, and all where most of their rows were replaced; None when there is no need.

        Larger, older files are left alone, so that over time a row is rewritten a logarithmic number of times.

        Args:
            live_rows: of the partition, where they are known.
        """
        merged = None
        if self._to_merge(partition_key, max_segments, live_rows):
            with self._holding(partition_key, "compaction"):
                merged = self._compact(partition_key, self._to_merge(partition_key, max_segments, live_rows))
        self.refresh_ledger(partition_key)
        return merged

    def refresh_ledger(self, partition_key: str) -> None:
        """Makes the partition's ledger anew when too much of the partition is missing in it.

        Compaction does this; without it, `ledger_sql` is right as well, only slower.
        """
        segments = self._here(self.segments(partition_key))
        refresh_ledger(self.root, self._ledger(partition_key), segments)

    def recover(self) -> None:
        """Puts in order what killed runs left in partitions that nobody is using now."""
        self.place.recover_unused(self.manifest, self.name)

    def empty(self, partition_key: str) -> int:
        """Deletes all live rows of a partition, as a run would of which the source has none left; returns how many.

        Longbow gets the deletes with the next delivery, and compaction frees the disk.

        Raises:
            StoreLockedError: a run is writing it.
            StoreError: the disk is full, or a segment file is damaged.
        """
        with self._holding(partition_key, "emptying"):
            select = f"SELECT id, sequence AS replaces FROM ({self.live_sql(partition_key)}) ORDER BY sequence"
            live = self._query(lambda: select)
            for first in range(0, live.num_rows, _DELETES):
                rows = delete_rows(live.slice(first, _DELETES), self.schema)
                self.write_segment(partition_key, rows, "emptying")
        return live.num_rows

    def drop(self, partition_key: str) -> None:
        """Deletes a partition with all its rows and deliveries; `VectorStore.retire` is the public way."""
        with self._holding(partition_key, "retirement"):
            self.manifest.drop_files(self.manifest.files(self.name, partition_key))
            self.place.collect_garbage(self.manifest, self._folder(partition_key))
            self._ledger(partition_key).unlink(missing_ok=True)

    # Reading

    def segments(self, partition_key: str | None = None) -> list[Segment]:
        """Committed segments that still have rows, in sequence order."""
        return self.manifest.segments(self.name, partition_key)

    def files(self, partition_key: str | None = None) -> list[Path]:
        """Parquet files that hold the segments, in sequence order, on this machine."""
        return self._files(partition_key)

    def partitions(self) -> list[str]:
        """Keys of the partitions that have segments."""
        return self.manifest.partitions(self.name)

    def read_segment(self, label: str) -> pa.Table:
        """The rows committed under `label` that still exist, in sequence order, with all columns of `schema`."""

        def read() -> pa.Table:
            segment = self.manifest.segment(self.name, label)
            if segment is None:
                return self.schema.empty_table()
            recent = self.recent.take(label, segment.file)
            if recent is not None:
                return recent
            self.place.present([segment.file])
            return read_labelled(segment.file, label).cast(self.schema)

        return self.settled(read, label)

    def live_sql(self, partition_key: str | None = None) -> str:
        """A SELECT of the live rows with all columns: upserts whose sequence no later row replaces.

        It names today's files: use it soon, under the partition's lock where another process may compact.
        """
        files = self._files(partition_key)
        relation = self._relation(files)
        if not files:
            return f"SELECT * FROM {relation}"
        return (
            f"SELECT * FROM {relation} WHERE op = 'upsert' AND sequence NOT IN "
            f"(SELECT replaces FROM {relation} WHERE replaces IS NOT NULL)"
        )

    def opened(self, partition_key: str) -> list[BinaryIO]:
        """The partition's files of one instant, open for reading; close them.

        What is open stays readable when compaction takes the file away.

        Raises:
            StoreError: a file is gone, or there are more than this process may have open.
        """

        def read() -> list[BinaryIO]:
            with ExitStack() as stack:
                paths = self._files(partition_key)
                try:
                    files: list[BinaryIO] = [stack.enter_context(path.open("rb")) for path in paths]
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
                    raise StoreError(
                        f"partition {partition_key!r} of {self.name} has {len(paths)} files, more than this process "
                        "may have open: run `fletcher compact`, or raise the limit (ulimit -n)"
                    ) from error
                stack.pop_all()
            return files

        return self.settled(read)

    def ledger_sql(self, partition_key: str) -> LedgerSelect:
        """A SELECT of a partition's live rows for comparisons: id, content_hash, metadata_hash, sequence.

        The hashes are numbers (UUID, `md5_number`), null where a row has none. It names today's files, as `live_sql`.
        """
        return ledger_select(self._ledger(partition_key), self._here(self.segments(partition_key)))

    def row_count(self, partition_key: str | None = None) -> int:
        """Number of live rows."""
        counted = self._query(lambda: f"SELECT count(*) AS rows FROM ({self.live_sql(partition_key)})")
        return int(counted["rows"][0].as_py())

    def live_rows_by_segment(self) -> dict[str, int]:
        """Numbers of live rows by the label of their segment, for those that have some."""
        counted = self._query(lambda: f"SELECT segment, count(*) AS rows FROM ({self.live_sql()}) GROUP BY segment")
        return dict(zip(counted["segment"].to_pylist(), counted["rows"].to_pylist(), strict=True))

    def live_ids(self, ids: Sequence[str], partition_key: str) -> list[str]:
        """Those of `ids` that the partition has live rows of."""
        wanted = literals(ids)
        found = self._query(lambda: f"SELECT id FROM ({self.live_sql(partition_key)}) WHERE id IN {wanted}")
        names: list[str] = found["id"].to_pylist()
        return names

    def resolve(self, sequences: Sequence[int]) -> pa.Table:
        """Those of `sequences` that are live, in sequence order.

        Returns:
            sequence int64, id, partition_key, content_hash, metadata columns.
        """
        wanted = ", ".join(str(int(sequence)) for sequence in sequences) or "NULL"
        names = ["sequence", "id", "partition_key", "content_hash", *self.metadata_schema.names]

        def select() -> str:
            relation = self._relation(self._files())
            return (
                f"SELECT {', '.join(map(identifier, names))} FROM {relation} "
                f"WHERE op = 'upsert' AND sequence IN ({wanted}) AND sequence NOT IN "
                f"(SELECT replaces FROM {relation} WHERE replaces IN ({wanted})) ORDER BY sequence"
            )

        return self._query(select)

    def siblings(self) -> list["Generation"]:
        """The collection's other generations, the one written most recently first."""
        names = self.manifest.generations(self.identity.collection)
        return [open_generation(self.place, self.manifest, name) for name in names if name != self.name]

    def settled(self, read: Callable[[], _T], label: str | None = None) -> _T:
        """The result of `read`, tried again when compaction took a file away between its name and its opening.

        `label` names the one segment that is read: listing all files for each of many takes the square of their number.
        """

        def files() -> list[Path]:
            if label is None:
                return self.manifest.files(self.name)
            segment = self.manifest.segment(self.name, label)
            return [] if segment is None else [segment.file]

        for attempt in range(_ATTEMPTS):
            before = files()
            try:
                return read()
            except (FileNotFoundError, duckdb.Error) as error:
                self.place.refresh(now=True)
                if attempt + 1 == _ATTEMPTS or files() == before:
                    raise StoreError(
                        f"a segment file of {self.name} cannot be read: {first_line(error)}. If it is gone or damaged "
                        "for good, move it away and run the materialization: rows that only it held are embedded again"
                    ) from error
        raise AssertionError("unreachable")

    # Inside

    def _commit(self, partition_key: str, table: pa.Table, label: str, first: int, run_id: str) -> Segment:
        footer = footer_of(self.name, partition_key, table, label, first, run_id, time.time())
        path = self._folder(partition_key) / f"{label}.parquet"
        with self._recorded(label, path, footer), committed(path) as file:
            write_table(file, table, footer)
        return self._known(label)

    @contextmanager
    def _recorded(self, label: str, path: Path, footer: Footer) -> Iterator[None]:
        """The block makes the file `path`, which is recorded at its end, or is gone when that fails."""
        try:
            yield
            self.place.publish(path)
            self.manifest.add_file(path, footer)
        except BaseException as error:
            if self.manifest.segment(self.name, label) is None:  # who is told that it failed may write the rows again
                path.unlink(missing_ok=True)
                if isinstance(error, StoreLockedError):  # refused for good, not only without an answer
                    self.place.withdraw(path)
            raise

    def _known(self, label: str) -> Segment:
        segment = self.manifest.segment(self.name, label)
        assert segment is not None
        return segment

    def _to_merge(self, partition_key: str, max_segments: int, live_rows: int | None) -> list[Path]:
        sizes, stored = Counter[Path](), 0
        for segment in self.segments(partition_key):
            sizes[segment.file] += segment.bytes
            stored += segment.upserts
        replaced = 1 - live_rows / stored if live_rows is not None and stored else 0.0
        return files_to_merge(sizes, max_segments, replaced)

    def _compact(self, partition_key: str, files: Sequence[Path]) -> CompactionReport:
        self.place.present(files)
        return compact_partition(self.place, self.manifest, self.name, self.schema, partition_key, files)

    def _folder(self, partition_key: str) -> Path:
        return self.root / self.name / "segments" / folder_name(partition_key)

    def _ledger(self, partition_key: str) -> Path:
        return self.root / self.name / "ledger" / f"{folder_name(partition_key)}.parquet"

    def _files(self, partition_key: str | None = None) -> list[Path]:
        """Files to read now, on this machine."""
        if partition_key not in self._held:  # nobody else changes a partition that is ours
            self.place.refresh()
        for _ in range(_ATTEMPTS):
            files = self.manifest.files(self.name, partition_key)
            try:
                self.place.present(files)
                return files
            except FileNotFoundError as error:  # merged on another machine since we looked
                self.place.refresh(now=True)
                gone = error
        raise StoreError(
            f"a segment file of {self.name} is gone: {gone}. Restore it in {self.place.address}, or `fletcher drop` "
            "its partition and run again"
        ) from gone

    def _here(self, segments: list[Segment]) -> list[Segment]:
        self.place.present([segment.file for segment in segments])
        return segments

    def _lock(self, partition_key: str) -> Lock:
        name = f"{self.name}--{folder_name(partition_key)}.lock"
        return self.place.lock(name, f"partition {partition_key!r} of {self.name}" if partition_key else self.name)

    def _holding(self, partition_key: str, run_id: str) -> AbstractContextManager[None]:
        return nullcontext() if partition_key in self._held else self.locked(partition_key, run_id)

    def _relation(self, files: Sequence[Path]) -> str:
        shown = files or [self.root / self.name / FILE_NAME]
        return f"read_parquet({literals(shown)}, hive_partitioning = false)"

    def _query(self, select: Callable[[], str]) -> pa.Table:
        def read() -> pa.Table:
            with session() as connection:
                return connection.sql(select()).to_arrow_table()

        return self.settled(read)


def open_generation(place: Place, manifest: Manifest, name: str) -> Generation:
    """The generation of this name. Raises StoreError when its identity cannot be read."""
    place.present([place.root / name / FILE_NAME])
    return Generation(place, manifest, read_identity(place.root / name))

"""The manifest: which files make up each generation, the sequence counter, and what was delivered where.

One SQLite database that several processes may use at once. Segment files are the truth and the manifest an index of
them: all of it but the deliveries can be rebuilt from their footers.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fletcher_core.errors import StoreError
from fletcher_core.store.database import Database
from fletcher_core.store.operations import OPERATIONS, Operation, SequencesUsedUp, lock_of
from fletcher_core.store.operations import SEQUENCE_LIMIT as SEQUENCE_LIMIT
from fletcher_core.store.segments import Footer, Segment
from fletcher_core.store.versions import MANIFEST_VERSION

State = Literal["pending", "sending", "sent", "applied", "searchable"]
STATES: tuple[State, ...] = ("pending", "sending", "sent", "applied", "searchable")
DELIVERED: tuple[State, ...] = ("applied", "searchable")  # read back from the target

MANIFEST_FILE = "manifest.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS counter (next_sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS generations (
    name TEXT PRIMARY KEY, collection TEXT NOT NULL, created_at REAL NOT NULL, last_sequence INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS segments (
    label TEXT PRIMARY KEY, generation TEXT NOT NULL, partition_key TEXT NOT NULL, file TEXT NOT NULL,
    upserts INTEGER NOT NULL, deletes INTEGER NOT NULL, first_sequence INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL, bytes INTEGER NOT NULL, run_id TEXT NOT NULL, committed_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS segments_by_generation ON segments (generation, partition_key, first_sequence);
CREATE INDEX IF NOT EXISTS segments_by_file ON segments (file);
CREATE TABLE IF NOT EXISTS garbage (file TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS targets (generation TEXT, target TEXT, PRIMARY KEY (generation, target));
CREATE TABLE IF NOT EXISTS deliveries (
    target TEXT NOT NULL, label TEXT NOT NULL, state TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sending_at REAL, sent_at REAL, applied_at REAL, searchable_at REAL, PRIMARY KEY (target, label)
);
"""
_SEGMENT_COLUMNS = (
    "label, generation, partition_key, file, upserts, deletes, first_sequence, last_sequence, "
    "bytes, run_id, committed_at"
)
_DELIVERY_COLUMNS = "target, label, state, rows, bytes, sending_at, sent_at, applied_at, searchable_at"


@dataclass(frozen=True)
class Delivery:
    """How far a segment has come on its way to a target. `rows` and `bytes` are what was sent; times are seconds
    since 1970 of the last time it entered that state."""

    target: str
    label: str
    state: State = "pending"
    rows: int = 0
    bytes: int = 0
    sending_at: float | None = None
    sent_at: float | None = None
    applied_at: float | None = None
    searchable_at: float | None = None


class Journal(Protocol):
    """What keeps the manifest's changes: the database alone, or a log that other machines share."""

    @property
    def database(self) -> Database:
        """Where the manifest is read."""

    def perform(self, operation: Operation) -> Any:
        """Makes a change, for good when this returns; gives what its function gives."""


class Direct:
    """Changes go into the database and nowhere else."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def perform(self, operation: Operation) -> Any:
        """One transaction; undone when it raises."""
        with self.database.writing() as connection:
            return OPERATIONS[operation.name](connection, **operation.arguments)


class Manifest:
    """The SQLite database at `<root>/manifest.sqlite`. Safe to share between threads.

    `unwritable` says why the disk cannot be written, where that is so: the manifest is then only read. A `journal`
    has the database already.

    Raises:
        StoreError: as `Database`.
    """

    def __init__(self, root: Path, unwritable: StoreError | None = None, *, journal: Journal | None = None) -> None:
        self._root = root
        if journal is None:
            journal = Direct(Database(root / MANIFEST_FILE, SCHEMA, version=MANIFEST_VERSION, unwritable=unwritable))
        self._journal = journal
        self._database = journal.database

    def close(self) -> None:
        """Closes the database; the object cannot be used any more."""
        self._database.close()

    # Sequences

    def allocate(self, count: int) -> int:
        """The first of `count` sequences that nobody has had before.

        Raises:
            StoreError: all 2^32 are used up.
        """
        try:
            first: int = self._perform("allocate", count=count)
        except SequencesUsedUp:
            raise StoreError(
                f"the store at {str(self._root)!r} has used up its 2^32 sequences (Longbow's ids end there): start a "
                "new store in another folder, and deliver it to an empty Longbow"
            ) from None
        return first

    def next_sequence(self) -> int | None:
        """The counter; None in a manifest that was just created and must be filled from the files."""
        rows = self._database.read("SELECT next_sequence FROM counter")
        return int(rows[0][0]) if rows else None

    # Generations and segments

    def add_generation(self, name: str, collection: str, created_at: float) -> None:
        """Makes a generation known; nothing happens when it already is. Whoever makes one holds the store's lock."""
        arguments = {"name": name, "collection": collection, "created_at": created_at}
        self._journal.perform(Operation("add_generation", arguments, ("store",), if_held=True))

    def collections(self) -> list[str]:
        """Names of the collections that have generations."""
        return [name for (name,) in self._database.read("SELECT DISTINCT collection FROM generations ORDER BY 1")]

    def generations(self, collection: str) -> list[str]:
        """Names of a collection's generations, the one written most recently first."""
        rows = self._database.read(
            # Of those without rows the one made last: by its place in the table, as clocks may go back.
            "SELECT name FROM generations WHERE collection = ? ORDER BY last_sequence DESC, rowid DESC",
            (collection,),
        )
        return [name for (name,) in rows]

    def segments(self, generation: str, partition_key: str | None = None) -> list[Segment]:
        """Segments in sequence order, of one partition or of all."""
        where, values = _scope(generation, partition_key)
        rows = self._database.read(
            f"SELECT {_SEGMENT_COLUMNS} FROM segments WHERE {where} ORDER BY first_sequence", values
        )
        return [self._segment(row) for row in rows]

    def segment(self, generation: str, label: str) -> Segment | None:
        """The segment of this label; None when it is gone or was never there."""
        query = f"SELECT {_SEGMENT_COLUMNS} FROM segments WHERE generation = ? AND label = ?"
        rows = self._database.read(query, (generation, label))
        return self._segment(rows[0]) if rows else None

    def files(self, generation: str, partition_key: str | None = None) -> list[Path]:
        """Files that hold the segments, in the order of their first sequences."""
        where, values = _scope(generation, partition_key)
        rows = self._database.read(
            f"SELECT file FROM segments WHERE {where} GROUP BY file ORDER BY min(first_sequence)", values
        )
        return [self._root / file for (file,) in rows]

    def files_in(self, folder: Path) -> list[Path]:
        """Files of segments in a partition's folder, at a cost that does not grow with the number of partitions."""
        within = f"{self._name(folder)}/"
        rows = self._database.read(
            "SELECT DISTINCT file FROM segments WHERE file > ? AND file < ? ORDER BY 1",
            (within, f"{within[:-1]}{chr(ord('/') + 1)}"),
        )
        return [self._root / file for (file,) in rows]

    def partitions(self, generation: str) -> list[str]:
        """Partition keys that have segments."""
        rows = self._database.read(
            "SELECT DISTINCT partition_key FROM segments WHERE generation = ? ORDER BY 1", (generation,)
        )
        return [key for (key,) in rows]

    def add_file(self, file: Path, footer: Footer, size: int | None = None) -> None:
        """Records a committed file in place of the files it took over, which become garbage. Safe to repeat.

        `size` in bytes; None for that of the file on this machine.
        """
        self.add_files([(file, footer)], sizes=None if size is None else [size])

    def add_files(
        self,
        files: Iterable[tuple[Path, Footer]],
        *,
        next_sequence: int | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """`add_file` for several at once, in one transaction; sets the counter when it is given."""
        files = list(files)
        if sizes is None:
            sizes = [file.stat().st_size for file, _ in files]
        added = [
            {"file": self._name(file), "bytes": size, "footer": asdict(footer)}
            for (file, footer), size in zip(files, sizes, strict=True)
        ]
        self._perform("add_files", self._locks(file for file, _ in files), files=added, next_sequence=next_sequence)

    def drop_files(self, files: Sequence[Path], *, garbage: bool = True) -> None:
        """Forgets files with their segments and deliveries; they are garbage to collect unless already gone."""
        self._perform("drop_files", self._locks(files), files=[self._name(file) for file in files], garbage=garbage)

    def garbage(self) -> list[Path]:
        """Files that count no more and are to be deleted."""
        return [self._root / file for (file,) in self._database.read("SELECT file FROM garbage")]

    def collected(self, files: Sequence[Path]) -> None:
        """Records that garbage was deleted."""
        self._perform("collected", files=[self._name(file) for file in files])

    # Deliveries

    def delivery(self, target: str, label: str) -> Delivery:
        """How far a segment has come; `pending` when nothing is recorded."""
        query = f"SELECT {_DELIVERY_COLUMNS} FROM deliveries WHERE target = ? AND label = ?"
        rows = self._database.read(query, (target, label))
        return Delivery(*rows[0]) if rows else Delivery(target, label)

    def deliveries(self, target: str, generation: str) -> list[Delivery]:
        """All recorded deliveries of a generation to a target, in sequence order."""
        columns = ", ".join(f"d.{name}" for name in _DELIVERY_COLUMNS.split(", "))
        rows = self._database.read(
            f"SELECT {columns} FROM deliveries d JOIN segments s USING (label) "
            "WHERE target = ? AND generation = ? ORDER BY first_sequence",
            (target, generation),
        )
        return [Delivery(*row) for row in rows]

    def labels_in(self, target: str, generation: str, state: State) -> list[str]:
        """Labels of a generation's segments whose recorded delivery is in `state`, in sequence order."""
        rows = self._database.read(
            "SELECT label FROM deliveries d JOIN segments s USING (label) "
            "WHERE target = ? AND generation = ? AND state = ? ORDER BY first_sequence",
            (target, generation, state),
        )
        return [label for (label,) in rows]

    def rows_delivered(self, target: str, generation: str) -> int:
        """Rows of a generation that the target was seen to hold, as many as were sent."""
        rows = self._database.read(
            "SELECT coalesce(sum(d.rows), 0) FROM deliveries d JOIN segments s USING (label) "
            f"WHERE target = ? AND generation = ? AND state IN {DELIVERED}",
            (target, generation),
        )
        return int(rows[0][0])

    def delivery_counts(self, target: str, generation: str) -> dict[State, tuple[int, int]]:
        """Numbers of a generation's segments and of their upserts by how far they have come; states with none are not
        there."""
        rows = self._database.read(
            "SELECT coalesce(d.state, 'pending') AS state, count(*), sum(s.upserts) FROM segments s "
            "LEFT JOIN deliveries d ON d.label = s.label AND d.target = ? WHERE s.generation = ? GROUP BY 1",
            (target, generation),
        )
        return {state: (segments, upserts) for state, segments, upserts in rows}

    def targets(self, generation: str | None = None) -> list[str]:
        """Servers (`host:port`) that anything of a generation, or of any, was ever sent to."""
        select = "SELECT DISTINCT target FROM targets WHERE generation = coalesce(?, generation) ORDER BY 1"
        rows = self._database.read(select, (generation,))
        return [target for (target,) in rows]

    def record_delivery(
        self, target: str, label: str, state: State, *, rows: int | None = None, bytes: int | None = None
    ) -> None:
        """Puts a segment's delivery into `state`, now; `rows` and `bytes` stay as they were when not given.

        A label that compaction has dropped meanwhile is passed over: it has no rows left.
        """
        if state not in STATES:
            raise StoreError(f"a delivery's state cannot be {state!r}: it is one of {', '.join(STATES)}")
        values = {"target": target, "label": label, "state": state, "rows": rows, "bytes": bytes, "now": time.time()}
        self._deliver(target, "record_delivery", **values)

    def undelivered(self, target: str, generation: str) -> list[Segment]:
        """Segments that the target was not seen to hold (state below `applied`), in sequence order."""
        columns = ", ".join(f"s.{name}" for name in _SEGMENT_COLUMNS.split(", "))
        rows = self._database.read(
            f"SELECT {columns} FROM segments s LEFT JOIN deliveries d ON d.label = s.label AND d.target = ? "
            f"WHERE s.generation = ? AND coalesce(d.state, 'pending') NOT IN {DELIVERED} ORDER BY s.first_sequence",
            (target, generation),
        )
        return [self._segment(row) for row in rows]

    def reset_deliveries(self, target: str, generation: str) -> None:
        """Forgets what a target received of a generation, as when it came back empty. The target stays known."""
        self._deliver(target, "reset_deliveries", target=target, generation=generation)

    def deletes_delivered(self, generation: str, partition_key: str) -> bool:
        """Whether every target that ever got a segment of the generation holds all deletes of the partition."""
        rows = self._database.read(
            "SELECT 1 FROM segments s JOIN targets t USING (generation) "
            "LEFT JOIN deliveries d ON d.label = s.label AND d.target = t.target "
            "WHERE s.generation = ? AND s.partition_key = ? AND s.deletes > 0 "
            f"AND coalesce(d.state, 'pending') NOT IN {DELIVERED} LIMIT 1",
            (generation, partition_key),
        )
        return not rows

    def _perform(self, operation: str, locks: tuple[str, ...] = (), /, **arguments: Any) -> Any:
        return self._journal.perform(Operation(operation, arguments, locks))

    def _deliver(self, to: str, operation: str, /, **arguments: Any) -> None:
        """A change of deliveries: refused where another sender has taken over from this one."""
        self._journal.perform(Operation(operation, arguments, (delivery_lock(to),), if_held=True))

    def _locks(self, files: Iterable[Path]) -> tuple[str, ...]:
        return tuple(sorted({lock_of(self._name(file)) for file in files}))

    def _segment(self, row: Sequence[object]) -> Segment:
        values = list(row)
        values[3] = self._root / str(values[3])
        return Segment(*values)  # type: ignore[arg-type]

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()


def delivery_lock(target: str) -> str:
    """The name of the lock under which rows are sent to a server."""
    return f"longbow-{target.replace(':', '_')}"


def _scope(generation: str, partition_key: str | None) -> tuple[str, tuple[str, ...]]:
    if partition_key is None:
        return "generation = ?", (generation,)
    return "generation = ? AND partition_key = ?", (generation, partition_key)

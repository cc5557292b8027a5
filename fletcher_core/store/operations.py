"""What may be done to a manifest: each change as a name and plain values, which do the same wherever they are applied.

Times and random names are among the values, so that a change can be kept in a log and done again on another machine.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fletcher_core.store.segments import Footer

SEQUENCE_LIMIT = 1 << 32  # Longbow keeps ids modulo 2^32


@dataclass(frozen=True)
class Operation:
    """A change, with the `arguments` of the function of this name; all are what JSON has.

    `locks` are the names of the locks that whoever makes it must hold; with `if_held`, that are checked if it does.
    """

    name: str
    arguments: dict[str, Any]
    locks: tuple[str, ...] = ()
    if_held: bool = False


class SequencesUsedUp(Exception):
    """All `SEQUENCE_LIMIT` were given out."""


def allocate(connection: sqlite3.Connection, count: int) -> int:
    """The first of `count` sequences that nobody has had before. Raises SequencesUsedUp."""
    (first,) = connection.execute("SELECT next_sequence FROM counter").fetchone()
    if first + count > SEQUENCE_LIMIT:
        raise SequencesUsedUp
    connection.execute("UPDATE counter SET next_sequence = ?", (first + count,))
    return int(first)


def add_generation(connection: sqlite3.Connection, name: str, collection: str, created_at: float) -> None:
    """Makes a generation known; nothing happens when it already is."""
    connection.execute("INSERT OR IGNORE INTO generations VALUES (?, ?, ?, 0)", (name, collection, created_at))


def add_files(connection: sqlite3.Connection, files: Sequence[dict[str, Any]], next_sequence: int | None) -> None:
    """Records committed files (file, bytes, footer) in place of those that they took over, which become garbage."""
    for each in files:
        _add_file(connection, each["file"], each["bytes"], Footer.of(each["footer"]))
    if next_sequence is not None:
        connection.execute("DELETE FROM counter")
        connection.execute("INSERT INTO counter VALUES (?)", (next_sequence,))


def drop_files(connection: sqlite3.Connection, files: Sequence[str], garbage: bool) -> None:
    """Forgets files with their segments and deliveries."""
    for file in files:
        _drop_file(connection, file, garbage)
    _drop_orphaned_deliveries(connection)


def collected(connection: sqlite3.Connection, files: Sequence[str]) -> None:
    """Records that garbage was deleted."""
    connection.executemany("DELETE FROM garbage WHERE file = ?", [(file,) for file in files])


def record_delivery(
    connection: sqlite3.Connection, target: str, label: str, state: str, rows: int | None, bytes: int | None, now: float
) -> None:
    """Puts a segment's delivery into `state`; passes over a label that has no rows left."""
    values = {"target": target, "label": label, "state": state, "rows": rows, "bytes": bytes, "now": now}
    connection.execute(
        "INSERT OR IGNORE INTO targets SELECT generation, :target FROM segments WHERE label = :label", values
    )
    connection.execute(
        "INSERT OR IGNORE INTO deliveries (target, label, state, rows, bytes) "
        "SELECT :target, label, 'pending', 0, 0 FROM segments WHERE label = :label",
        values,
    )
    stamp = "" if state == "pending" else f", {state}_at = :now"
    connection.execute(
        "UPDATE deliveries SET state = :state, rows = coalesce(:rows, rows), bytes = coalesce(:bytes, bytes)"
        f"{stamp} WHERE target = :target AND label = :label",
        values,
    )


def reset_deliveries(connection: sqlite3.Connection, target: str, generation: str) -> None:
    """Forgets what a target received of a generation."""
    connection.execute(
        "UPDATE deliveries SET state = 'pending', rows = 0, bytes = 0 WHERE target = ? "
        "AND label IN (SELECT label FROM segments WHERE generation = ?)",
        (target, generation),
    )


OPERATIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        allocate, add_generation, add_files, drop_files, collected, record_delivery, reset_deliveries
    )
}  # fmt: skip


def lock_of(file: str) -> str:
    """The name of the lock under which a segment file's partition is written; `file` is its path below the root."""
    generation, _, folder, _ = PurePosixPath(file).parts
    return f"{generation}--{folder}"


def _add_file(connection: sqlite3.Connection, file: str, size: int, footer: Footer) -> None:
    for name in footer.inputs:
        _drop_file(connection, str(PurePosixPath(file).with_name(name)), garbage=True)
    rows = sum(entry.upserts + entry.deletes for entry in footer.segments)
    for entry in footer.segments:
        share = size * (entry.upserts + entry.deletes) // rows
        connection.execute(
            "INSERT OR IGNORE INTO segments (label, generation, partition_key, file, upserts, deletes, "
            "first_sequence, last_sequence, bytes, run_id, committed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (entry.label, footer.generation, footer.partition_key, file, entry.upserts,
             entry.deletes, entry.first_sequence, entry.last_sequence, share, entry.run_id, entry.committed_at),
        )  # fmt: skip
    if footer.segments:
        connection.execute(
            "UPDATE generations SET last_sequence = max(last_sequence, ?) WHERE name = ?",
            (max(entry.last_sequence for entry in footer.segments), footer.generation),
        )
    if footer.inputs:
        _drop_orphaned_deliveries(connection)


def _drop_file(connection: sqlite3.Connection, file: str, garbage: bool) -> None:
    connection.execute("DELETE FROM segments WHERE file = ?", (file,))
    if garbage:
        connection.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (file,))


def _drop_orphaned_deliveries(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM deliveries WHERE label NOT IN (SELECT label FROM segments)")

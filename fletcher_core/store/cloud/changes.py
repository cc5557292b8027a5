"""What may be done to the manifest of a store on object storage beside `store.operations`: leases and side files."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store.operations import OPERATIONS

# `log` has one row: the store's id, the number and id of the last entry that is applied, and the id of this copy.
SCHEMA = """
CREATE TABLE IF NOT EXISTS log (store TEXT NOT NULL, number INTEGER NOT NULL, entry TEXT NOT NULL, copy TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    name TEXT PRIMARY KEY, token TEXT NOT NULL, session TEXT NOT NULL, copy TEXT NOT NULL, run_id TEXT NOT NULL,
    host TEXT NOT NULL, process INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS side_files (file TEXT PRIMARY KEY);
"""
# What the log's entries make, and a checkpoint holds; `log` is each copy's own.
TABLES = ("counter", "generations", "segments", "garbage", "targets", "deliveries", "leases", "side_files")


@dataclass(frozen=True)
class Lease:
    """Who holds a lock: `token` is new with each taking, `session` is the opened store that renews it, `copy` the
    working copy whose own lock it holds, too. Without a session it was left behind by who could not end in order."""

    name: str
    token: str
    session: str
    copy: str
    run_id: str
    host: str
    process: int

    @property
    def holder(self) -> str:
        """In words."""
        return f"run {self.run_id!r} (process {self.process} on {self.host})"


class LeaseHeld(Exception):
    """Somebody else has it."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.holder)
        self.lease = lease


def lease_of(connection: sqlite3.Connection, name: str) -> Lease | None:
    """The lease of this name; None when it is free."""
    row = connection.execute("SELECT * FROM leases WHERE name = ?", (name,)).fetchone()
    return None if row is None else Lease(*row)


def acquire(connection: sqlite3.Connection, lease: Mapping[str, Any], instead_of: str | None) -> bool:
    """Takes a lease that is free, left behind, or `instead_of` the token that it had; whether it was not free.

    Raises LeaseHeld.
    """
    wanted = Lease(**lease)
    found = lease_of(connection, wanted.name)
    if found is not None and found.session and found.token != instead_of:
        raise LeaseHeld(found)
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(asdict(wanted).values()))
    return found is not None


def release(connection: sqlite3.Connection, name: str, token: str, in_order: bool) -> None:
    """Ends a lease; not `in_order`, its next holder looks for what was left behind."""
    if in_order:
        connection.execute("DELETE FROM leases WHERE name = ? AND token = ?", (name, token))
    else:
        connection.execute("UPDATE leases SET session = '' WHERE name = ? AND token = ?", (name, token))


def add_side_files(connection: sqlite3.Connection, files: Sequence[str]) -> None:
    """Files that are no segments count from now on."""
    connection.executemany("INSERT OR IGNORE INTO side_files VALUES (?)", [(file,) for file in files])


def drop_side_files(connection: sqlite3.Connection, files: Sequence[str]) -> None:
    """Files that are no segments count no more."""
    connection.executemany("DELETE FROM side_files WHERE file = ?", [(file,) for file in files])


CHANGES: dict[str, Callable[..., Any]] = OPERATIONS | {
    each.__name__: each for each in (acquire, release, add_side_files, drop_side_files)
}


def check_leases(connection: sqlite3.Connection, leases: Mapping[str, str]) -> None:
    """Raises StoreLockedError when one of the leases (tokens by name) is somebody else's by now."""
    for name, token in leases.items():
        found = lease_of(connection, name)
        if found is None or found.token != token:
            who = "another run, which has ended," if found is None else found.holder
            raise StoreLockedError(
                f"{who} took {name} over: this run was not heard of for so long that it counted as dead. Nothing is "
                "written any more by this one; what it had committed before stays. See that it reaches the object "
                "storage, or set FLETCHER_LEASE_SECONDS higher on all machines"
            )


def dumped(connection: sqlite3.Connection) -> dict[str, list[list[Any]]]:
    """All that the log has made."""
    return {
        table: [list(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")] for table in TABLES
    }


def load(connection: sqlite3.Connection, tables: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    """Puts what `dumped` gave in the place of all that is there."""
    if set(tables) != set(TABLES):
        raise StoreError(f"a checkpoint has the tables {sorted(tables)}, and not {sorted(TABLES)}")
    for table, rows in tables.items():
        connection.execute(f"DELETE FROM {table}")
        if rows:
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

"""The log of a manifest's changes: numbered objects, each put only if there is none of its number.

That conditional put is the commit. The manifest in the working copy is what the log makes of an empty one: a change is
applied to it in a transaction, its entry put as the next, and the transaction ended; was somebody faster with that
number, it is undone, theirs is applied, and ours tried again. So the working copy may be behind the log, after a crash
by that one entry, and is never ahead of it. Entries are kept for ever: who is behind, however far, finds what is next.

Names begin with the store's id: what a run still writes to a store that was deleted does no harm to one that was begun
in its place.
"""

import gzip
import json
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from fletcher_core.errors import StoreError
from fletcher_core.store.cloud.bucket import Bucket
from fletcher_core.store.cloud.changes import CHANGES, check_leases, dumped, load
from fletcher_core.store.database import Database
from fletcher_core.store.operations import Operation
from fletcher_core.store.versions import MANIFEST_VERSION, NewerVersionError, version_of

IDENTITY = "fletcher.json"
CHECKPOINT_EVERY = 100  # entries
_CHECKPOINTS_KEPT = 2  # somebody may be about to read the last but one
_AT_ONCE = 8  # requests
_BATCH = 200  # entries in a transaction
_ID_LENGTH = 8  # characters of the store's id
_log = logging.getLogger(__name__)


class _Behind(Exception):
    """Somebody else's entry has the number that ours was to have."""


class ManifestLog:
    """The log in `bucket`, and the manifest in `database` (with `changes.SCHEMA`) that follows it.

    Safe to use from several threads, and by several processes that share the database. `held` are the tokens of the
    leases that this object's owner has taken, by name; `store` is the store's id.
    """

    def __init__(self, bucket: Bucket, database: Database, store: str) -> None:
        self.database = database
        self._store, self._is_gone = store, False
        self._entries, self._checkpoints = f"log/{store[:_ID_LENGTH]}", f"checkpoints/{store[:_ID_LENGTH]}"
        self.held: dict[str, str] = {}
        self._bucket = bucket
        self._synced_at = -float("inf")
        self._looking = threading.Lock()

    def perform(self, operation: Operation) -> Any:
        """Makes a change for everyone; gives what its function gives.

        Raises:
            StoreLockedError: a lease that the change needs was taken over by another run.
            StoreError: the object storage does not answer; whether the change counts shows when it does. Or the store
                was deleted.
            Whatever the change's own function raises, on the newest state there is.
        """
        if self._is_gone:
            raise StoreError(
                f"the store at {self._bucket.address} was deleted while this process used it, with what was committed "
                "since: run again, into a new one"
            )
        while True:
            try:
                return self._append(operation)
            except _Behind:
                self.sync()
            except _Refused as refused:
                self.sync()
                if self._position()[0] == refused.number:  # not by a state that was out of date
                    raise refused.reason from None

    def sync(self) -> int:
        """Applies what others have added; how many entries. One request when there is nothing."""
        applied = 0
        number, _ = self._position()
        if number == 0:
            applied += self._load_checkpoint()
            number, _ = self._position()
        first = self._bucket.get(self._name(number + 1))
        if first is not None:
            names = self._bucket.names(self._entries, after=self._name(number + 1))
            if len(names) > 2 * CHECKPOINT_EVERY:
                applied += self._load_checkpoint()
            applied += self._apply([(number + 1, first)])
            # By their numbers: a list that is made while entries are put may lack one and have the next.
            numbers = range(self._position()[0] + 1, max(map(_number, names), default=0) + 1)
            names = [self._name(number) for number in numbers]
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                for start in range(0, len(names), _BATCH):
                    batch = names[start : start + _BATCH]
                    found = threads.map(self._bucket.get, batch)
                    applied += self._apply(
                        [(_number(name), data or b"") for name, data in zip(batch, found, strict=True)]
                    )
        self._synced_at = time.monotonic()
        return applied

    def look_for_store(self) -> None:
        """Sees whether the store is still there: if not, or if another was begun in its place, nothing more is put."""
        try:
            self._is_gone = store_id(self._bucket) != self._store
        except StoreError as error:
            _log.warning("whether the store is still there is not known: %s", error)

    def check(self, names: Sequence[str]) -> None:
        """Raises StoreLockedError when one of these leases, which are held, is somebody else's by now."""
        self.sync()
        with self.database.writing() as connection:
            check_leases(connection, {name: self.held[name] for name in names})

    def refresh(self, max_age: float) -> None:
        """`sync`, unless that was less than `max_age` seconds ago; that the storage does not answer is only logged."""
        if time.monotonic() - self._synced_at < max_age or not self._looking.acquire(blocking=max_age <= 0):
            return
        try:
            self.sync()
        except NewerVersionError:
            raise
        except StoreError as error:
            self._synced_at = time.monotonic()
            _log.warning("what others committed meanwhile is not known: %s", error)
        finally:
            self._looking.release()

    def _append(self, operation: Operation) -> Any:
        """One attempt, on the state that is here. Raises _Behind and _Refused."""
        leases = self._leases(operation)
        with self.database.writing() as connection:
            ((number, last),) = connection.execute("SELECT number, entry FROM log").fetchall()
            try:
                check_leases(connection, leases)
                result = CHANGES[operation.name](connection, **operation.arguments)
            except sqlite3.OperationalError:  # of this machine's disk
                raise
            except Exception as error:
                raise _Refused(error, number) from error
            entry = uuid4().hex
            content = {
                "version": MANIFEST_VERSION,
                "id": entry,
                "after": last,
                "operation": operation.name,
                "arguments": operation.arguments,
                "leases": leases,
            }
            if not self._bucket.create(self._name(number + 1), json.dumps(content).encode()):
                raise _Behind
            connection.execute("UPDATE log SET number = ?, entry = ?", (number + 1, entry))
            due = (number + 1) % CHECKPOINT_EVERY == 0
            tables = dumped(connection) if due else {}
        self._synced_at = time.monotonic()
        if due:
            self._checkpoint(number + 1, entry, tables)
        return result

    def _leases(self, operation: Operation) -> dict[str, str]:
        tokens = {name: token for name in operation.locks if (token := self.held.get(name)) is not None}
        if not operation.if_held and len(tokens) < len(operation.locks):
            missing = ", ".join(sorted(set(operation.locks) - set(tokens)))
            raise StoreError(f"a store on object storage is only written under a lock, and {missing} is not held")
        return tokens

    def _apply(self, entries: Iterable[tuple[int, bytes]]) -> int:
        """Applies entries that are next; passes over those that another process has applied meanwhile."""
        applied = 0
        with self.database.writing() as connection:
            ((number, last),) = connection.execute("SELECT number, entry FROM log").fetchall()
            for place, data in entries:
                if place <= number:
                    continue
                content = _content(self._bucket.address, self._name(place), data)
                if place != number + 1 or content.get("after") != last:
                    raise StoreError(
                        f"{self._name(place)!r} in {self._bucket.address} does not follow what this machine knows of "
                        "the store: objects were lost, or put there by something else. Delete the working copy (see "
                        "FLETCHER_CLOUD_CACHE) while no run uses it, and open the store again"
                    )
                try:
                    check_leases(connection, content["leases"])
                    CHANGES[content["operation"]](connection, **content["arguments"])
                    number, last = place, str(content["id"])
                except sqlite3.OperationalError:  # of this machine's disk
                    raise
                except Exception as error:
                    raise StoreError(
                        f"{self._name(place)!r} in {self._bucket.address} cannot be applied: {error!r}. It is damaged; "
                        "restore it from a backup of the bucket"
                    ) from error
                applied += 1
            connection.execute("UPDATE log SET number = ?, entry = ?", (number, last))
        return applied

    def _name(self, number: int) -> str:
        return f"{self._entries}/{number:010d}.json"

    def _position(self) -> tuple[int, str]:
        ((number, entry),) = self.database.read("SELECT number, entry FROM log")
        return number, entry

    # Checkpoints

    def _checkpoint(self, number: int, entry: str, tables: dict[str, Any]) -> None:
        """So that a fresh copy need not read the whole log. That it fails is no harm: there will be another."""
        content = {"version": MANIFEST_VERSION, "id": entry, "tables": tables}
        try:
            self._bucket.create(
                f"{self._checkpoints}/{number:010d}.json.gz", gzip.compress(json.dumps(content).encode(), mtime=0)
            )
            self._bucket.delete(self._bucket.names(self._checkpoints)[:-_CHECKPOINTS_KEPT])
        except StoreError as error:
            _log.warning("no checkpoint was made: %s", error)

    def _load_checkpoint(self) -> int:
        """The newest checkpoint in place of what is here, if that is older; whether there was one."""
        while names := self._bucket.names(self._checkpoints):
            data = self._bucket.get(names[-1])
            if data is None:  # two newer ones were made since we looked
                continue
            try:
                content = _content(self._bucket.address, names[-1], gzip.decompress(data))
                tables, entry = content["tables"], content["id"]
            except NewerVersionError:
                raise
            except (EOFError, KeyError, OSError, StoreError, zlib.error) as error:
                raise StoreError(
                    f"{names[-1]!r} in {self._bucket.address} is damaged ({error!r}): delete this object; the log has "
                    "all that it says"
                ) from error
            with self.database.writing() as connection:
                ((number,),) = connection.execute("SELECT number FROM log").fetchall()
                if number >= _number(names[-1]):
                    return 0
                load(connection, tables)
                values = (_number(names[-1]), entry)
                connection.execute("UPDATE log SET number = ?, entry = ?", values)
            return 1
        return 0


class _Refused(Exception):
    """The change's own function, or a lease, was against it, in the state that entry `number` made."""

    def __init__(self, reason: Exception, number: int) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.number = number


def begin_store(bucket: Bucket) -> str:
    """The id of the store in the bucket, which is begun where there is none. Raises as `store_id`."""
    while (identity := store_id(bucket)) is None:
        _check_conditions(bucket)
        bucket.create(IDENTITY, json.dumps({"version": MANIFEST_VERSION, "id": uuid4().hex}).encode())
    return identity


def store_id(bucket: Bucket) -> str | None:
    """The id of the store in the bucket, by which one that was deleted and begun anew is known; None without a store.

    Raises:
        NewerVersionError: a newer Fletcher made it.
        StoreError: the object storage does not answer.
    """
    data = bucket.get(IDENTITY)
    if data is None:
        return None
    identity = _content(bucket.address, IDENTITY, data).get("id")
    if not isinstance(identity, str):
        raise StoreError(f"{IDENTITY!r} in {bucket.address} is damaged: restore it from a backup of the bucket")
    return identity


def _check_conditions(bucket: Bucket) -> None:
    """Raises StoreError where a second put under one name is not refused: two machines would undo each other."""
    name = f"probes/{uuid4().hex}"
    try:
        if not bucket.create(name, b"first") or bucket.create(name, b"second"):
            raise StoreError(
                f"the object storage at {bucket.address} does not heed the condition of a put (If-None-Match: *): no "
                "store can be shared there. Use one that does: Amazon S3, Google Cloud Storage, Azure, MinIO, ..."
            )
    finally:
        bucket.delete([name])


def _content(address: str, name: str, data: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(data)
        version = version_of(content)
    except (AttributeError, ValueError) as error:
        raise StoreError(
            f"{name!r} in {address} is damaged ({error}): restore it from a backup of the bucket"
        ) from error
    if version > MANIFEST_VERSION:
        raise NewerVersionError(
            f"{name!r} in {address} was written by a newer Fletcher: it is of version {version}, and this Fletcher "
            f"reads up to version {MANIFEST_VERSION}. Upgrade Fletcher; nothing in the store was changed"
        )
    return content


def _number(name: str) -> int:
    return int(PurePosixPath(name).name.split(".")[0])

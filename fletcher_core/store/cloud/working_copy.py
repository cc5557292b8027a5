"""A store on object storage as one machine has it: a folder that holds what was needed so far, and follows the log.

All that counts is in the bucket. The folder may be deleted while no run uses it, and may be shared by the processes of
a machine.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from fletcher_core.errors import StoreError
from fletcher_core.store.cloud.bucket import Bucket
from fletcher_core.store.cloud.changes import SCHEMA as CLOUD_SCHEMA
from fletcher_core.store.cloud.changes import Lease
from fletcher_core.store.cloud.leases import LeasedLock, Session
from fletcher_core.store.cloud.log import ManifestLog, begin_store, store_id
from fletcher_core.store.cloud.objects import ObstoreObjects
from fletcher_core.store.cloud.settings import CloudSettings
from fletcher_core.store.database import Database
from fletcher_core.store.durable import TEMPORARY_SUFFIX, make_directory, write_failed
from fletcher_core.store.locks import FileLock, lock_holder, store_lock
from fletcher_core.store.manifest import MANIFEST_FILE, SCHEMA, Manifest
from fletcher_core.store.operations import Operation, lock_of
from fletcher_core.store.place import Lock
from fletcher_core.store.versions import MANIFEST_VERSION

_AT_ONCE = 8  # files
_log = logging.getLogger(__name__)
_FETCHING = 600.0  # seconds after which a temporary file that is not written to was left by a killed process
_FRESH = 5.0  # seconds for which reads do without asking what others have committed


class WorkingCopy:
    """The store in `bucket` with its copy in `root`; `open_working_copy` makes one. As `Place` says."""

    holds_all = False

    def __init__(self, root: Path, bucket: Bucket, log: ManifestLog, session: Session) -> None:
        self.root = root
        self._bucket = bucket
        self._log = log
        self._session = session

    @property
    def address(self) -> str:
        """As it was opened."""
        return self._bucket.address

    def lock(self, name: str, subject: str) -> Lock:
        """A lock among all machines."""
        local = FileLock(self.root / "locks" / name, subject)
        return LeasedLock(local, name.removesuffix(".lock"), subject, self._session)

    def holders(self, prefix: str) -> list[str]:
        """By the log; of this working copy's processes only those that live."""
        rows = self._log.database.read(
            "SELECT * FROM leases WHERE session <> '' AND substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix)
        )
        leases = [Lease(*row) for row in rows]
        return [lease.holder for lease in leases if lease.copy != self._session.copy or self._is_held_here(lease)]

    def refresh(self, *, now: bool = False) -> None:
        """Follows the log, unless it did a moment ago."""
        self._log.refresh(0.0 if now else _FRESH)

    def present(self, files: Sequence[Path]) -> None:
        """Fetches those that are not here, several at once."""
        missing = [file for file in dict.fromkeys(files) if not file.exists()]
        if len(missing) == 1:
            self._fetch(missing[0])
        elif missing:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._fetch, missing))

    def publish(self, file: Path) -> None:
        """Puts it into the bucket. An object that no entry of the log names counts for nothing."""
        self._bucket.put(self._name(file), file)

    def withdraw(self, file: Path) -> None:
        """Deletes the object; one that stays counts for nothing."""
        try:
            self._bucket.delete([self._name(file)])
        except StoreError as error:
            _log.warning("%s is left over: %s", file.name, error)

    def recover(self, manifest: Manifest, folder: Path) -> None:
        """Deletes what the log does not name: here, and in the bucket where the last holder of the lock was killed.

        Whoever could have named it held a lease before ours, and can name nothing any more. That ours counts is seen
        after the objects were listed: what was listed later may be that of whoever took it over.
        """
        self._clear(manifest, folder)
        self.collect_garbage(manifest, folder)
        lease = lock_of(self._name(folder / "any"))
        if lease in self._session.unsettled:
            present = self._bucket.names(self._name(folder))
            self._log.check((lease,))
            known = {self._name(file) for file in manifest.files_in(folder)}
            self._bucket.delete([name for name in present if name not in known])
            self._session.unsettled.discard(lease)

    def recover_unused(self, manifest: Manifest, generation: str) -> None:
        """Deletes files of the working copy that count no more; those in the bucket are for the next holder."""
        for folder in (self.root / generation / "segments").glob("*/"):
            local = FileLock(self.root / "locks" / f"{generation}--{folder.name}.lock", folder.name)
            if self._superfluous(manifest, folder) and local.try_acquire("recovery"):
                try:
                    self._clear(manifest, folder)
                finally:
                    local.release()

    def collect_garbage(self, manifest: Manifest, folder: Path) -> None:
        """At once: a reader on another machine that finds an object gone follows the log, and reads what took its
        place."""
        files = [file for file in manifest.garbage() if file.parent == folder]
        if not files:
            return
        self._bucket.delete([self._name(file) for file in files])
        _remove(files)
        manifest.collected(files)

    def side_files(self, folder: Path, pattern: str) -> list[Path]:
        """Those that the log names, fetched if need be."""
        rows = self._log.database.read("SELECT file FROM side_files ORDER BY file")
        named = [self.root / name for (name,) in rows]
        files = [file for file in named if file.is_relative_to(folder) and file.relative_to(folder).match(pattern)]
        while True:
            try:
                self.present(files)
                return files
            except FileNotFoundError as error:  # dropped by another machine since
                files = [file for file in files if str(file) != error.filename]

    def add_side_file(self, file: Path) -> None:
        """Puts it into the bucket and names it in the log."""
        self._bucket.put(self._name(file), file)
        self._log.perform(Operation("add_side_files", {"files": [self._name(file)]}))

    def drop_side_files(self, files: Sequence[Path]) -> None:
        """Takes them out of the log, then out of the bucket."""
        if files:
            names = [self._name(file) for file in files]
            self._log.perform(Operation("drop_side_files", {"files": names}))
            self._bucket.delete(names)
            _remove(files)

    def read_shared(self, file: Path) -> bytes | None:
        """From the bucket."""
        return self._bucket.get(self._name(file))

    def write_shared(self, file: Path) -> None:
        """Into the bucket."""
        self._bucket.put(self._name(file), file)

    def close(self) -> None:
        """Renews no lease any more."""
        self._session.close()

    def _fetch(self, file: Path) -> None:
        try:
            self._bucket.fetch(self._name(file), file)
        except FileNotFoundError as error:
            raise FileNotFoundError(None, str(error), str(file)) from error

    def _superfluous(self, manifest: Manifest, folder: Path) -> list[Path]:
        """Another process may be fetching a file at any time, lock or no lock: fresh temporary files are left alone."""
        known = set(manifest.files_in(folder))
        return [file for file in folder.glob("*") if file not in known and not _is_being_fetched(file)]

    def _clear(self, manifest: Manifest, folder: Path) -> None:
        _remove(self._superfluous(manifest, folder))

    def _is_held_here(self, lease: Lease) -> bool:
        locks = self.root / "locks"
        return any(lock_holder(locks / name) is not None for name in (lease.name, f"{lease.name}.lock"))

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def open_working_copy(address: str) -> tuple[WorkingCopy, Manifest]:
    """The store at `address`, begun if need be, as this machine has it; it knows what is committed now.

    Raises:
        ConfigError: obstore is not installed; a setting in the environment cannot work.
        StoreError: the object storage or the folder of the working copy cannot be used.
        NewerVersionError: a newer Fletcher made the store.
    """
    settings = CloudSettings.from_environment()
    bucket = Bucket(address, ObstoreObjects(address), settings.patience)
    return copy_of(bucket, settings.folder(address), settings)


def copy_of(bucket: Bucket, root: Path, settings: CloudSettings) -> tuple[WorkingCopy, Manifest]:
    """The store in `bucket` with its working copy in `root`; see `open_working_copy`."""
    store = begin_store(bucket)
    try:
        make_directory(root)
        with store_lock(root).held("open", patience=60):
            database = _database(root)
            if database.read("SELECT 1 FROM log WHERE store <> ?", (store,)):  # deleted, and another begun in its place
                database.close()
                _empty(root)
                database = _database(root)
            with database.writing() as connection:
                if not connection.execute("SELECT 1 FROM log").fetchall():
                    connection.execute("INSERT INTO log VALUES (?, 0, '', ?)", (store, uuid4().hex))
                    connection.execute("INSERT INTO counter VALUES (1)")
    except OSError as error:
        raise write_failed(root, error) from error
    ((copy,),) = database.read("SELECT copy FROM log")
    log = ManifestLog(bucket, database, store)
    log.sync()
    session = Session(bucket, log, copy, settings.lease_seconds)
    return WorkingCopy(root, bucket, log, session), Manifest(root, journal=log)


def is_store(address: str) -> bool:
    """Whether there is a store at `address`. Raises as `open_working_copy`."""
    settings = CloudSettings.from_environment()
    return store_id(Bucket(address, ObstoreObjects(address), settings.patience)) is not None


def find_stores(address: str) -> list[str]:
    """Addresses of stores: `address` itself, or those a level below."""
    if is_store(address):
        return [address]
    settings = CloudSettings.from_environment()
    folders = Bucket(address, ObstoreObjects(address), settings.patience).folders()
    return [place for folder in folders if is_store(place := f"{address}/{folder}")]


def _database(root: Path) -> Database:
    return Database(root / MANIFEST_FILE, SCHEMA + CLOUD_SCHEMA, version=MANIFEST_VERSION)


def _empty(root: Path) -> None:
    """All but the locks, one of which is ours."""
    for entry in root.iterdir():
        if entry.is_dir() and entry.name != "locks":
            shutil.rmtree(entry)
        elif not entry.is_dir():
            entry.unlink()


def _is_being_fetched(file: Path) -> bool:
    try:
        return file.suffix == TEMPORARY_SUFFIX and time.time() - file.stat().st_mtime < _FETCHING
    except FileNotFoundError:  # it was fetched
        return True


def _remove(files: Sequence[Path]) -> None:
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise write_failed(files[0], error) from error

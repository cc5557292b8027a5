"""Locks between runs, held by the operating system: a killed process lets go of its locks by dying.

A lock is an flock on a file of its own. The file says who holds it, for the message to whoever comes second, and is
removed on release.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store.durable import make_directory, write_failed

_log = logging.getLogger(__name__)


class FileLock:
    """An exclusive lock on `path`, for one holder among all processes and threads.

    `subject` names in messages what the lock guards.
    """

    def __init__(self, path: Path, subject: str) -> None:
        self._path = path
        self._subject = subject
        self._descriptor: int | None = None

    @contextmanager
    def held(self, run_id: str, *, patience: float = 0.0) -> Iterator[None]:
        """`acquire` and `release` around a `with` block."""
        self.acquire(run_id, patience=patience)
        try:
            yield
        finally:
            self.release()

    def acquire(self, run_id: str, *, patience: float = 0.0) -> None:
        """Takes the lock, waiting at most `patience` seconds.

        Raises:
            StoreLockedError: someone else holds it; names the run and the process.
            StoreError: as `try_acquire`.
        """
        deadline = time.monotonic() + patience
        while not self.try_acquire(run_id):
            if time.monotonic() >= deadline:
                raise StoreLockedError(
                    f"{self._subject} is in use by {self._holder()}: let that run end, or end it, then try again"
                )
            time.sleep(0.01)

    def try_acquire(self, run_id: str) -> bool:
        """Takes the lock if it is free; False when someone else holds it.

        Raises:
            StoreError: the lock's file cannot be written, or the file system has no locks.
        """
        while True:
            try:
                make_directory(self._path.parent)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise write_failed(self._path, error) from error
            if not self._lock(descriptor):
                os.close(descriptor)
                return False
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the last holder removed this file between our open and our lock
        self._descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"run_id": run_id, "pid": os.getpid()}).encode(), 0)
        except OSError as error:
            self.release()
            raise write_failed(self._path, error) from error
        return True

    def release(self) -> None:
        """Lets go of the lock; nothing happens when it is not held."""
        if self._descriptor is None:
            return
        try:
            self._path.unlink(missing_ok=True)  # while still locked: whoever waits on this file sees that it is gone
        except OSError:  # a disk that failed meanwhile: the file stays, and locks nothing once it is closed
            _log.warning("the lock file %s cannot be removed", self._path)
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"{str(self._path)!r} cannot be locked ({error}): its file system has no locks that hold between "
                "processes. Keep the vector store on a local disk, or mount the share with locks"
            ) from error
        return True

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_text())
            return f"run {holder['run_id']!r} (process {holder['pid']})"
        except (OSError, ValueError):  # just released, or just taken and not yet signed
            return "another run"


def lock_holder(path: Path) -> str | None:
    """The run and process that hold the lock on `path`, None when nobody does. Looks only: taking the lock to find out
    would turn away a run that asks in that moment."""
    try:
        holder = json.loads(path.read_text())
        os.kill(holder["pid"], 0)  # a killed process leaves its file, and lets go of the lock
    except PermissionError:  # it is alive, and somebody else's
        pass
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"run {holder['run_id']!r} (process {holder['pid']})"


def store_lock(root: Path) -> FileLock:
    """The lock for the few short changes that concern a whole store."""
    return FileLock(root / "locks" / "store.lock", f"the store at {str(root)!r}")

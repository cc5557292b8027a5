"""Where a store's files are: a folder of this machine, or a working copy of what is on object storage.

`Generation` and `Quarantine` write and read files in a local folder either way; what has to be done beside that so
that others see them, or that they are here at all, is said here.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fletcher_core.store.durable import write_failed
from fletcher_core.store.locks import FileLock, lock_holder
from fletcher_core.store.manifest import Manifest
from fletcher_core.store.recovery import collect_garbage, needs_recovery, recover


class Lock(Protocol):
    """One holder among all who use the store; see `FileLock`."""

    def held(self, run_id: str, *, patience: float = 0.0) -> AbstractContextManager[None]:
        """`acquire` and `release` around a `with` block."""

    def acquire(self, run_id: str, *, patience: float = 0.0) -> None:
        """Takes the lock or raises StoreLockedError."""

    def try_acquire(self, run_id: str) -> bool:
        """Takes the lock if it is free."""

    def release(self) -> None:
        """Lets go of the lock; nothing happens when it is not held."""


class Place(Protocol):
    """The files of a store, below the folder `root` of this machine. Safe to use from several threads."""

    @property
    def root(self) -> Path:
        """The folder."""

    @property
    def address(self) -> str:
        """What users know the store by."""

    @property
    def holds_all(self) -> bool:
        """Whether each file that counts is on this machine, without being fetched."""

    def lock(self, name: str, subject: str) -> Lock:
        """The lock of this name; `subject` says in messages what it guards."""

    def holders(self, prefix: str) -> list[str]:
        """Who holds locks whose names begin so."""

    def refresh(self, *, now: bool = False) -> None:
        """Takes note of what others committed in the meantime, a few seconds late unless `now`; a failure to is only
        logged."""

    def present(self, files: Sequence[Path]) -> None:
        """Sees that segment and identity files are on this machine.

        Raises:
            FileNotFoundError: one counts no more, and is gone.
            StoreError: one cannot be fetched.
        """

    def publish(self, file: Path) -> None:
        """Makes a finished file everyone's, before the manifest names it."""

    def withdraw(self, file: Path) -> None:
        """Takes back what was published and will never be named."""

    def recover(self, manifest: Manifest, folder: Path) -> None:
        """Puts in order what killed runs left in a partition's folder. The caller holds its lock."""

    def recover_unused(self, manifest: Manifest, generation: str) -> None:
        """The same for the partitions of a generation that nobody uses now."""

    def collect_garbage(self, manifest: Manifest, folder: Path) -> None:
        """Deletes the files of a partition's folder that count no more. The caller holds its lock."""

    def side_files(self, folder: Path, pattern: str) -> list[Path]:
        """Files that are no segments, below `folder`, on this machine; `pattern` is one of `Path.glob`'s."""

    def add_side_file(self, file: Path) -> None:
        """Makes a finished file one of `side_files` for everyone."""

    def drop_side_files(self, files: Sequence[Path]) -> None:
        """Deletes side files."""

    def read_shared(self, file: Path) -> bytes | None:
        """What a file holds that is replaced whole, whoever wrote it last; None when there is none."""

    def write_shared(self, file: Path) -> None:
        """Makes a finished file what `read_shared` gives to everyone."""

    def close(self) -> None:
        """Nothing is locked through it any more."""


class LocalFolder:
    """A store on a disk: each file is where it belongs once it is renamed."""

    holds_all = True

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        """The folder's path."""
        return str(self.root)

    def lock(self, name: str, subject: str) -> Lock:
        """A lock held by the operating system."""
        return FileLock(self.root / "locks" / name, subject)

    def holders(self, prefix: str) -> list[str]:
        """By the files of the locks."""
        paths = sorted((self.root / "locks").glob(f"{prefix}*.lock"))
        return [holder for path in paths if (holder := lock_holder(path)) is not None]

    def refresh(self, *, now: bool = False) -> None:
        """Everyone uses the same manifest."""

    def present(self, files: Sequence[Path]) -> None:
        """They are here or nowhere."""

    def publish(self, file: Path) -> None:
        """It is everyone's since it was renamed."""

    def withdraw(self, file: Path) -> None:
        """Nobody saw it."""

    def recover(self, manifest: Manifest, folder: Path) -> None:
        """Files are the truth: the manifest is made to say what they say."""
        recover(self.root, manifest, folder)

    def recover_unused(self, manifest: Manifest, generation: str) -> None:
        """Where files and manifest disagree, and nobody is at work."""
        for folder in (self.root / generation / "segments").glob("*/"):
            lock = self.lock(f"{generation}--{folder.name}.lock", folder.name)
            if needs_recovery(manifest, folder) and lock.try_acquire("recovery"):
                try:
                    recover(self.root, manifest, folder)
                finally:
                    lock.release()

    def collect_garbage(self, manifest: Manifest, folder: Path) -> None:
        """At once: what somebody has open stays readable."""
        collect_garbage(self.root, manifest, folder)

    def side_files(self, folder: Path, pattern: str) -> list[Path]:
        """As the folder has them."""
        return sorted(folder.glob(pattern))

    def add_side_file(self, file: Path) -> None:
        """It is there."""

    def drop_side_files(self, files: Sequence[Path]) -> None:
        """Raises StoreError when the disk does not let us."""
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise write_failed(file.parent, error) from error

    def read_shared(self, file: Path) -> bytes | None:
        """Raises OSError."""
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None

    def write_shared(self, file: Path) -> None:
        """It is there."""

    def close(self) -> None:
        """Locks are closed with their files."""

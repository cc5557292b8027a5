"""Files that appear whole or not at all, and stay.

A file is written under a temporary name, forced to disk, renamed, and the folder's entry forced to disk: the
rename is the commit. Temporary names end in `.tmp`, so no glob over `*.parquet` ever sees one.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from fletcher_core.errors import StoreError

TEMPORARY_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class UnwritableError(StoreError):
    """Nothing can be written here for now, as the disk is full, read-only or not ours; reading may still work."""


def write_failed(path: Path, error: OSError) -> StoreError:
    """The failure to write `path`, with what to do about it; an UnwritableError where all writing would fail."""
    if error.errno in _FULL:
        return UnwritableError(f"cannot write {str(path)!r}: the disk is full ({error}). Make room on the disk")
    if error.errno in _FORBIDDEN:
        return UnwritableError(f"cannot write {str(path)!r}: {error}. Allow writing there")
    return StoreError(f"cannot write {str(path)!r}: {error}. Make room on the disk or allow writing there")


@contextmanager
def committed(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in a `with` block; it becomes `path` when the block ends well and vanishes when not.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    try:
        make_directory(path.parent)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            _force(file.fileno())
        os.rename(temporary, path)
        force_directory(path.parent)
    except OSError as error:
        _remove(temporary)
        raise write_failed(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def move_into_place(made: Path, path: Path) -> None:
    """Forces the finished file `made`, on the same file system, to disk and gives it the name `path`.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    try:
        make_directory(path.parent)
        with open(made, "rb+") as file:
            _force(file.fileno())
        os.rename(made, path)
        force_directory(path.parent)
    except OSError as error:
        raise write_failed(path, error) from error


def make_directory(path: Path) -> None:
    """Creates a folder and its parents, with their entries on disk."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    force_directory(path.parent)


def force_directory(path: Path) -> None:
    """Forces a folder's entries (names created, renamed, removed) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    """As far as the disk lets us: what stays is ignored by readers, and removed when the store is opened next."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _force(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)

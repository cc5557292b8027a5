"""Scratch folders under `<root>/work`: one a run, removed when it ends, or by anyone once its owner is dead."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fletcher_core.store.durable import make_directory, write_failed
from fletcher_core.store.locks import FileLock
from fletcher_core.store.schema import slug


@contextmanager
def workspace(root: Path, run_id: str) -> Iterator[Path]:
    """An empty folder for the length of a `with` block; each call gets its own.

    Raises:
        StoreError: the folder cannot be made.
    """
    name = f"{slug(run_id)}-{uuid4().hex[:8]}"
    with _lock(root, name).held(run_id):
        folder = root / "work" / name
        try:
            make_directory(folder)
        except OSError as error:
            raise write_failed(folder, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(root: Path) -> None:
    """Removes the folders whose owners were killed."""
    for folder in (root / "work").glob("*/"):
        lock = _lock(root, folder.name)
        if lock.try_acquire("sweep"):
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                lock.release()


def _lock(root: Path, name: str) -> FileLock:
    return FileLock(root / "locks" / f"work--{name}.lock", f"the workspace {name!r}")

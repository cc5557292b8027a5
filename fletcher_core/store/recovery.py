"""Bringing manifest and folders into agreement after a crash.

The files are the truth. A file under its final name that the manifest lacks was committed just before a crash and is
adopted; a file that another one took over in compaction is deleted; temporary files are deleted.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fletcher_core.errors import StoreError
from fletcher_core.store.durable import TEMPORARY_SUFFIX, committed, force_directory, write_failed
from fletcher_core.store.identity import FILE_NAME, read_identity
from fletcher_core.store.locks import store_lock
from fletcher_core.store.manifest import Manifest
from fletcher_core.store.segments import Footer, read_footer

_FLOOR_NAME = "sequence_floor"
_log = logging.getLogger(__name__)


def rebuild(root: Path, manifest: Manifest) -> None:
    """Fills an empty manifest from the files. Nobody else may be using the store."""
    # All is read before anything is recorded: of a store with files that a newer Fletcher wrote, nothing is.
    identities = [read_identity(schema_file.parent) for schema_file in root.glob(f"*/{FILE_NAME}")]
    files: list[tuple[Path, Footer]] = []
    for identity in identities:
        for folder in sorted((root / identity.name / "segments").glob("*/")):
            files += _current(folder, sorted(folder.glob("*.parquet")))
    used = [entry.last_sequence for _, footer in files for entry in footer.segments]
    used.append(_floor(root) - 1)
    for identity in sorted(identities, key=lambda identity: (identity.created_at, identity.name)):
        manifest.add_generation(identity.name, identity.collection, identity.created_at)
    manifest.add_files(files, next_sequence=max(used) + 1)


def needs_recovery(manifest: Manifest, folder: Path) -> bool:
    """Whether a partition's folder differs from what the manifest says of it."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return names != {file.name for file in manifest.files_in(folder)}


def recover(root: Path, manifest: Manifest, folder: Path) -> None:
    """Makes a partition's folder and the manifest agree. The caller holds the partition's lock."""
    if not folder.is_dir() or not needs_recovery(manifest, folder):
        return
    known = set(manifest.files_in(folder))
    present = set(folder.glob("*.parquet")) - set(manifest.garbage())
    # Read first: when a newer Fletcher wrote one of them, nothing here is for us to put in order.
    found = _current(folder, sorted(present - known))
    try:
        for temporary in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_failed(folder, error) from error
    collect_garbage(root, manifest, folder)
    for file in sorted(known - present):
        _log.warning("segment file %s is gone: its rows count as not embedded", file)
    manifest.drop_files(sorted(known - present), garbage=False)
    manifest.add_files(found)
    collect_garbage(root, manifest, folder)


def collect_garbage(root: Path, manifest: Manifest, folder: Path) -> None:
    """Deletes the files in `folder` that count no more. The caller holds the partition's lock."""
    files = [file for file in manifest.garbage() if file.parent == folder]
    if not files:
        return
    # Their sequences must not be given out again, even if the manifest is lost and rebuilt without these files.
    with store_lock(root).held("compaction", patience=60), committed(root / _FLOOR_NAME) as floor:
        floor.write(str(manifest.next_sequence()).encode())
    try:
        for file in files:
            file.unlink(missing_ok=True)
        force_directory(folder)
    except OSError as error:
        raise write_failed(folder, error) from error
    manifest.collected(files)


def _floor(root: Path) -> int:
    """The least sequence that may be given out, as `collect_garbage` noted it down."""
    path = root / _FLOOR_NAME
    if not path.exists():
        return 1
    try:
        return int(path.read_text())
    except ValueError as error:
        raise StoreError(
            f"{str(path)!r} is damaged ({error}): write a number into it that is above every sequence ever given out"
        ) from error


def _current(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, Footer]]:
    """Files with their footers, less those that another one took over."""
    footers = {path: read_footer(path) for path in paths}
    taken_over = {folder / name for footer in footers.values() for name in footer.inputs}
    return [(path, footer) for path, footer in footers.items() if path not in taken_over]

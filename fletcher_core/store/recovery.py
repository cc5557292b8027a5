"""Bringing manifest and folders into agreement after a crash.

The files are the truth. A file under its final name that the manifest lacks was committed just before a crash and is
adopted; a file that another one took over in compaction is deleted; temporary files are deleted.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fletcher_core.store.durable import TEMPORARY_SUFFIX, committed, force_directory
from fletcher_core.store.identity import FILE_NAME, read_identity
from fletcher_core.store.locks import store_lock
from fletcher_core.store.manifest import Manifest
from fletcher_core.store.segments import Footer, read_footer

_FLOOR_NAME = "sequence_floor"
_log = logging.getLogger(__name__)


def rebuild(root: Path, manifest: Manifest) -> None:
    """Fills an empty manifest from the files. Nobody else may be using the store."""
    files: list[tuple[Path, Footer]] = []
    for schema_file in sorted(root.glob(f"*/{FILE_NAME}")):
        identity = read_identity(schema_file.parent)
        manifest.add_generation(identity.name, identity.collection, identity.created_at)
        for folder in sorted((schema_file.parent / "segments").glob("*/")):
            files += _current(folder, sorted(folder.glob("*.parquet")))
    used = [entry.last_sequence for _, footer in files for entry in footer.segments]
    floor = root / _FLOOR_NAME
    if floor.exists():
        used.append(int(floor.read_text()) - 1)
    manifest.add_files(files, next_sequence=max(used, default=0) + 1)


def needs_recovery(manifest: Manifest, generation: str, folder: Path) -> bool:
    """Whether a partition's folder differs from what the manifest says of it."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return names != {file.name for file in manifest.files(generation) if file.parent == folder}


def recover(root: Path, manifest: Manifest, generation: str, folder: Path) -> None:
    """Makes a partition's folder and the manifest agree. The caller holds the partition's lock."""
    if not folder.is_dir() or not needs_recovery(manifest, generation, folder):
        return
    for temporary in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        temporary.unlink()
    collect_garbage(root, manifest, folder)
    known = {file for file in manifest.files(generation) if file.parent == folder}
    present = set(folder.glob("*.parquet"))
    for file in sorted(known - present):
        _log.warning("segment file %s is gone: its rows count as not embedded", file)
    manifest.drop_files(sorted(known - present), garbage=False)
    manifest.add_files(_current(folder, sorted(present - known)))
    collect_garbage(root, manifest, folder)


def collect_garbage(root: Path, manifest: Manifest, folder: Path) -> None:
    """Deletes the files in `folder` that count no more. The caller holds the partition's lock."""
    files = [file for file in manifest.garbage() if file.parent == folder]
    if not files:
        return
    # Their sequences must not be given out again, even if the manifest is lost and rebuilt without these files.
    with store_lock(root).held("compaction", patience=60), committed(root / _FLOOR_NAME) as floor:
        floor.write(str(manifest.next_sequence()).encode())
    for file in files:
        file.unlink(missing_ok=True)
    force_directory(folder)
    manifest.collected(files)


def _current(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, Footer]]:
    """Files with their footers, less those that another one took over."""
    footers = {path: read_footer(path) for path in paths}
    taken_over = {folder / name for footer in footers.values() for name in footer.inputs}
    return [(path, footer) for path, footer in footers.items() if path not in taken_over]

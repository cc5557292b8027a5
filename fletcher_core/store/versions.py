"""Versions of the store's files: what each file says of itself, and the refusal of one that a newer Fletcher wrote.

A file without a version is of version 1: Fletcher wrote none at first. Whoever changes a format so that an older
Fletcher would read it wrongly raises its version, and the manifest's with it, so that the older one stops at the door.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fletcher_core.errors import StoreError

MANIFEST_VERSION = 1
GENERATION_VERSION = 1
SEGMENT_VERSION = 1
QUARANTINE_VERSION = 1
LEDGER_VERSION = 1
STATISTICS_VERSION = 1


class NewerVersionError(StoreError):
    """A newer Fletcher wrote the file: this one must neither use nor touch it."""


def check_version(path: Path, found: int, known: int) -> None:
    """Raises NewerVersionError when `found`, the version of the file at `path`, is above `known`."""
    if found > known:
        raise NewerVersionError(
            f"{str(path)!r} was written by a newer Fletcher: the file is of version {found}, and this Fletcher reads "
            f"up to version {known}. Upgrade Fletcher; nothing in the store was changed"
        )


def version_of(content: Mapping[str, Any]) -> int:
    """The version in a file's description of itself; ValueError when it is no version."""
    version = content.get("version", 1)
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"its version is {version!r}")
    return version

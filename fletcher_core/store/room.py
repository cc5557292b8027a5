"""How much room a store's disk must have: what stops a run while everything on that disk can still work."""

import shutil
from pathlib import Path

from fletcher_core.errors import StoreError


def check_room(root: Path, size: int, min_free_bytes: int, what: str) -> None:
    """Sees that `min_free_bytes` stay free on the disk of `root` once `size` more bytes are written.

    Args:
        what: names the bytes in the message, "the next 8192 rows".

    Raises:
        StoreError: they would not; names the path, what is free, what is needed and the setting.
    """
    try:
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise StoreError(f"the disk of {str(root)!r} cannot be asked for its free space: {error}") from error
    if free < size + min_free_bytes:
        raise StoreError(
            f"the disk of the vector store {str(root)!r} is nearly full: {_mib(free)} are free, {what} needs "
            f"{_mib(size)}, and min_free_bytes keeps {_mib(min_free_bytes)} free. Make room or lower min_free_bytes; "
            "what was committed stays, and the next run does the rest"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

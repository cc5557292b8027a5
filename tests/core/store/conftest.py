import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_contents import generation_of, open_store

from fletcher_core.store import Generation, VectorStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def generation(store: VectorStore) -> Generation:
    return generation_of(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a disk of so many KiB, or changes its options when called again; gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        again = ["remount"] if folder.is_mount() else []
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*again, *options]), "none", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)

"""Files that appear whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from fletcher_core.store.durable import committed, make_directory


def test_contents_are_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "a.parquet"
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        events.append("folder on disk" if is_folder else f"{status.st_size} bytes on disk")
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        assert not target.exists()
        assert not source.match("*.parquet")
        events.append("renamed")
        real_rename(source, target)

    make_directory(path.parent)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.delattr("fcntl.F_FULLFSYNC", raising=False)
    with committed(path) as file:
        file.write(b"x" * 1000)
    assert events == ["1000 bytes on disk", "renamed", "folder on disk"]
    assert path.read_bytes() == b"x" * 1000


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError), committed(tmp_path / "a.parquet") as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert not list(tmp_path.iterdir())


def test_an_older_file_of_the_name_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with committed(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"

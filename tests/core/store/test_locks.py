"""Locks between processes and threads. That a killed process lets go is shown in test_store_crash.py."""

import fcntl
import json
import os
from pathlib import Path
from threading import Thread

import pytest

from fletcher_core.errors import StoreLockedError
from fletcher_core.store.locks import FileLock


def lock_on(folder: Path) -> FileLock:
    return FileLock(folder / "locks" / "a.lock", "the thing")


def test_a_lock_has_one_holder_and_says_who(tmp_path: Path) -> None:
    first, second = lock_on(tmp_path), lock_on(tmp_path)
    first.acquire("run 1")
    assert not second.try_acquire("run 2")
    with pytest.raises(StoreLockedError, match=rf"the thing is in use by run 'run 1' \(process {os.getpid()}\)"):
        second.acquire("run 2")
    first.release()
    second.acquire("run 2")
    assert json.loads((tmp_path / "locks" / "a.lock").read_text())["run_id"] == "run 2"
    second.release()
    second.release()
    assert not list((tmp_path / "locks").iterdir())


def test_an_unsigned_lock_is_someones_all_the_same(tmp_path: Path) -> None:
    first, second = lock_on(tmp_path), lock_on(tmp_path)
    first.acquire("run 1")
    (tmp_path / "locks" / "a.lock").write_text("")
    with pytest.raises(StoreLockedError, match="in use by another run"):
        second.acquire("run 2")


def test_patience_waits_for_the_holder(tmp_path: Path) -> None:
    first, second = lock_on(tmp_path), lock_on(tmp_path)
    first.acquire("run 1")
    waiting = Thread(target=second.acquire, args=("run 2",), kwargs={"patience": 60})
    waiting.start()
    first.release()
    waiting.join()
    assert not first.try_acquire("run 1")


def test_a_lock_is_released_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), lock_on(tmp_path).held("run 1"):
        raise ValueError("inside")
    assert lock_on(tmp_path).try_acquire("run 2")


def test_a_lock_on_a_file_that_the_last_holder_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = lock_on(tmp_path), lock_on(tmp_path), lock_on(tmp_path)
    first.acquire("run 1")
    real = fcntl.flock

    def after_the_release(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        first.release()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_release)
    assert second.try_acquire("run 2")
    assert not third.try_acquire("run 3")

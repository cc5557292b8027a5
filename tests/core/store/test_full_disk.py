"""Disks that fill up: a clear error, no damage, and the store goes on once there is room."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_contents import check_invariants, generation_of, live_texts, open_store, write

from fletcher_core import Embedder
from fletcher_core.errors import StoreError
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.sources import ParquetTable
from fletcher_core.store import VectorStore, durable
from fletcher_core.store.database import Database
from fletcher_core.store.room import check_room

CHANGES: list[dict[str, str | None]] = [{"a": "one", "b": "two"}, {"a": "three", "c": "four"}, {"b": None, "c": "five"}]
CALLS = ("open", "fsync", "mkdir", "rename", "pwrite", "ftruncate")
FAULTS = int(os.environ.get("FLETCHER_DISK_FAULTS", "12"))  # of the calls of a case; 0 is all of them, two minutes
SEED = 20261126


class Disk:
    """Counts the calls that write, and answers those that `fails` says with "no space left"."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.fails = fails
        self.calls = 0

    def called(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.fails(self.calls - 1):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    def opened(self, path: Path, mode: str) -> IO[bytes]:
        file: IO[bytes] = path.open(mode)
        return _File(file, self) if "b" in mode else file  # type: ignore[return-value]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self.called(getattr(os, name)))
            patch.setattr(durable, "open", self.called(self.opened), raising=False)
            yield


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: IO[bytes], disk: Disk) -> None:
        self._file = file
        self.write = disk.called(file.write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def attempt(root: Path, disk: Disk) -> dict[tuple[str, str], str]:
    """Writes, sets rows aside and compacts on `disk`; returns what was acknowledged. Only StoreErrors come out."""
    acknowledged: dict[tuple[str, str], str] = {}
    row: dict[str, str | None] = {"id": "q", "reason": "nan", "message": "m", "content_hash": "h"}
    with disk.in_use():
        try:
            store = open_store(root)
        except StoreError:
            return acknowledged
        for number, change in enumerate(CHANGES):
            try:
                write(generation_of(store), "", change, f"run {number}")
            except StoreError:
                break
            for row_id, text in change.items():
                acknowledged.pop(("", row_id), None)
                acknowledged |= {} if text is None else {("", row_id): text}
        for last in (
            lambda: store.quarantine.write([row], run_id="r"),
            lambda: generation_of(store).compact(""),
        ):
            try:
                last()
            except StoreError:
                continue
        store.close()
    return acknowledged


@pytest.mark.parametrize("stays_full", [False, True])
def test_whatever_write_fails_the_store_has_exactly_what_was_committed(tmp_path: Path, stays_full: bool) -> None:
    healthy = Disk(lambda call: False)
    assert attempt(tmp_path / "healthy", healthy) == {("", "a"): "three", ("", "c"): "five"}
    assert healthy.calls > 50
    calls = range(healthy.calls)
    print("seed", SEED)
    for failing in sorted(random.Random(SEED).sample(calls, FAULTS)) if FAULTS else calls:
        root = tmp_path / str(failing)
        acknowledged = attempt(root, Disk(lambda call, n=failing: call >= n if stays_full else call == n))  # type: ignore[misc]
        with open_store(root) as store:
            check_invariants(store)
            found = live_texts(generation_of(store))
            assert found == acknowledged, f"after call {failing} failed"
            write(generation_of(store), "", {"a": "six"})
            assert live_texts(generation_of(store)) == acknowledged | {("", "a"): "six"}
            assert not list(root.glob("locks/*"))
        shutil.rmtree(root)


def test_a_disk_that_fills_up_stops_the_writer_and_loses_nothing(small_disk: Callable[..., Path]) -> None:
    root = small_disk("size=2m") / "store"
    store = open_store(root)
    expected: dict[tuple[str, str], str] = {}
    draw = random.Random(1)

    def fill() -> None:
        for number in range(1000):
            change: dict[str, str | None] = {f"{number}-{i}": draw.randbytes(400).hex() for i in range(100)}
            write(generation_of(store), "", change)
            expected.update({("", row_id): text for row_id, text in change.items() if text is not None})

    with pytest.raises(StoreError, match=r"(?i)full|make room"):
        fill()
    assert expected
    assert live_texts(generation_of(store)) == expected
    store.close()
    with open_store(root) as full:  # to search in it, there need be no room
        assert live_texts(full.generations()[0]) == expected
    small_disk("size=64m")
    with open_store(root) as roomy:
        check_invariants(roomy)
        assert live_texts(generation_of(roomy)) == expected
        write(generation_of(roomy), "", {"after": "room"})
        assert live_texts(generation_of(roomy)) == expected | {("", "after"): "room"}


def test_with_any_little_room_that_is_left_a_write_is_whole_or_not_at_all(small_disk: Callable[..., Path]) -> None:
    disk = small_disk("size=4m")
    with open_store(disk / "store") as store:
        write(generation_of(store), "", {"a": "one"})
    outcomes = set()
    for kib in [0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256]:
        root = disk / f"store{kib}"
        shutil.copytree(disk / "store", root)
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - kib * 1024))
        expected = {("", "a"): "one"}
        try:
            with open_store(root) as store:
                write(generation_of(store), "", {"b": "two"})
                expected |= {("", "b"): "two"}
        except StoreError as error:
            assert "oom" in str(error) or "full" in str(error)  # noqa: PT017
        outcomes.add(len(expected))
        filler.unlink()
        with open_store(root) as store:
            check_invariants(store)
            assert live_texts(generation_of(store)) == expected, f"{kib} KiB"
        shutil.rmtree(root)
    assert outcomes == {1, 2}


def test_a_full_manifest_says_so_and_is_undone(store: VectorStore) -> None:
    generation = generation_of(store)
    write(generation, "", {"a": "one"})
    database: Database = store.manifest._database
    (pages,) = database.read("PRAGMA page_count")[0]
    database.read(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            write(generation, "", {f"b{number}": "two"}, "a run with a name of some length")

    with pytest.raises(StoreError, match=r"manifest\.sqlite.*full.*Make room"):
        fill()
    texts = live_texts(generation)
    database.read("PRAGMA max_page_count = 1000000")
    with open_store(store.root) as again:
        check_invariants(again)
        assert live_texts(generation_of(again)) == texts
    write(generation, "", {"c": "three"})
    assert live_texts(generation) == texts | {("", "c"): "three"}


def test_a_disk_with_too_little_room_is_refused_by_name(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, 1, 0, "a byte")
    with pytest.raises(StoreError, match=r"are free, the commit needs .* MiB, and min_free_bytes keeps .* lower min_f"):
        check_room(tmp_path, free, 100 << 30, "the commit")
    with pytest.raises(StoreError, match="cannot be asked"):
        check_room(tmp_path / "none", 1, 0, "a byte")


def test_whole_runs_on_a_disk_with_any_little_room_end_well_or_clearly(
    small_disk: Callable[..., Path], tmp_path: Path, minilm: Embedder
) -> None:
    disk = small_disk("size=8m")
    draw = random.Random(SEED)
    texts = [" ".join(draw.choices(["cats", "dogs", "trains", "rivers"], k=12)) + f" {n}" for n in range(400)]
    pq.write_table(pa.table({"id": list(range(400)), "text": texts}), tmp_path / "docs.parquet")
    source = ParquetTable(tmp_path / "docs.parquet")
    few = MaterializeSettings(segment_rows=64, commit_seconds=0.0, min_free_bytes=0, max_segments=3)
    messages = []
    filler = disk / "filler"
    for kib in [0, 16, 64, 128, 256, 384, 512, 768, 1024, 1536, 4096]:
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - kib * 1024))
        try:
            with open_store(disk / "store") as store:
                materialize(source, embedder=minilm, store=store, settings=few)
        except StoreError as error:
            messages.append(str(error))
        filler.unlink()
        with open_store(disk / "store") as store:
            check_files(store)
    assert 3 <= len(messages) < 11
    assert all("oom" in message or "full" in message for message in messages), messages
    with open_store(disk / "store") as store:
        report = materialize(source, embedder=minilm, store=store, settings=few)
        assert (report.unchanged, report.rows_in_store) == (400, 400)
        check_files(store)


def check_files(store: VectorStore) -> None:
    """The manifest names the files that are there, and no id is live twice."""
    for generation in store.generations():
        assert sorted((store.root / generation.name / "segments").rglob("*.parquet")) == sorted(generation.files())
        with duckdb.connect() as connection:
            live = connection.execute(f"SELECT count(*), count(DISTINCT id) FROM ({generation.live_sql()})").fetchall()
        assert live[0][0] == live[0][1]

"""Where a store may lie: read-only disks, links, file systems without locks; names that try to lead outside."""

import errno
import fcntl
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_contents import CARD, METADATA, check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.errors import ConfigError, StoreError, StoreLockedError
from fletcher_core.store import VectorStore
from fletcher_core.store.schema import folder_name, slug

ROW: dict[str, str | None] = {"id": "q", "reason": "nan", "message": "m", "content_hash": "h"}
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["fletcher_core.store", "pytest"])


# A disk that cannot be written


def test_a_read_only_store_can_be_read_and_says_so_when_written(small_disk: Callable[..., Path]) -> None:
    root = small_disk("size=16m") / "store"
    with open_store(root) as store:
        write(generation_of(store), "", {"a": "one", "b": "two"})
        store.quarantine.write([ROW], run_id="1")
    small_disk("ro")
    with open_store(root) as store:
        (generation,) = store.generations()
        assert set(live_texts(generation).values()) == {"one", "two"}
        assert generation.row_count() == 2
        assert generation.read_segment(generation.segments()[0].label).num_rows == 2
        assert generation.resolve([1, 2])["id"].to_pylist() == ["a", "b"]
        assert store.quarantine.read()["id"].to_pylist() == ["q"]
        for attempt in (
            lambda: generation_of(store),
            lambda: write(generation, "", {"c": "three"}),
            lambda: generation.compact(""),
            lambda: store.quarantine.write([ROW], run_id="2"),
            lambda: store.manifest.allocate(1),
            lambda: store.manifest.record_delivery("t", "l", "sent"),
            lambda: store.workspace("r").__enter__(),
        ):
            with pytest.raises(StoreError, match=r"(?i)read-only") as caught:
                attempt()
            assert str(root) in str(caught.value)
    small_disk("rw")
    with open_store(root) as store:
        write(generation_of(store), "", {"c": "three"})
        check_invariants(store)


def test_a_read_only_store_of_a_killed_run_names_its_log(small_disk: Callable[..., Path]) -> None:
    """What the log holds would be missing without it: read with it where SQLite can, else refused, never without."""
    disk = small_disk("size=16m")
    store = open_store(disk / "live")
    write(generation_of(store), "", {"a": "one"})
    shutil.copytree(disk / "live", disk / "killed")  # its log was not folded in
    store.close()
    (disk / "killed" / "manifest.sqlite-shm").unlink()
    assert (disk / "killed" / "manifest.sqlite-wal").stat().st_size
    small_disk("ro")
    with pytest.raises(StoreError, match=r"manifest.*cannot be used.*read-only"):
        open_store(disk / "killed")
    small_disk("rw")
    with open_store(disk / "killed") as again:
        assert set(live_texts(generation_of(again)).values()) == {"one"}


def test_no_store_is_made_on_a_read_only_disk(small_disk: Callable[..., Path]) -> None:
    root = small_disk("size=1m")
    small_disk("ro")
    with pytest.raises(StoreError, match=r"cannot .*Read-only"):
        open_store(root)
    with pytest.raises(StoreError, match=r"cannot .*Read-only"):
        open_store(root / "store")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with pytest.raises(StoreError, match=r"store\.lock.*cannot be locked.*on a local disk"):
        open_store(tmp_path / "store")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# Symbolic links


def hold_partition(root: Path, connection: Connection) -> None:
    generation = generation_of(open_store(root))
    with generation.locked("p", "first run"):
        connection.send("held")
        connection.recv()
        write(generation, "p", {"a": "one"}, "first run")
    connection.send("written")


def test_two_processes_at_one_store_through_two_links_see_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("link", "other"):
        (tmp_path / name).symlink_to("real")
    ours, theirs = _processes.Pipe()
    other = _processes.Process(target=hold_partition, args=(tmp_path / "link", theirs))
    other.start()
    try:
        assert ours.recv() == "held"
        with open_store(tmp_path / "other") as store:
            assert store.root == (tmp_path / "real").resolve()
            generation = generation_of(store)
            with pytest.raises(StoreLockedError, match=rf"partition 'p' .*'first run' \(process {other.pid}\)"):
                write(generation, "p", {"a": "two"}, "second run")
            write(generation, "q", {"a": "three"}, "second run")
            ours.send("go on")
            assert ours.recv() == "written"
            other.join(60)
            write(generation, "p", {"b": "four"}, "second run")
            assert sorted(live_texts(generation).values()) == ["four", "one", "three"]
            check_invariants(store)
    finally:
        other.kill()
        other.join()


def test_a_link_that_moves_during_a_run_does_not_take_the_run_along(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    with open_store(link) as store:
        write(generation_of(store), "", {"a": "one"})
        link.unlink()
        link.symlink_to("two")
        write(generation_of(store), "", {"b": "two"})
        check_invariants(store)
    assert not list((tmp_path / "two").iterdir())


def test_links_that_lead_nowhere_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    for path in ("dangling", "loop", "dangling/store", "loop/store"):
        with pytest.raises(StoreError, match=r"symbolic link .*(gone|loop|pool).*does not exist or leads back"):
            open_store(tmp_path / path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "loop", "pool"]


# Names

NAMES = [
    "../x",
    "/etc",
    "..",
    ".",
    "a/b",
    "\\",
    "a\0b",
    "x" * 5000,
    "日本語",
    "Ä",
    "a\nb",
    "~",
    "",
    " ",
    "con",
    "*",
    "_",
]


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_collections_and_partitions_stay_inside_the_store(tmp_path: Path, name: str) -> None:
    root = tmp_path / "inner" / "store"
    with VectorStore.open(root, collection=name) as store:
        generation = store.generation(CARD, METADATA)
        write(generation, name, {"a": "one"})
        write(generation, "a", {"a": "two"})
        store.quarantine.write([ROW], run_id=name, partition_key=name)
        with store.workspace(name) as folder:
            assert folder.parent == root / "work"
        generation.refresh_ledger(name)
        generation.compact(name)
        check_invariants(store)
        assert set(generation.partitions()) == {name, "a"}
        assert store.quarantine.read(name)["partition_key"].to_pylist() == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["store"]
    with VectorStore.open(root, collection=name) as store:
        assert len(live_texts(store.generations()[0])) == 2


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_a_folder_name_is_one_plain_name(key: str) -> None:
    """Whatever is in the key, lone surrogates too."""
    for name in (folder_name(key), slug(key)):
        assert name not in ("", ".", "..")
        assert name.isascii()
        assert not set(name) & set("/\\\0\n*?[]")
        assert len(name) <= 100


@given(st.lists(st.text(alphabet=st.sampled_from("aA/._~é-")), unique=True, max_size=20))
def test_two_keys_never_share_a_folder(keys: list[str]) -> None:
    names = [folder_name(key).lower() for key in keys]
    assert len(set(names)) == len(keys)


def test_half_characters_are_no_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"collection .* is not valid Unicode"):
        VectorStore.open(tmp_path / "store", collection="a\ud800")
    assert not list(tmp_path.iterdir())
    with open_store(tmp_path) as store:
        lock = generation_of(store).locked("\udfff", "run")
        with pytest.raises(ConfigError, match=r"partition key .* is not valid Unicode"):
            lock.__enter__()


@pytest.mark.parametrize("root", ["a\0b", "x" * 300])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(StoreError, match="cannot use"):
        open_store(tmp_path / root)

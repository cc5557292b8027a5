"""Processes that die at any instruction, and several that write at once."""

import itertools
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from store_contents import (
    check_invariants,
    generation_of,
    live_texts,
    open_store,
    texts_by_glob,
    write,
)

from fletcher_core.errors import StoreLockedError
from fletcher_core.store import Manifest

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["fletcher_core.store", "pytest"])

STEPS = (  # everything by which a compaction or a write changes what is on disk
    (os, "rename"),
    (Path, "unlink"),
    (Manifest, "allocate"),
    (Manifest, "add_file"),
    (Manifest, "drop_files"),
    (Manifest, "collected"),
)


def before_each_step(action: Callable[[int], None]) -> None:
    """Calls `action` with 0, 1, 2, ... before every step from now on, in this process."""
    count = 0

    def wrapped(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal count
            action(count)
            count += 1
            return real(*args, **kwargs)

        return step

    for owner, name in STEPS:
        setattr(owner, name, wrapped(getattr(owner, name)))


def compact_and_die(root: Path, dying_step: int) -> None:
    generation = generation_of(open_store(root))
    before_each_step(lambda step: os._exit(9) if step == dying_step else None)
    generation.compact("p")


def write_and_die(root: Path, dying_step: int) -> None:
    generation = generation_of(open_store(root))
    before_each_step(lambda step: os._exit(9) if step == dying_step else None)
    write(generation, "p", {"a": "again", "b": None, "new": "new"})


def write_until_killed(root: Path, partition_key: str, first_round: int, told: Connection) -> None:
    """Rounds of writes; each round sets the ten ids to the round's text or deletes them. Compacts now and then."""
    for round_number in range(first_round, first_round + 10_000):
        with open_store(root) as store:
            generation = generation_of(store)
            with generation.locked(partition_key, f"round-{round_number}"):
                write(generation, partition_key, changes_of(round_number), f"round-{round_number}")
            told.send(round_number)
            if round_number % 3 == 0:
                generation.compact(partition_key)


def changes_of(round_number: int) -> dict[str, str | None]:
    absent = round_number % 10
    return {f"id{i}": f"round {round_number}" for i in range(10) if i != absent} | {f"id{absent}": None}


def contents_of(round_number: int, partition_key: str) -> dict[tuple[str, str], str]:
    if round_number < 0:
        return {}
    return {(partition_key, i): text for i, text in changes_of(round_number).items() if text is not None}


def write_segments(root: Path, partition_key: str, rounds: int) -> None:
    with open_store(root) as store:
        generation = generation_of(store)
        for round_number in range(rounds):
            write(generation, partition_key, changes_of(round_number))
        generation.compact_if_needed(partition_key, max_segments=2)


def take_the_lock(root: Path, told: Connection) -> None:
    generation = generation_of(open_store(root))
    with generation.locked("p", "the first run"):
        told.send("locked")
        time.sleep(60)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, dict[tuple[str, str], str]]:
    """A store with replaced and deleted rows in three files of partition "p", and its live texts."""
    with open_store(tmp_path / "prepared") as store:
        generation = generation_of(store)
        write(generation, "p", {"a": "one", "b": "two", "c": "three"})
        write(generation, "p", {"a": "four", "b": None})
        write(generation, "p", {"d": "five", "c": None})
        return store.root, live_texts(generation)


def die_at_each_step(target: Callable[[Path, int], None], prepared: Path) -> Iterator[Path]:
    """Roots of copies of a store in which `target` died at its first, second, ... step; the last one lived."""
    for dying_step in itertools.count():
        root = prepared.with_name(f"step-{dying_step}")
        shutil.copytree(prepared, root)
        process = _processes.Process(target=target, args=(root, dying_step))
        process.start()
        process.join()
        assert process.exitcode in (0, 9)
        yield root
        if process.exitcode == 0:
            assert dying_step > 3
            return


@pytest.mark.parametrize("deletes_are_awaited", [True, False])
def test_compaction_killed_at_any_step_changes_nothing(
    prepared: tuple[Path, dict[tuple[str, str], str]], deletes_are_awaited: bool
) -> None:
    root, expected = prepared
    if deletes_are_awaited:
        with open_store(root) as store:
            store.manifest.record_delivery("longbow", generation_of(store).segments()[0].label, "applied")
    for copy in die_at_each_step(compact_and_die, root):
        (folder,) = copy.glob("docs-*")
        assert texts_by_glob(folder) == expected
        for _ in range(2):
            with open_store(copy) as store:
                generation = generation_of(store)
                assert live_texts(generation) == expected
                check_invariants(store)
                generation.compact()
                has_deletes = any(segment.deletes for segment in generation.segments())
                assert has_deletes == deletes_are_awaited
                assert len(generation.files()) == 1


def test_a_write_killed_at_any_step_is_there_wholly_or_not_at_all(
    prepared: tuple[Path, dict[tuple[str, str], str]],
) -> None:
    root, before = prepared
    after = {**before, ("p", "a"): "again", ("p", "new"): "new"}
    seen = []
    for copy in die_at_each_step(write_and_die, root):
        with open_store(copy) as store:
            live = live_texts(generation_of(store))
            assert live in (before, after)
            seen.append(live == after)
            check_invariants(store)
            write(generation_of(store), "p", {"a": "again", "new": "new"})
            assert live_texts(generation_of(store)) == after
            check_invariants(store)
    assert seen == sorted(seen)  # once a step has committed it, no later step takes it back
    assert seen[-1]


def test_the_glob_is_right_at_every_step_of_a_compaction(
    prepared: tuple[Path, dict[tuple[str, str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = prepared
    (folder,) = root.glob("docs-*")
    looks = []
    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    with open_store(root) as store:
        before_each_step(lambda step: looks.append(texts_by_glob(folder)))
        generation_of(store).compact()
    looks.append(texts_by_glob(folder))
    assert looks == [expected] * len(looks)
    assert len(looks) > 8


def test_writers_killed_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    root = tmp_path / "store"
    random_moment = random.Random(4)
    partitions = ["p", "q"]
    acknowledged = dict.fromkeys(partitions, -1)
    for _ in range(6):
        writers = []
        for partition in partitions:
            receiver, sender = _processes.Pipe(duplex=False)
            writer = _processes.Process(
                target=write_until_killed, args=(root, partition, acknowledged[partition] + 1, sender)
            )
            writer.start()
            sender.close()
            writers.append((partition, writer, receiver))
        assert all(receiver.poll(30) for _, _, receiver in writers)  # each has begun
        time.sleep(random_moment.uniform(0, 0.4))
        for partition, writer, receiver in writers:
            writer.kill()
            writer.join()
            acknowledged[partition] = max([acknowledged[partition], *_received(receiver)])
        with open_store(root) as store:
            live = live_texts(generation_of(store))
            for partition in partitions:  # the round under way may have been committed without an answer
                rounds = (acknowledged[partition], acknowledged[partition] + 1)
                of_partition = {key: text for key, text in live.items() if key[0] == partition}
                assert of_partition in [contents_of(number, partition) for number in rounds]
                if of_partition == contents_of(rounds[1], partition):
                    acknowledged[partition] += 1
            check_invariants(store)
            assert not list((root / "work").glob("*"))
    assert min(acknowledged.values()) > 3


def test_several_processes_write_partitions_of_one_generation_at_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    partitions = ["p", "q", "r"]
    writers = [_processes.Process(target=write_segments, args=(root, partition, 4)) for partition in partitions]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    with open_store(root) as store:
        expected = {key: text for partition in partitions for key, text in contents_of(3, partition).items()}
        assert live_texts(generation_of(store)) == expected
        check_invariants(store)


def test_the_second_run_on_a_partition_is_told_who_has_it_until_that_process_is_dead(tmp_path: Path) -> None:
    root = tmp_path / "store"
    receiver, sender = _processes.Pipe(duplex=False)
    first = _processes.Process(target=take_the_lock, args=(root, sender))
    first.start()
    assert receiver.recv() == "locked"
    with open_store(root) as store:
        generation = generation_of(store)
        with pytest.raises(StoreLockedError, match=rf"partition 'p' .*'the first run' \(process {first.pid}\)"):
            write(generation, "p", {"a": "one"}, "the second run")
        write(generation, "q", {"a": "one"}, "the second run")
        first.kill()
        first.join()
        write(generation, "p", {"a": "one"}, "the second run")
        assert live_texts(generation) == {("p", "a"): "one", ("q", "a"): "one"}


def _received(receiver: Connection) -> list[int]:
    numbers = []
    try:
        while receiver.poll(0):
            numbers.append(receiver.recv())
    except EOFError:
        pass
    return numbers

"""A store on a real S3 server behind a proxy that drops, delays, cuts off and refuses; and writers that are killed."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import get_args

import pytest
from s3_proxy import Fault, OpenOn, Proxy
from store_contents import check_invariants, generation_of, live_texts, write

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store import VectorStore

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["fletcher_core.store", "pytest"])


def environment(machine: Path) -> dict[str, str]:
    """What a process needs to be a machine of its own, or, with another's folder, a process of that machine."""
    names = ("AWS_", "FLETCHER_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)} | {
        "FLETCHER_CLOUD_CACHE": str(machine)
    }


def changes_of(number: int) -> dict[str, str | None]:
    absent = number % 5
    return {f"id{i}": f"round {number}" for i in range(5) if i != absent} | {f"id{absent}": None}


def contents_of(number: int, partition: str) -> dict[tuple[str, str], str]:
    if number < 0:
        return {}
    return {(partition, name): text for name, text in changes_of(number).items() if text is not None}


def write_rounds(
    settings: Mapping[str, str], address: str, partition: str, first: int, rounds: int, told: Connection
) -> None:
    """Rounds of writes, each told once it is committed; compacts now and then."""
    os.environ.update(settings)
    for number in range(first, first + rounds):
        with VectorStore.open(address, collection="docs") as store:
            generation = generation_of(store)
            with generation.locked(partition, f"round-{number}"):
                write(generation, partition, changes_of(number), f"round-{number}")
                told.send(number)
                if number % 3 == 2:
                    generation.compact(partition)


def hold(settings: Mapping[str, str], address: str, told: Connection) -> None:
    """Holds the partition, and once it is spoken to tries to write to it."""
    os.environ.update(settings)
    with VectorStore.open(address, collection="docs") as store:
        generation = generation_of(store)
        with generation.locked("p", "the first run"):
            told.send("locked")
            told.recv()
            try:
                write(generation, "p", {"a": "stale"}, "the first run")
            except StoreLockedError as error:
                told.send(str(error))
            else:
                told.send("written")


def start(target: object, *arguments: object) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=target, args=(*arguments, theirs))  # type: ignore[arg-type]
    process.start()
    theirs.close()
    return process, ours


def test_faults_of_all_kinds_in_every_third_request_lose_and_double_nothing(on: OpenOn, proxy: Proxy) -> None:
    seed = 5
    print("seed", seed)
    chance = random.Random(seed)
    kinds: list[Fault] = [fault for fault in get_args(Fault) if fault]
    proxy.fault = lambda number, method, path: chance.choice(kinds) if chance.random() < 0.35 else ""
    for number in range(4):
        generation = generation_of(on(f"machine {number % 2}"))
        write(generation, "p", changes_of(number))
    generation.compact("p")
    there = on("there")
    assert live_texts(generation_of(there)) == contents_of(3, "p")
    check_invariants(there)
    assert min(proxy.faults[kind] for kind in kinds) > 1, proxy.faults


def test_a_server_that_is_away_for_a_moment_is_waited_for(on: OpenOn, proxy: Proxy) -> None:
    generation = generation_of(on("here"))
    proxy.away = True
    threading.Timer(0.4, lambda: setattr(proxy, "away", False)).start()
    write(generation, "p", {"a": "one"})
    assert proxy.faults["drop before"] > 1
    assert live_texts(generation_of(on("there"))) == {("p", "a"): "one"}


def test_a_server_that_stays_away_ends_the_run_and_what_is_here_can_be_read(
    on: OpenOn, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLETCHER_CLOUD_PATIENCE", "0.2")
    store = on("here")
    generation = generation_of(store)
    write(generation, "p", {"a": "one"})
    proxy.away = True
    with pytest.raises(StoreError, match=r"did not put .* within 0.2 s.*FLETCHER_CLOUD_PATIENCE"):
        write(generation, "p", {"a": "two"})
    assert live_texts(generation) == {("p", "a"): "one"}
    with pytest.raises(StoreError, match="did not get"):
        on("there")
    proxy.away = False
    write(generation, "p", {"a": "three"})
    assert live_texts(generation_of(on("there"))) == {("p", "a"): "three"}
    check_invariants(store)


def test_two_machines_write_partitions_of_one_store_at_once_and_lose_nothing(
    on: OpenOn, address: str, tmp_path: Path
) -> None:
    writers = [
        start(write_rounds, environment(tmp_path / f"machine of {partition}"), address, partition, 0, 3)
        for partition in "pq"
    ]
    for process, _ in writers:
        process.join()
        assert process.exitcode == 0
    store = on("here")
    assert live_texts(generation_of(store)) == contents_of(2, "p") | contents_of(2, "q")
    check_invariants(store)


def test_a_killed_runs_partition_is_taken_at_once_on_its_machine_and_later_on_another(
    on: OpenOn, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine in ("here", "there"):
        monkeypatch.setenv("FLETCHER_LEASE_SECONDS", "600" if machine == "here" else "0.6")
        process, told = start(hold, environment(tmp_path / "here"), address)
        assert told.recv() == "locked"
        process.kill()
        process.join()
        write(generation_of(on(machine)), "p", {"a": machine})  # in no ten minutes
    assert live_texts(generation_of(on("a third"))) == {("p", "a"): "there"}


def test_a_run_that_was_stopped_and_replaced_writes_nothing_when_it_goes_on(
    on: OpenOn, address: str, tmp_path: Path
) -> None:
    process, told = start(hold, environment(tmp_path / "there"), address)
    assert told.recv() == "locked"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        generation = generation_of(on("here"))
        with generation.locked("p", "the second run"):
            os.kill(process.pid, signal.SIGCONT)
            told.send("go on")
            assert "run 'the second run'" in told.recv()
            write(generation, "p", {"a": "fresh"}, "the second run")
    finally:
        process.kill()
        process.join()
    assert live_texts(generation_of(on("a third"))) == {("p", "a"): "fresh"}


def test_writers_killed_at_random_moments_lose_nothing_that_was_acknowledged(
    on: OpenOn, address: str, tmp_path: Path
) -> None:
    seed = 7
    print("seed", seed)
    chance = random.Random(seed)
    acknowledged = dict.fromkeys("pq", -1)
    for kill in range(3):
        writers = {
            partition: start(
                write_rounds, environment(tmp_path / partition), address, partition, acknowledged[partition] + 1, 999
            )
            for partition in "pq"
        }
        assert writers["p"][1].poll(30)
        time.sleep(chance.uniform(0.0, 0.25))
        for partition, (process, told) in writers.items():
            process.kill()
            process.join()
            acknowledged[partition] = max([acknowledged[partition], *_received(told)])
        with on(f"fresh {kill}") as store:
            live = live_texts(generation_of(store))
            for partition in "pq":  # the round under way may have been committed without an answer
                rounds = (acknowledged[partition], acknowledged[partition] + 1)
                found = {key: text for key, text in live.items() if key[0] == partition}
                assert found in [contents_of(number, partition) for number in rounds]
                if found == contents_of(rounds[1], partition):
                    acknowledged[partition] += 1
            check_invariants(store)
    assert acknowledged["p"] > 1


def _received(told: Connection) -> list[int]:
    numbers = []
    try:
        while told.poll(0):
            numbers.append(told.recv())
    except (EOFError, ConnectionResetError):
        pass
    return numbers

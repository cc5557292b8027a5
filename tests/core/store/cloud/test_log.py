"""The log between two machines, on storage that loses answers, carries puts out late, and answers with errors.

`FLETCHER_STORE_EXAMPLES` multiplies the number of histories (1).
"""

import gzip
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store import Manifest
from fletcher_core.store.cloud import bucket as bucket_module
from fletcher_core.store.cloud import log as log_module
from fletcher_core.store.cloud.bucket import Bucket
from fletcher_core.store.cloud.changes import TABLES, Lease, LeaseHeld
from fletcher_core.store.cloud.objects import ObjectExists, ObjectFailed, ObjectRefused
from fletcher_core.store.cloud.settings import CloudSettings
from fletcher_core.store.cloud.working_copy import WorkingCopy, copy_of
from fletcher_core.store.segments import Footer, SegmentEntry

FATES = ("done", "failed", "done, answer lost", "late")


class Memory:
    """Object storage in memory. `fates` are those of the next puts: 'late' ones are carried out by `arrive`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fates: list[str] = []
        self.late: list[tuple[str, bytes]] = []
        self.outcomes = Counter[str]()

    def create(self, name: str, data: bytes) -> None:
        fate = self.fates.pop(0) if self.fates else "done"
        self.outcomes[fate] += 1
        if fate == "failed":
            raise ObjectFailed(fate)
        if fate == "late":
            self.late.append((name, data))
            raise ObjectFailed(fate)
        if self.objects.setdefault(name, data) is not data:
            raise ObjectExists(name)
        if fate == "done, answer lost":
            raise ObjectFailed(fate)

    def arrive(self) -> None:
        for name, data in self.late:
            self.objects.setdefault(name, data)
        self.late.clear()

    def put(self, name: str, data: bytes | Path) -> None:
        self.objects[name] = data if isinstance(data, bytes) else data.read_bytes()

    def get(self, name: str) -> bytes:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def download(self, name: str, target: Any) -> None:
        target.write(self.get(name))

    def names(self, prefix: str, after: str = "") -> list[str]:
        return sorted(name for name in self.objects if name.startswith(f"{prefix}/") and name > after)

    def folders(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self.objects if "/" in name})

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self.objects.pop(name, None)


def machine(memory: Memory, root: Path) -> tuple[WorkingCopy, Manifest]:
    return copy_of(Bucket("memory://store", memory, patience=0.0), root, CloudSettings(root.parent, 0.05, 0.0))


def store_of(memory: Memory) -> str:
    """The part of its id that is in names."""
    return str(json.loads(memory.objects["fletcher.json"])["id"])[:8]


def state(manifest: Manifest) -> dict[str, list[tuple[Any, ...]]]:
    """All that the log has made of this copy."""
    return {table: manifest._database.read(f"SELECT * FROM {table} ORDER BY rowid") for table in TABLES}


class TwoMachines(RuleBasedStateMachine):
    """Two copies change one store; each change that was acknowledged is there once, and copies never run ahead."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.memory = Memory()
        self.machines = [machine(self.memory, self.folder / name) for name in "ab"]
        self.allocated: list[range] = []
        self.committed: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.holder: list[int | None] = [None]
        self.number = 0
        self.machines[0][1].add_generation("g", "docs", 1.0)

    fates = st.lists(st.sampled_from(FATES), max_size=3)
    who = st.integers(0, 1)

    @rule(who=who, fates=fates, count=st.integers(1, 5))
    def allocate(self, who: int, fates: list[str], count: int) -> None:
        self.memory.fates = list(fates)
        try:
            first = self.machines[who][1].allocate(count)
        except StoreError:
            return  # those sequences may be lost, and are never given out again
        finally:
            self.memory.fates = []
        self.allocated.append(range(first, first + count))

    @rule(who=who, fates=fates)
    def lock(self, who: int, fates: list[str]) -> None:
        session = self.machines[who][0]._session
        self.memory.fates = list(fates)
        try:
            if "g--p" not in session._log.held:
                session.take("g--p", f"run on {who}")
        except (LeaseHeld, StoreError):
            return
        finally:
            self.memory.fates = []

    @rule(who=who)
    def take_over(self, who: int) -> None:
        mine, other = (self.machines[at][0]._session for at in (who, 1 - who))
        if "g--p" not in mine._log.held and (token := other._log.held.get("g--p")):
            dead = Lease("g--p", token, other.id, other.copy, "run", "host", 1)
            try:
                mine.take("g--p", f"run on {who}", instead_of=dead)
            except LeaseHeld:
                return

    @rule(who=who, in_order=st.booleans())
    def unlock(self, who: int, in_order: bool) -> None:
        session = self.machines[who][0]._session
        if "g--p" in session._log.held:
            session.end("g--p", in_order=in_order)

    @rule(who=who, fates=fates)
    def commit(self, who: int, fates: list[str]) -> None:
        copy, manifest = self.machines[who]
        self.number += 1
        label = f"s{self.number}"
        footer = Footer("g", "p", (SegmentEntry(label, 1, 0, self.number, self.number, "r", 0.0),))
        file = copy.root / "g/segments/p" / f"{label}.parquet"
        held = copy._session._log.held.get("g--p")
        self.memory.fates = list(fates)
        try:
            manifest.add_file(file, footer, 10)
        except StoreLockedError:
            assert held is not None
            assert held != self.token()  # it was taken over indeed
        except StoreError:
            if held is not None:
                self.doubtful.add(label)
        else:
            assert held == self.token()
            self.committed[label] = self.number
        finally:
            self.memory.fates = []

    @rule()
    def late_puts_arrive(self) -> None:
        self.memory.arrive()

    @rule(who=who)
    def lose_the_copy(self, who: int) -> None:
        copy, manifest = self.machines[who]
        copy.close()
        manifest.close()
        self.number += 1
        self.machines[who] = machine(self.memory, self.folder / f"new-{self.number}")

    def token(self) -> str | None:
        """The token in the log's own state, by a copy that has read all of it."""
        manifest = machine(self.memory, self.folder / "judge")[1]
        rows = manifest._database.read("SELECT token FROM leases WHERE name = 'g--p'")
        manifest.close()
        return rows[0][0] if rows else None

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "memory"):
            return
        states = []
        for copy, manifest in self.machines:
            entries = [name for name in self.memory.objects if name.startswith("log/")]
            assert copy._log._position()[0] <= len(entries)
            copy._log.sync()
            assert copy._log._position()[0] == len(entries)
            states.append(state(manifest))
        assert states[0] == states[1]
        labels = {row[0] for row in states[0]["segments"]}
        assert set(self.committed) <= labels <= set(self.committed) | self.doubtful
        given = [number for some in self.allocated for number in some]
        assert len(given) == len(set(given))

    def teardown(self) -> None:
        for copy, manifest in getattr(self, "machines", []):
            copy.close()
            manifest.close()


@pytest.fixture(autouse=True)
def checkpoints_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(bucket_module, "_FIRST_WAIT", 0.0)


def test_two_machines_agree_whatever_becomes_of_their_puts() -> None:
    TwoMachines.TestCase.settings = settings(
        max_examples=15 * int(os.environ.get("FLETCHER_STORE_EXAMPLES", "1")),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    TwoMachines.TestCase("runTest").runTest()


def test_storage_that_does_not_heed_the_condition_of_a_put_is_refused(tmp_path: Path) -> None:
    memory = Memory()
    memory.create = memory.put  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="does not heed the condition"):
        machine(memory, tmp_path / "a")
    assert memory.objects == {}


def test_processes_that_share_a_working_copy_follow_the_log_side_by_side(tmp_path: Path) -> None:
    memory = Memory()
    sharing = [machine(memory, tmp_path / "shared") for _ in range(3)]
    other = machine(memory, tmp_path / "other")

    def work(copy: WorkingCopy, manifest: Manifest) -> list[int]:
        given = []
        for _ in range(30):
            copy._log.sync()
            given.append(manifest.allocate(1))
        return given

    with ThreadPoolExecutor(4) as threads:
        given = list(threads.map(work, *zip(*sharing, other, strict=True)))
    assert sorted(number for some in given for number in some) == list(range(1, 121))


def test_an_entry_that_another_process_of_the_machine_applied_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    (slow, manifest), (fast, _), (_, elsewhere) = (machine(memory, tmp_path / name) for name in ("a", "a", "b"))
    for _ in range(3):
        elsewhere.allocate(1)

    def overtaken(name: str) -> bytes:
        monkeypatch.undo()
        data = memory.get(name)
        fast._log.sync()
        return data

    monkeypatch.setattr(memory, "get", overtaken)
    slow._log.sync()
    assert manifest.next_sequence() == 4
    assert manifest.allocate(1) == 4


def test_a_copy_that_is_far_behind_catches_up_with_and_without_a_checkpoint(tmp_path: Path) -> None:
    memory = Memory()
    (_, ahead), (behind, manifest), (other, late) = (machine(memory, tmp_path / name) for name in "abc")
    ahead.allocate(1)
    for copy in (behind, other):
        copy._log.sync()
    for _ in range(10):
        ahead.allocate(1)
    behind._log.sync()
    assert manifest.next_sequence() == 12
    memory.delete(memory.names(f"checkpoints/{store_of(memory)}"))
    other._log.sync()
    assert late.next_sequence() == 12
    assert late.allocate(1) == 12


def test_every_fate_of_a_put_is_met_by_a_machine_that_keeps_trying(tmp_path: Path) -> None:
    seed = 11
    print("seed", seed)
    chance = random.Random(seed)
    memory = Memory()
    machines = [
        copy_of(Bucket("memory://store", memory, patience=30.0), tmp_path / name, CloudSettings(tmp_path, 1.0, 30.0))
        for name in "ab"
    ]
    given: list[int] = []
    for _ in range(150):
        memory.fates = chance.choices(FATES, k=chance.randrange(3))
        given.append(machines[chance.randrange(2)][1].allocate(1))
        memory.fates = []
        if chance.random() < 0.3:
            memory.arrive()
    assert given == list(range(1, 151))
    assert min(memory.outcomes[fate] for fate in FATES) > 5
    fresh = copy_of(Bucket("memory://store", memory, 1.0), tmp_path / "c", CloudSettings(tmp_path, 1.0, 1.0))[1]
    assert fresh.next_sequence() == 151
    for copy, manifest in machines:
        copy._log.sync()
        assert state(manifest) == state(fresh)


def test_who_asks_for_news_now_waits_for_a_thread_that_is_getting_them(tmp_path: Path) -> None:
    memory = Memory()
    (reader, manifest), (_, elsewhere) = (machine(memory, tmp_path / name) for name in "ab")
    elsewhere.allocate(1)
    with ThreadPoolExecutor(1) as threads, reader._log._looking:
        asked = threads.submit(reader.refresh, now=True)
        with pytest.raises(TimeoutError):
            asked.result(0.05)
    asked.result()
    assert manifest.next_sequence() == 2


def test_a_list_that_was_made_while_entries_were_put_may_lack_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    (reader, manifest), (_, elsewhere) = (machine(memory, tmp_path / name) for name in "ab")
    for _ in range(3):
        elsewhere.allocate(1)
    names = memory.names
    monkeypatch.setattr(memory, "names", lambda prefix, after="": names(prefix, after)[-1:])
    reader._log.sync()
    assert manifest.next_sequence() == 4


def test_a_store_that_was_deleted_takes_no_more_and_leaves_the_next_one_alone(tmp_path: Path) -> None:
    memory = Memory()
    old, manifest = machine(memory, tmp_path / "a")
    assert manifest.allocate(5) == 1
    memory.objects.clear()
    _, anew = machine(memory, tmp_path / "b")
    assert manifest.allocate(5) == 6, "it does not know yet"
    assert [anew.allocate(2), anew.allocate(2)] == [1, 3]
    for is_begun_anew in (True, False):
        if not is_begun_anew:
            memory.delete(["fletcher.json"])
        old._log.look_for_store()
        with pytest.raises(StoreError, match="memory://store was deleted while this process used it"):
            manifest.allocate(1)
    assert anew.allocate(1) == 5


def test_a_run_finds_out_by_itself_that_its_store_was_deleted(tmp_path: Path) -> None:
    memory = Memory()
    old, manifest = machine(memory, tmp_path / "a")
    manifest.add_generation("g", "docs", 1.0)
    old._session.take("g--p", "run")
    memory.objects.clear()
    ends = time.monotonic() + 20
    with pytest.raises(StoreError, match="was deleted"):  # noqa: PT012
        while time.monotonic() < ends:
            manifest.allocate(1)
            time.sleep(0.01)
    old._session.close()


@pytest.mark.parametrize("name", ["fletcher.json", "log/{}/0000000005.json", "checkpoints/{}/0000000004.json.gz"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\x1f\x8b\x08\x00", gzip.compress(b"{}"), None])
def test_a_damaged_object_is_named_and_nothing_of_it_is_applied(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    memory = Memory()
    _, manifest = machine(memory, tmp_path / "a")
    for _ in range(5):
        manifest.allocate(1)
    name = name.format(store_of(memory))
    memory.objects[name] = memory.objects[name][:-3] if damage is None else damage
    with pytest.raises(StoreError, match=rf"{name}.* (is damaged|does not follow)"):
        machine(memory, tmp_path / "b")
    if name.startswith("checkpoints"):
        memory.delete([name])
        assert machine(memory, tmp_path / "c")[1].next_sequence() == 6


def test_a_put_that_may_not_be_read_back_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    _, manifest = machine(memory, tmp_path / "a")

    def refuse(name: str) -> bytes:
        raise ObjectRefused("AccessDenied")

    monkeypatch.setattr(memory, "get", refuse)
    memory.fates = ["failed"]
    with pytest.raises(StoreError, match="refuses to get 'log/"):
        manifest.allocate(1)


def test_a_run_that_was_replaced_while_it_made_a_generation_makes_none(tmp_path: Path) -> None:
    memory = Memory()
    (paused, manifest), (other, elsewhere) = (machine(memory, tmp_path / name) for name in "ab")
    for copy in (paused, other):
        copy._session._ended.set()  # neither renews what it holds
    with paused.lock("store.lock", "the store").held("the paused run"):
        with other.lock("store.lock", "the store").held("the other"):
            elsewhere.add_generation("g2", "docs", 2.0)
        with pytest.raises(StoreLockedError, match="took store over"):
            manifest.add_generation("g1", "docs", 1.0)
    assert manifest.generations("docs") == ["g2"]

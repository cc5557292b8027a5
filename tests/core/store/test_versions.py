"""Files of a newer version: refused by name, and left exactly as they are. Files without a version are read."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_contents import check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.errors import StoreError
from fletcher_core.store import ledger
from fletcher_core.store.ledger import refresh_ledger
from fletcher_core.store.segments import read_footer

ROW: dict[str, str | None] = {"id": "q", "reason": "nan", "message": "m", "content_hash": "h"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a compacted and a fresh segment file, garbage of neither, and a quarantined row."""
    with open_store(tmp_path / "store") as store:
        generation = generation_of(store)
        write(generation, "", {"a": "one", "b": "two"})
        write(generation, "", {"a": "three"})
        generation.compact("")
        write(generation, "", {"c": "four"})
        store.quarantine.write([ROW], run_id="1")
    return tmp_path / "store"


def rewrite(path: Path, key: str, change: Callable[[dict[str, object]], object]) -> None:
    """Changes what a Parquet file says of itself."""
    with pq.ParquetFile(path) as file:
        table, described = file.read(), file.metadata.metadata or {}
    facts = json.loads(described[key.encode()])
    change(facts)
    pq.write_table(table.replace_schema_metadata({key: json.dumps(facts)}), path)


def newer(facts: dict[str, object]) -> None:
    facts["version"] = 7


def unversioned(facts: dict[str, object]) -> None:
    assert facts.pop("version") == 1


def contents(root: Path) -> dict[str, bytes]:
    """Every file that holds data, byte for byte."""
    kept = (path for path in root.rglob("*") if path.is_file() and "locks" not in path.parts)
    return {str(path): path.read_bytes() for path in kept if not path.name.startswith("manifest.sqlite")}


def lose_manifest(root: Path) -> None:
    for path in root.glob("manifest.sqlite*"):
        path.unlink()


def one(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[-1]


def refused(root: Path, file: Path) -> None:
    """Opening is refused, twice, in words that name the file and its version; nothing in the store has changed."""
    before = contents(root)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"version 7.*reads up to version 1.*Upgrade Fletcher") as caught:
            open_store(root)
        assert str(file) in str(caught.value)
    assert contents(root) == before


def test_a_store_whose_manifest_is_newer_is_left_alone(root: Path) -> None:
    leftover = root / "sequence_floor.abc.tmp"
    leftover.write_bytes(b"of the newer Fletcher")
    with sqlite3.connect(root / "manifest.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    refused(root, root / "manifest.sqlite")
    with sqlite3.connect(root / "manifest.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert connection.execute("SELECT count(*) FROM segments").fetchone()[0] > 1
    connection.close()


@pytest.mark.parametrize(
    ("pattern", "key"),
    [("*/schema.parquet", "fletcher.generation"), ("*/segments/_/*.parquet", "fletcher.segment")],
)
def test_a_lost_manifest_is_not_rebuilt_from_newer_files(root: Path, pattern: str, key: str) -> None:
    file = one(root, pattern)
    rewrite(file, key, newer)
    lose_manifest(root)
    refused(root, file)
    rewrite(file, key, unversioned_of_newer)
    with open_store(root) as store:
        assert set(live_texts(generation_of(store)).values()) == {"two", "three", "four"}


def unversioned_of_newer(facts: dict[str, object]) -> None:
    assert facts.pop("version") == 7


def test_a_newer_generation_is_refused_while_the_manifest_knows_it(root: Path) -> None:
    file = one(root, "*/schema.parquet")
    rewrite(file, "fletcher.generation", newer)
    refused(root, file)


def test_recovery_neither_adopts_a_newer_file_nor_deletes_what_it_took_over(root: Path) -> None:
    """A newer Fletcher compacted and died before the manifest knew: its inputs must stay, the file must stay."""
    folder = one(root, "*/segments/_")
    inputs = sorted(folder.glob("*.parquet"))
    merged = folder / "seg-0000000009-00000000.parquet"
    merged.write_bytes(inputs[-1].read_bytes())

    def takes_over(facts: dict[str, object]) -> None:
        newer(facts)
        facts["inputs"] = [path.name for path in inputs]

    rewrite(merged, "fletcher.segment", takes_over)
    (folder / "seg-x.parquet.abc.tmp").write_bytes(b"half a file")
    refused(root, merged)


def test_a_newer_quarantine_is_neither_read_nor_added_to_nor_dropped(root: Path) -> None:
    file = one(root, "quarantine/*/*/*.parquet")
    rewrite(file, "fletcher.quarantine", newer)
    before = contents(root)
    with open_store(root) as store:
        for attempt in (
            lambda: store.quarantine.read(),
            lambda: store.quarantine.write([ROW], run_id="2"),
            lambda: store.quarantine.retain("", "2"),
        ):
            with pytest.raises(StoreError, match=r"version 7.*Upgrade Fletcher") as caught:
                attempt()
            assert str(file) in str(caught.value)
    assert contents(root) == before


def test_a_damaged_quarantine_file_is_named_and_kept(root: Path) -> None:
    file = one(root, "quarantine/*/*/*.parquet")
    file.write_bytes(b"PAR1 no more")
    with open_store(root) as store:
        for attempt in (lambda: store.quarantine.read(), lambda: store.quarantine.retain("", "2")):
            with pytest.raises(StoreError, match=r"is damaged .* move it away") as caught:
                attempt()
            assert str(file) in str(caught.value)
    assert file.exists()


def test_files_of_the_first_fletcher_which_have_no_version_are_read(root: Path) -> None:
    rewrite(one(root, "*/schema.parquet"), "fletcher.generation", unversioned)
    for file in root.glob("*/segments/_/*.parquet"):
        rewrite(file, "fletcher.segment", unversioned)
    quarantined = one(root, "quarantine/*/*/*.parquet")
    pq.write_table(pq.read_table(quarantined), quarantined)
    os.rename(quarantined, quarantined.with_name("rows-1764195000000000000-abcdef01.parquet"))
    lose_manifest(root)
    with open_store(root) as store:
        check_invariants(store)
        assert set(live_texts(generation_of(store)).values()) == {"two", "three", "four"}
        store.quarantine.write([ROW | {"reason": "norm"}], run_id="2")
        assert store.quarantine.read().select(["reason", "attempts"]).to_pylist() == [{"reason": "norm", "attempts": 2}]
    with sqlite3.connect(root / "manifest.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    with open_store(root) as store:
        assert len(live_texts(generation_of(store))) == 3


@pytest.mark.parametrize("version", ["1", 0, -1, None, 1.5])
def test_a_version_that_is_none_is_damage(root: Path, version: object) -> None:
    file = one(root, "*/segments/_/*.parquet")
    rewrite(file, "fletcher.segment", lambda facts: facts.update(version=version))
    with pytest.raises(StoreError, match="damaged"):
        read_footer(file)


def test_a_newer_ledger_is_passed_over_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_MIN_ROWS", 1)
    with open_store(root) as store:
        generation = generation_of(store)
        file = root / generation.name / "ledger" / "_.parquet"
        with monkeypatch.context() as later:
            later.setattr(ledger, "LEDGER_VERSION", 7)
            refresh_ledger(root, file, generation.segments(""))
        before = file.read_bytes()
        write(generation, "", {"d": "five"})
        generation.refresh_ledger("")
        monkeypatch.setattr(ledger, "_MIN_ROWS", 1000)
        generation.refresh_ledger("")
        assert file.read_bytes() == before
        assert file.name not in generation.ledger_sql("")

"""The ledger says what the segments say, whatever happens to either."""

import hashlib
import os
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from store_contents import generation_of, open_store, write
from test_store_model import PARTITIONS, StoreHistory

from fletcher_core.errors import StoreError
from fletcher_core.store import Generation, VectorStore, ledger
from fletcher_core.store.ledger import number, text_form


@pytest.fixture(autouse=True)
def _for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_MIN_ROWS", 2)


@pytest.fixture
def written(generation: Generation) -> Generation:
    """Three texts, and their ledger."""
    write(generation, "", {"a": "one", "b": "two", "c": "three"})
    generation.refresh_ledger("")
    assert ledger_file(generation).exists()
    return generation


def ledger_file(generation: Generation) -> Path:
    return generation.root / generation.name / "ledger" / "_.parquet"


def compared(generation: Generation, partition_key: str = "") -> dict[str, tuple[str, int]]:
    """Hash in text form and sequence by id, as change detection gets them."""
    columns = f"id, {text_form('content_hash')}, sequence"
    rows = duckdb.execute(f"SELECT {columns} FROM ({generation.ledger_sql(partition_key)})").fetchall()
    assert len({row_id for row_id, *_ in rows}) == len(rows)
    return {row_id: (content_hash, sequence) for row_id, content_hash, sequence in rows}


def live(generation: Generation, partition_key: str = "") -> dict[str, tuple[str, int]]:
    """The same from the segments."""
    select = f"SELECT id, content_hash, sequence FROM ({generation.live_sql(partition_key)})"
    return {row_id: (content_hash, sequence) for row_id, content_hash, sequence in duckdb.execute(select).fetchall()}


def is_used(generation: Generation) -> bool:
    return str(ledger_file(generation)) in generation.ledger_sql("")


@given(st.text())
def test_a_number_is_md5_number_and_comes_back_as_text(text: str) -> None:
    made = hashlib.md5(text.encode()).hexdigest()
    query = f"SELECT {number('$1')} = CAST(md5_number($2) AS UUID), {text_form(number('$1'))}"
    assert duckdb.execute(query, [made, text]).fetchall() == [(True, made)]


@pytest.mark.parametrize("other", ["", "h", "g" * 32, None])
def test_what_is_no_md5_is_null(other: str | None) -> None:
    assert duckdb.execute(f"SELECT {number('CAST($1 AS VARCHAR)')}", [other]).fetchall() == [(None,)]


def test_later_segments_are_read_beside_the_ledger(written: Generation) -> None:
    before = ledger_file(written).read_bytes()
    write(written, "", {"a": "ONE", "b": None, "d": "four"})
    assert is_used(written)
    assert compared(written) == live(written)
    assert set(compared(written)) == {"a", "c", "d"}
    assert ledger_file(written).read_bytes() == before


def test_it_is_made_anew_when_much_is_missing_in_it(written: Generation) -> None:
    write(written, "", {name: name for name in "defg"})
    written.refresh_ledger("")
    (rows,) = duckdb.execute(f"SELECT count(*) FROM '{ledger_file(written)}'").fetchall()[0]
    assert rows == 7
    assert compared(written) == live(written)


def test_compaction_of_what_it_was_made_of_makes_it_anew(written: Generation) -> None:
    write(written, "", {"a": None})
    with mock.patch.object(ledger, "_write"):  # killed before
        written.compact("")
        assert not is_used(written)
        assert compared(written) == live(written)
    written.refresh_ledger("")
    assert is_used(written)
    assert set(compared(written)) == {"b", "c"}


def test_a_segment_that_is_gone_or_replaced_is_not_believed_from_the_ledger(written: Generation) -> None:
    (file,) = written.files()
    file.write_bytes(file.read_bytes()[:-9])
    assert not is_used(written)
    file.unlink()
    assert not is_used(written)
    with written.locked("", "recovery"):
        assert compared(written) == {}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100])
def test_a_damaged_ledger_is_not_read_and_made_anew(written: Generation, content: bytes) -> None:
    ledger_file(written).write_bytes(content)
    assert not is_used(written)
    assert compared(written) == live(written)
    written.refresh_ledger("")
    assert is_used(written)
    assert compared(written) == live(written)


def test_a_ledger_of_another_version_is_not_read(written: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LEDGER_VERSION", 2)
    assert not is_used(written)
    assert compared(written) == live(written)


def test_a_store_without_ledger_gets_one(written: Generation) -> None:
    ledger_file(written).unlink()
    ledger_file(written).parent.rmdir()
    assert compared(written) == live(written)
    written.compact_if_needed("")
    assert is_used(written)


def test_a_small_partition_has_none(generation: Generation) -> None:
    write(generation, "", {"a": "one"})
    generation.refresh_ledger("")
    assert not ledger_file(generation).exists()
    assert compared(generation) == live(generation)


def test_a_dropped_partition_has_none(written: Generation) -> None:
    written.drop("")
    assert not ledger_file(written).exists()
    assert compared(written) == {}


class _Killed(BaseException):
    pass


def test_being_killed_while_it_is_made_leaves_the_old_one(store: VectorStore, written: Generation) -> None:
    before = ledger_file(written).read_bytes()
    write(written, "", {name: name for name in "defg"})
    with mock.patch.object(os, "rename", side_effect=_Killed), pytest.raises(_Killed):
        written.refresh_ledger("")
    assert ledger_file(written).read_bytes() == before
    assert os.listdir(ledger_file(written).parent) == ["_.parquet"]
    assert compared(written) == live(written)
    with open_store(store.root) as again:
        generation_of(again).refresh_ledger("")
        assert not any((store.root / "work").iterdir())
        assert compared(generation_of(again)) == live(written)


def test_a_folder_that_cannot_be_written_is_named(written: Generation) -> None:
    ledger_file(written).unlink()
    with (
        mock.patch.object(os, "rename", side_effect=PermissionError("no")),
        pytest.raises(StoreError, match=r"cannot write '.*_\.parquet'"),
    ):
        written.refresh_ledger("")


def test_many_small_runs_keep_files_few_and_the_ledger_is_seldom_made(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(generation, "", {f"id{n}": f"{n}" * 50 for n in range(10_000)})
    generation.refresh_ledger("")
    made: list[Any] = []
    real = ledger._write
    monkeypatch.setattr(ledger, "_write", lambda *arguments: (made.append(arguments), real(*arguments)))
    for run in range(40):
        write(generation, "", {f"id{run * 7 + n}": f"text {run}" for n in range(10)})
        generation.compact_if_needed("", max_segments=4)
        assert len(generation.files()) <= 4
        assert is_used(generation)
    assert len(made) <= 2
    assert compared(generation) == live(generation)


class LedgerHistory(StoreHistory):
    """`StoreHistory`, and a ledger that is made at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.object(ledger, "_MIN_ROWS", 2)
        self.patch.start()

    @rule(partition_key=PARTITIONS)
    def refresh(self, partition_key: str) -> None:
        self.generation.refresh_ledger(partition_key)

    @invariant()
    def the_ledger_says_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        for partition_key in {key for key, _ in self.expected} | set(self.generation.partitions()):
            found = compared(self.generation, partition_key)
            assert found == live(self.generation, partition_key)
            assert {row_id: content for row_id, (content, _) in found.items()} == {
                row_id: hashlib.md5(text.encode()).hexdigest()
                for (key, row_id), text in self.expected.items()
                if key == partition_key
            }

    def teardown(self) -> None:
        super().teardown()
        self.patch.stop()


LedgerHistory.TestCase.settings = settings(
    max_examples=6, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerHistory = LedgerHistory.TestCase

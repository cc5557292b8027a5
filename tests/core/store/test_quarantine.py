"""Rows that could not be embedded."""

import pyarrow as pa
import pytest

from fletcher_core.errors import StoreError
from fletcher_core.store import VectorStore
from fletcher_core.store.quarantine import SCHEMA


def row(row_id: str | None, reason: str = "nan", content_hash: str | None = "h") -> dict[str, str | None]:
    return {"id": row_id, "reason": reason, "message": f"{reason} in {row_id}", "content_hash": content_hash}


def test_an_empty_quarantine_can_be_read(store: VectorStore) -> None:
    assert store.quarantine.read().equals(SCHEMA.empty_table())
    store.quarantine.write([], run_id="r")
    store.quarantine.retain("", "r")
    assert store.quarantine.read("p").num_rows == 0


def test_rows_are_kept_with_run_partition_and_time(store: VectorStore) -> None:
    store.quarantine.write([row("a"), row("b", content_hash=None)], run_id="run 1", partition_key="p/q")
    store.quarantine.write(pa.Table.from_pylist([row("a")]), run_id="run 1", partition_key="other")
    found = store.quarantine.read()
    assert found.schema.equals(SCHEMA)
    assert found.select(["partition_key", "id", "reason", "message", "run_id", "attempts"]).to_pylist()[1:] == [
        {"partition_key": "p/q", "id": i, "reason": "nan", "message": f"nan in {i}", "run_id": "run 1", "attempts": 1}
        for i in ("a", "b")
    ]
    assert store.quarantine.read("p/q")["id"].to_pylist() == ["a", "b"]


def test_attempts_count_runs_on_the_same_content(store: VectorStore) -> None:
    for run in ("1", "2", "3"):
        store.quarantine.write([row("a"), row("b", content_hash=run)], run_id=run)
    store.quarantine.write([row("a", reason="norm")], run_id="3")
    found = {entry["id"]: entry for entry in store.quarantine.read().to_pylist()}
    assert (found["a"]["attempts"], found["b"]["attempts"]) == (3, 1)
    assert found["a"]["reason"] == "norm"


def test_a_complete_run_drops_what_earlier_runs_put_in_its_partition(store: VectorStore) -> None:
    store.quarantine.write([row("a"), row("b")], run_id="1", partition_key="p")
    store.quarantine.write([row("a")], run_id="1", partition_key="q")
    store.quarantine.write([row("a")], run_id="2", partition_key="p")
    store.quarantine.retain("p", "2")
    assert store.quarantine.read("p").select(["id", "attempts"]).to_pylist() == [{"id": "a", "attempts": 2}]
    assert store.quarantine.read("q").num_rows == 1
    store.quarantine.write([row("a")], run_id="3", partition_key="p")
    assert store.quarantine.read("p")["attempts"].to_pylist() == [3]


def test_collections_have_quarantines_of_their_own(store: VectorStore) -> None:
    store.quarantine.write([row("a")], run_id="1")
    assert VectorStore.open(store.root, collection="other").quarantine.read().num_rows == 0


def test_rows_without_the_columns_are_refused(store: VectorStore) -> None:
    with pytest.raises(StoreError, match=r"id.*reason.*message.*content_hash"):
        store.quarantine.write(pa.table({"id": ["a"]}), run_id="1")

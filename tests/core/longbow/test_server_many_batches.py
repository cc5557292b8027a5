"""What the embedded server leaves out when it has many batches is never what was asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.longbow.server.catalog import Catalog
from fletcher_core.longbow.server.dataset import Dataset
from fletcher_core.longbow.server.faults import Faults
from fletcher_core.longbow.server.filters import Filter, may_pass, row_mask
from fletcher_core.longbow.server.stored_batch import StoredBatch

OPERATORS = ("=", "==", "eq", "!=", "neq", ">", "gt", "<", "lt", ">=", "ge", "<=", "le", "like")
texts = st.text("ab\u00e9\U0001f600", max_size=3)
filters = st.lists(st.builds(Filter, st.sampled_from(["segment", "other"]), st.sampled_from(OPERATORS), texts))


@given(st.lists(texts | st.none(), min_size=1, max_size=5), filters)
def test_a_batch_is_passed_over_only_if_none_of_its_rows_passes(values: list[str | None], chosen: list[Filter]) -> None:
    table = pa.table({"segment": pa.array(values, pa.string()), "other": pa.array(values[::-1], pa.string())})
    batch = StoredBatch(1, table, set(), 0.0, False, True)
    if not may_pass(batch.text_range, chosen):
        assert not row_mask(table, chosen).any()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Thirty batches of four rows; every third of them has the ids of the first again."""
    schema = pa.schema(
        [("id", pa.uint64()), ("segment", pa.string()), ("vector", pa.list_(pa.float32(), 2))],
    )
    catalog = Catalog(tmp_path)
    made = Dataset("rows", catalog.create_dataset("rows", schema), schema, catalog)
    for number in range(30):
        ids = np.arange(4, dtype=np.uint64) + np.uint64(0 if number % 3 == 0 else 4 * number)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 2)
        rows = pa.table({"id": ids, "segment": [f"seg-{number:02d}"] * 4, "vector": vectors}, schema=schema)
        made.append(catalog.next_put(), rows, Faults())
    return made


def test_a_scan_of_some_segments_looks_at_no_other_batch(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def counted(table: pa.Table, chosen: list[Filter]) -> np.ndarray:
        looked_at.append(table["segment"][0].as_py())
        return row_mask(table, chosen)

    monkeypatch.setattr("fletcher_core.longbow.server.dataset.row_mask", counted)
    found = dataset.scan([Filter("segment", ">=", "seg-07"), Filter("segment", "<=", "seg-09")], Faults(), ["id"])
    assert found.num_rows == 12
    assert looked_at == ["seg-07", "seg-08", "seg-09"]


def test_a_delete_hits_the_newest_copy_and_asks_no_batch_without_it(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    newest_row = StoredBatch.newest_row

    def counted(self: StoredBatch, identifier: str) -> int | None:
        asked.append(self.number)
        return newest_row(self, identifier)

    monkeypatch.setattr(StoredBatch, "newest_row", counted)
    assert dataset.delete("2", Faults())
    assert dataset.delete(str(4 * 29 + 1), Faults())
    assert not dataset.delete("1000", Faults())
    assert not dataset.delete("two", Faults())
    assert len(asked) == 2
    live = dataset.scan([], Faults())
    assert live.num_rows == 118
    assert live["segment"].to_pylist().count("seg-27") == 3
    assert dataset.index_length(Faults()) == 120
    assert dataset.index_length(Faults(index_collapse=True)) == 120

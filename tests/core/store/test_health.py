"""Faults in the store's own files are found, counted and named; figures are those of the live rows alone."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_contents import CARD, DIMENSION, METADATA, open_store, upserts, vector, write

from fletcher_core.errors import StoreError
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.health import EXAMPLES, duplicate_ids, vector_health
from fletcher_core.store.statistics import record_statistics
from fletcher_core.store.versions import NewerVersionError

UNIT = [0.5, 0.5, 0.5, 0.5]


def put(generation: Generation, vectors: dict[str, list[float]], partition_key: str = "p") -> None:
    """Rows with these very vectors."""
    rows = upserts({row_id: row_id for row_id in vectors})
    flat = pa.array(np.array(list(vectors.values()), np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, DIMENSION)
    generation.write_segment(partition_key, rows.set_column(rows.column_names.index("vector"), "vector", column), "run")


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes rows of a segment file behind the store's back."""
    with pq.ParquetFile(file) as opened:
        footer, table = opened.schema_arrow.metadata, opened.read()
    pq.write_table(change(table).replace_schema_metadata(footer), file)


def test_sound_vectors_have_no_fault_and_the_right_figures(generation: Generation) -> None:
    put(generation, {"a": UNIT, "b": [1, 0, 0, 0], "c": [0, 0, 0, 1]})
    found = vector_health(generation, "p")
    assert (found.rows, found.sound, found.is_sample) == (3, 3, False)
    assert [found.wrong_dimension.rows, found.not_finite.rows, found.off_unit.rows] == [0, 0, 0]
    assert [found.norm_min, found.norm_mean, found.norm_max] == [1, 1, 1]
    assert np.allclose(found.mean, [0.5, 1 / 6, 1 / 6, 0.5])


def test_each_fault_is_counted_with_its_ids_and_left_out_of_the_figures(generation: Generation) -> None:
    nan, inf = float("nan"), float("inf")
    put(generation, {"a": UNIT, "nan": [nan, 0, 0, 0], "inf": [0, -inf, 0, 0], "long": [2, 0, 0, 0], "0": [0, 0, 0, 0]})
    found = vector_health(generation, "p")
    assert (found.not_finite.rows, set(found.not_finite.ids)) == (2, {"nan", "inf"})
    assert (found.off_unit.rows, set(found.off_unit.ids)) == (2, {"long", "0"})
    assert (found.sound, found.norm_min, found.norm_max) == (3, 0, 2)
    assert np.allclose(found.mean, np.array([2.5, 0.5, 0.5, 0.5]) / 3)


def test_large_but_finite_elements_are_no_infinities(generation: Generation) -> None:
    put(generation, {"large": [1e30, 0, 0, 0]})
    found = vector_health(generation, "p")
    assert (found.not_finite.rows, found.off_unit.ids) == (0, ("large",))
    assert found.norm_max == pytest.approx(1e30)


def test_a_file_of_another_dimension_and_null_elements_are_found(generation: Generation) -> None:
    put(generation, {"a": UNIT})
    put(generation, {"b": UNIT, "c": UNIT})
    column = pa.array([[0.5] * 3, [0.5, None, 0.5, 0.5]], pa.list_(pa.float32()))
    rewrite(generation.files("p")[1], lambda table: table.set_column(table.num_columns - 1, "vector", column))
    found = vector_health(generation, "p")
    assert (found.rows, found.wrong_dimension.ids, found.not_finite.ids, found.sound) == (3, ("b",), ("c",), 1)


def test_a_vector_that_is_null_has_the_wrong_dimension(generation: Generation) -> None:
    put(generation, {"a": UNIT, "b": UNIT})
    column = pa.array([UNIT, None], pa.list_(pa.float32(), DIMENSION))
    rewrite(generation.files("p")[0], lambda table: table.set_column(table.num_columns - 1, "vector", column))
    assert vector_health(generation, "p").wrong_dimension.ids == ("b",)


def test_only_live_rows_of_the_partition_count(generation: Generation) -> None:
    write(generation, "p", {"a": "one", "b": "two", "c": "three"})
    write(generation, "p", {"a": "another", "b": None})
    write(generation, "q", {"d": "elsewhere"})
    found = vector_health(generation, "p")
    assert found.rows == 2
    assert np.allclose(found.mean, np.mean([vector("another"), vector("three")], axis=0))
    assert vector_health(generation, "none").rows == 0
    assert np.isnan(vector_health(generation, "none").norm_mean)


def test_the_tolerance_is_that_of_the_stored_type_unless_given(store: VectorStore) -> None:
    vectors = {"a": [1.0005, 0, 0, 0]}
    halves = store.generation(CARD, METADATA, "float16")
    put(halves, vectors)
    assert vector_health(halves, "p").off_unit.rows == 0
    assert vector_health(halves, "p", tolerance=1e-5).off_unit.rows == 1
    floats = store.generation(CARD, METADATA)
    put(floats, vectors)
    assert vector_health(floats, "p").off_unit.rows == 1


def test_a_sample_reads_whole_row_groups_and_says_so(generation: Generation) -> None:
    for n in range(10):
        put(generation, {f"{n}-{i}": UNIT for i in range(3)})
    found = vector_health(generation, "p", sample_rows=7, seed=1)
    assert (found.rows, found.is_sample) == (9, True)
    assert not vector_health(generation, "p", sample_rows=30).is_sample


def test_no_more_than_a_few_ids_are_kept(generation: Generation) -> None:
    for part in range(2):
        put(generation, {f"{part}{n}": [2, 0, 0, 0] for n in range(4)})
    fault = vector_health(generation, "p").off_unit
    assert (fault.rows, len(fault.ids)) == (8, EXAMPLES)


def test_duplicates_are_found_across_segments_of_a_partition(generation: Generation) -> None:
    put(generation, {"a": UNIT, "b": UNIT})
    put(generation, {"a": UNIT})
    put(generation, {"a": UNIT})
    put(generation, {"b": UNIT}, "q")
    assert (duplicate_ids(generation, ["p"])["p"].rows, duplicate_ids(generation, ["p"])["p"].ids) == (2, ("a",))
    assert duplicate_ids(generation, ["q"])["q"].rows == 0


def test_a_replaced_row_is_no_duplicate(generation: Generation) -> None:
    write(generation, "p", {"a": "one"})
    write(generation, "p", {"a": "two"})
    assert duplicate_ids(generation, ["p"])["p"].rows == 0


def test_a_damaged_file_is_named(generation: Generation) -> None:
    write(generation, "p", {"a": "one"})
    (file,) = generation.files("p")
    file.write_bytes(b"no parquet")
    for examine in (vector_health, duplicate_ids):
        with pytest.raises(StoreError, match=file.name):
            examine(generation, "p")


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generation]:
    """For many small examples, each of which drops what the last one left."""
    with open_store(tmp_path_factory.mktemp("store")) as store:
        yield store.generation(CARD, METADATA)


_ELEMENTS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(_ELEMENTS, min_size=DIMENSION, max_size=DIMENSION), min_size=1, max_size=12))
def test_figures_agree_with_numpy(one_store: Generation, vectors: list[list[float]]) -> None:
    one_store.drop("p")
    put(one_store, {str(n): row for n, row in enumerate(vectors)})
    found = vector_health(one_store, "p")
    expected: npt.NDArray[np.float64] = np.array(vectors, np.float32).astype(np.float64)
    finite = expected[np.isfinite(expected).all(axis=1)]
    assert found.not_finite.rows == len(expected) - len(finite)
    if len(finite):
        norms = np.sqrt(np.square(finite).sum(axis=1))
        assert np.allclose([found.norm_min, found.norm_max], [norms.min(), norms.max()], rtol=1e-5, atol=1e-19)
        assert found.off_unit.rows == (np.abs(norms - 1) > 1e-4).sum()
        assert np.allclose(found.mean, finite.mean(axis=0), rtol=1e-6)


# Statistics of runs


def recorded(generation: Generation, run_id: str) -> tuple[str, float, float] | None:
    moved = record_statistics(generation, vector_health(generation, "p"), run_id)
    return moved and (moved.since, moved.distance, moved.norm_change)


def turn(generation: Generation, to: list[float]) -> None:
    """Gives the partition another only vector."""
    generation.drop("p")
    put(generation, {"a": to})


def test_a_run_is_compared_with_the_last_other_run(generation: Generation) -> None:
    turn(generation, [1, 0, 0, 0])
    assert recorded(generation, "first") is None
    assert recorded(generation, "second") == ("first", 0, 0)
    turn(generation, [0, 2, 0, 0])
    for _ in range(2):  # a second try of a run is not compared with its first
        assert recorded(generation, "third") == ("second", 1, 1)
    assert recorded(generation, "fourth") == ("third", 0, 0)


def test_an_empty_partition_keeps_what_was_known(generation: Generation) -> None:
    turn(generation, [1, 0, 0, 0])
    recorded(generation, "first")
    generation.drop("p")
    assert recorded(generation, "second") is None
    turn(generation, [1, 0, 0, 0])
    assert recorded(generation, "third") == ("first", 0, 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b'{"version": 1}', b'{"version": "x", "runs": []}', b'{"version": 1, "runs": [{"mean": []}]}',
     b'{"runs": [{"run_id": "x", "at": 0, "rows": 1, "norm_mean": 1, "mean": [1, 2]}]}',
     b'{"runs": [{"run_id": "x", "at": 0, "rows": 1, "norm_mean": NaN, "mean": [1, 2, 3, 4]}]}'],
)  # fmt: skip
def test_damaged_statistics_are_begun_anew_with_a_warning(
    generation: Generation, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    turn(generation, [1, 0, 0, 0])
    recorded(generation, "first")
    (file,) = (generation.root / "statistics" / generation.name).iterdir()
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert recorded(generation, "second") is None
    assert str(file) in caplog.text
    assert recorded(generation, "third") == ("second", 0, 0)


def test_statistics_of_a_newer_fletcher_are_left_alone(generation: Generation) -> None:
    turn(generation, [1, 0, 0, 0])
    recorded(generation, "first")
    (file,) = (generation.root / "statistics" / generation.name).iterdir()
    newer = b'{"version": 99}'
    file.write_bytes(newer)
    with pytest.raises(NewerVersionError):
        recorded(generation, "second")
    assert file.read_bytes() == newer

"""The demo's near duplicates against comparing every row with every other, one by one."""

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from demo.near_duplicates import duplicates_metadata, near_duplicates


def rows_in_clusters(rows: int, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((5, 16))
    vectors = centres[chance.integers(0, 5, rows)] + chance.standard_normal((rows, 16)) * 0.2
    return (vectors * chance.uniform(0.1, 3, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 60])
@pytest.mark.parametrize("block_rows", [1, 8, 1000])
def test_the_pairs_are_those_of_brute_force(rows: int, block_rows: int) -> None:
    seed = 20 + rows
    vectors = rows_in_clusters(rows, seed)
    if rows > 2:
        vectors[2] = 0
    found = {
        (int(first), int(second)): float(cosine)
        for pairs in near_duplicates(vectors, 0.9, block_rows)
        for first, second, cosine in zip(pairs.first, pairs.second, pairs.cosine, strict=True)
    }
    wide = vectors.astype(np.float64)
    expected = {}
    for first in range(rows):
        for second in range(first + 1, rows):
            lengths = np.linalg.norm(wide[first]) * np.linalg.norm(wide[second])
            if lengths and (cosine := wide[first] @ wide[second] / lengths) >= 0.9:
                expected[first, second] = cosine
    assert found.keys() == expected.keys(), f"seed {seed}"
    assert all(abs(found[pair] - expected[pair]) < 1e-5 for pair in expected)
    assert rows < 60 or 10 < len(expected) < rows * (rows - 1) / 2


def test_the_metadata_counts_pairs_and_shows_the_closest_of_differing_texts() -> None:
    vectors = pa.array([[1, 0], [2, 0], [1, 0.1], [1, 0.25], [0, 1]], pa.list_(pa.float32(), 2))
    metadata = duplicates_metadata(pa.table({"id": ["a", "b", "c", "d", "e"], "vector": vectors}))
    assert (metadata["rows_compared"], metadata["pairs"], metadata["pairs_of_equal_texts"]) == (5, 6, 1)
    table = metadata["examples"]
    assert isinstance(table, dg.TableMetadataValue)
    shown = [tuple(record.data.values()) for record in table.records]
    assert {pair[:2] for pair in shown} == {("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert [pair[2] for pair in shown] == sorted((pair[2] for pair in shown), reverse=True)
    assert shown[-1][2] == pytest.approx(0.9701, abs=1e-4)

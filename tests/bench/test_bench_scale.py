"""The benchmark of scale makes what it says, and docs/scale.md shows what its model computes from what was measured."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
from results import ROOT
from scale import write_tables
from scale_model import MEASURED, Linear, Model, amplification, limits, measured, tables
from scale_steps import TrivialEngine

from fletcher_core.tokens import TokenBatch, cumulative

DIMENSION = 384


@pytest.fixture(scope="module")
def model() -> Model:
    return measured(*(MEASURED / f"scale-{name}.json" for name in ("64", "384", "buckets")))


def test_the_trivial_engine_gives_a_text_one_unit_vector_in_any_batch() -> None:
    engine, random = TrivialEngine(16), np.random.default_rng(3)
    texts = [random.integers(0, 30_000, length).astype(np.int32) for length in (3, 1, 40, 7)] + [np.array([5, 6, 7])]
    texts.append(texts[-1][::-1])  # the order of tokens counts

    def vectors(chosen: list[np.ndarray]) -> np.ndarray:
        batch = TokenBatch(np.concatenate(chosen), cumulative(np.array([len(text) for text in chosen])))
        return next(engine.run([batch]))

    together = vectors(texts)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(vectors([text])[0], together[number])
    assert len(np.unique(together, axis=0)) == len(texts)


def test_the_tables_differ_by_a_hundredth_of_texts_and_a_thousandth_of_rows(tmp_path: Path) -> None:
    rows = 50_000
    write_tables(tmp_path, rows)
    with duckdb.connect() as connection:
        old, new = (f"'{tmp_path / f'texts-{number}.parquet'}'" for number in (1, 2))

        def count(query: str) -> int:
            found: int = connection.execute(query).fetchall()[0][0]
            return found

        assert count(f"SELECT count(DISTINCT id) FROM {old}") == rows
        assert count(f"SELECT count(DISTINCT text) FROM {old}") == pytest.approx(0.95 * rows, rel=0.01)
        assert count(f"SELECT rows - count(*) FROM {new}, (SELECT {rows} AS rows) GROUP BY rows") == pytest.approx(
            50, abs=30
        )
        changed = f"SELECT count(*) FROM {old} a JOIN {new} b USING (id) WHERE a.text <> b.text"
        assert count(changed) == pytest.approx(rows / 100, rel=0.2)


def test_a_cost_of_two_dimensions_gives_that_of_a_third(model: Model) -> None:
    assert Linear(10.0, 2.0).at(384) == 778
    for steps, dimension in ((model.largest, 64), (json.loads((MEASURED / "scale-384.json").read_text()), 384)):
        if dimension == 384:
            steps = {step["name"]: step for step in steps["runs"]["1000000"]}
        places = steps["compact"]["places"]
        measured_bytes = places["segment_bytes"] / places["segment_rows"]
        assert model.place("segment_bytes").at(dimension) == pytest.approx(measured_bytes, rel=0.01)


def test_a_row_is_written_a_logarithmic_number_of_times() -> None:
    assert amplification(1, 0.01, 1) == 1.0  # two files need no merge
    assert amplification(1, 0.01, 64) == 1.0  # files written full are not merged before they are many
    assert [amplification(days, 0.0001, 64) for days in (16, 64, 256)] == [3.5, 4.5, 5.5]  # half a time a doubling


def test_costs_of_a_row_do_not_grow_with_their_number() -> None:
    runs = json.loads((MEASURED / "scale-64.json").read_text())["runs"]
    million, ten = ({step["name"]: step for step in runs[str(rows)]} for rows in (10**6, 10**7))
    for name in ("embed", "again", "deliver", "few", "compact", "again, compacted", "redeliver"):
        each = [
            (steps[name]["cpu"] + steps[name]["server"]["cpu_seconds"]) / steps[name]["rows"]
            for steps in (million, ten)
        ]
        assert each[1] < 1.3 * each[0], name  # the machine was shared, and docs/scale.md says what of it is real


def test_what_breaks_first_comes_first(model: Model) -> None:
    at = [limit.rows for limit in limits(model, DIMENSION)]
    assert at == sorted(at)
    assert all(limit.answer for limit in limits(model, DIMENSION))


@pytest.mark.parametrize("name", ["flatness", "busy", "stages", "workers", "places", "limits", "constants"])
def test_the_document_shows_what_the_model_says(model: Model, name: str) -> None:
    document = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert "\n".join(tables(model, DIMENSION)[name]) in document

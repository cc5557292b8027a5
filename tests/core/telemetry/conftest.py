"""A model of two small layers, and a table to embed with it."""

from pathlib import Path

import duckdb
import pytest

from chaos import tiny_models
from fletcher_core import Embedder
from fletcher_core.sources import DuckDBTable


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert_tiny"
    for name, content in tiny_models.minilm().items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Embedder:
    return Embedder.load(tiny_model, engine="openvino", isolation="none")


@pytest.fixture
def source(tmp_path: Path) -> DuckDBTable:
    """300 rows on two days."""
    path = tmp_path / "db.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE notes AS SELECT i AS id, 'note ' || i || ' about ' || i % 7 AS text, "
            "'day' || i % 2 AS day FROM range(300) t(i)"
        )
    return DuckDBTable(path, "notes", partition_column="day")

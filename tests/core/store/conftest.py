from collections.abc import Iterator
from pathlib import Path

import pytest
from store_contents import generation_of, open_store

from fletcher_core.store import Generation, VectorStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def generation(store: VectorStore) -> Generation:
    return generation_of(store)

"""The resource's budget for vectors in memory."""

import pytest

from fletcher_core.errors import ConfigError
from fletcher_dagster import FletcherResource


def test_a_budget_gives_the_embedder_a_cache_and_none_gives_none() -> None:
    embedder = FletcherResource(store_path="vectors", cache_bytes=2**20).embedder()
    assert embedder.cache is not None
    assert embedder.cache.budget_bytes == 2**20
    assert FletcherResource(store_path="vectors").embedder().cache is None
    with pytest.raises(ConfigError, match="cache_bytes is -1"):
        FletcherResource(store_path="vectors", cache_bytes=-1)

"""A `store_path` on object storage: each asset's store is below the address, and nothing takes it for a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from embedding_project import Project

from fletcher_core.errors import ConfigError
from fletcher_core.store import VectorStore
from fletcher_dagster import FletcherResource, fletcher_assets

ADDRESS = "s3://bucket/vectors"


def test_an_assets_store_is_below_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(VectorStore, "open", lambda place, collection: asked.append((place, collection)))
    monkeypatch.setattr(VectorStore, "exists", lambda place: asked.append(place))
    monkeypatch.setenv("FLETCHER_CLOUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    resource = FletcherResource(store_path=f"{ADDRESS}/")
    resource.store("a/reviews")
    assert resource.outdated_partitions("a/reviews") == set()
    assert asked == [(f"{ADDRESS}/a.reviews", "a.reviews"), f"{ADDRESS}/a.reviews"]
    assert list(tmp_path.iterdir()) == []


def test_the_assets_uri_is_the_stores_address(project: Project) -> None:
    @fletcher_assets(sources=[project.docs()], resource=FletcherResource(store_path=ADDRESS))
    def embeddings(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield

    (spec,) = embeddings.specs
    assert spec.metadata["dagster/uri"].startswith(f"{ADDRESS}/")
    with pytest.raises(ConfigError, match="begins with s3://"):
        fletcher_assets(sources=[project.docs()], resource=FletcherResource(store_path="ftp://host/vectors"))(
            lambda context: iter(())
        )

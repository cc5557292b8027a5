"""A Longbow server for each test process, a Dagster instance and a small project for each test."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from embedding_project import DOCS, Project

from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_dagster import FletcherResource, LongbowResource


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongbowAddress]:
    """The embedded Longbow-compatible server."""
    folder = tmp_path_factory.mktemp("longbow")
    yield ensure_embedded(folder)
    stop_embedded(folder)


@pytest.fixture
def project(tmp_path: Path, server: LongbowAddress) -> Iterator[Project]:
    """Its table `docs` has 6 rows: id, text, day (2 rows a day), language (en, de)."""
    longbow = LongbowResource(data_address=server.data, meta_address=server.meta)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow))
        project.sql(DOCS)
        yield project

"""A run's metrics go where `FletcherResource.metrics` says, whether the run succeeds or fails."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from embedding_project import Project, failure
from prometheus_client.parser import text_string_to_metric_families

from fletcher_core.sources import DuckDBTable
from fletcher_dagster import FletcherResource

Pushes = list[tuple[str, dict[str, float]]]


@pytest.fixture
def gateway() -> Iterator[tuple[str, Pushes]]:
    """The address of a Pushgateway that keeps the path and the samples without labels of each push."""
    pushes: Pushes = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
            pushes.append((self.path, {s.name: s.value for s in samples if not s.labels}))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", pushes
        server.shutdown()


def pushing(project: Project, metrics: str) -> None:
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, metrics=metrics
    )


def test_a_run_is_pushed_under_its_asset_and_counts_what_it_did(project: Project, gateway: tuple[str, Pushes]) -> None:
    address, pushes = gateway
    pushing(project, address)
    assets = project.assets(project.docs())
    assert project.run(assets).success
    assert [path for path, _ in pushes] == ["/metrics/job/fletcher/asset/docs_embeddings"]
    first = pushes[-1][1]
    project.sql("INSERT INTO docs VALUES (7, 'Another text.', '2026-01-03', 'en')")
    assert project.run(assets).success
    assert len(pushes) == 2
    for name, rows in (("fletcher_vectors_total", 1), ("fletcher_batch_tokens_count", 1)):
        assert pushes[-1][1][name] - first[name] == rows


def test_a_run_that_fails_is_pushed_too(project: Project, gateway: tuple[str, Pushes]) -> None:
    address, pushes = gateway
    pushing(project, address)
    failure(project.run(project.assets(DuckDBTable(project.database, table="dosc"))))
    assert [path for path, _ in pushes] == ["/metrics/job/fletcher/asset/dosc_embeddings"]


def test_a_gateway_that_is_down_fails_no_run(project: Project) -> None:
    pushing(project, "http://127.0.0.1:9")
    assert project.run(project.assets(project.docs())).success

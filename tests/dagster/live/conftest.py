"""One Dagster (code server, webserver, daemon) over a small project for all live tests of a process."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from dagster_processes import prepare_home, running
from webserver_client import WebserverClient

from chaos import tiny_models
from fletcher_core.store import VectorStore

DAYS = 60
PAGES = 40_000
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Live:
    """The running Dagster, its instance as Dagster's own Python sees it, and the project's folder."""

    web: WebserverClient
    instance: dg.DagsterInstance
    folder: Path
    days: list[str]

    def rows(self, asset: str) -> dict[str, int]:
        """Rows in the asset's vector store by partition; empty before the first commit."""
        root = self.folder / "vectors" / asset
        if not VectorStore.exists(root):
            return {}
        with VectorStore.open(root, collection=asset) as store:
            return {
                partition: generation.row_count(partition)
                for generation in store.generations()
                for partition in generation.partitions()
            }

    def sql(self, statements: str) -> None:
        with duckdb.connect(str(self.folder / "source.duckdb")) as connection:
            connection.execute(statements)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Tables `docs` (1 to 3 rows on each of the last 60 days) and `pages` (40,200 rows in two books), a file of notes
    (5 rows); the schedule and the sensor are on from the start, so that their minute passes during other tests."""
    folder = tmp_path_factory.mktemp("live")
    for name, content in tiny_models.minilm().items():
        (folder / "model" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "model" / name).write_bytes(content)
    first = datetime.now(UTC).date() - timedelta(days=DAYS)
    days = [str(first + timedelta(days=n)) for n in range(DAYS)]
    with duckdb.connect(str(folder / "source.duckdb")) as connection:
        connection.execute(f"""
            CREATE TABLE docs AS SELECT n * 10 + k AS id, 'note ' || k || ' of day ' || n AS text,
                DATE '{first}' + n::INTEGER AS day FROM range({DAYS}) d(n), range(3) r(k) WHERE k <= n % 3;
            COPY (SELECT n AS id, 'note number ' || n AS text FROM range(5) d(n)) TO '{folder}/notes.parquet';
            CREATE TABLE pages AS SELECT n AS id, CASE WHEN n < 200 THEN 'leaflet' ELSE 'tome' END AS book,
                'Page ' || n || repeat(' tells how the court adjourned until Monday and nobody came.', 5) AS text
                FROM range({PAGES + 200}) d(n);
        """)
    home = folder / "home"
    prepare_home(home)
    variables = {"FLETCHER_LIVE_FOLDER": str(folder), "FLETCHER_LIVE_FIRST_DAY": days[0]}
    with running(home, HERE / "live_project.py", variables) as web:
        web.turn_on_sensor("notes_changed")
        web.turn_on_schedule("every_minute")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Live(web, instance, folder, days)

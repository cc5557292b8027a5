"""One Dagster (code server, webserver, daemon) over a small project for all live tests of a process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from dagster_processes import Dagster, prepare_home, running
from webserver_client import FINISHED, Run, WebserverClient, until

from chaos import tiny_models
from fletcher_core.store import VectorStore

DAYS = 60
PAGES = 40_000
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Live:
    """The running Dagster, its instance as Dagster's own Python sees it, and the project's folder."""

    dagster: Dagster
    instance: dg.DagsterInstance
    folder: Path
    days: list[str]

    @property
    def web(self) -> WebserverClient:
        return self.dagster.web

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

    def sql(self, statements: str, database: str = "source") -> None:
        """Waits as a patient writer does while a sensor or a run reads the file."""

        def written() -> bool | None:
            try:
                with duckdb.connect(str(self.folder / f"{database}.duckdb")) as connection:
                    connection.execute(statements)
            except duckdb.IOException:
                return None
            return True

        until(written, 60)

    def finished_runs(self, count: int, seconds: float = 180, **tags: str) -> list[Run]:
        """The `count` runs with `tags` of Dagster's own, once there are so many and all have ended."""

        def ended() -> list[Run] | None:
            runs = self.web.runs_of(**tags)
            assert len(runs) <= count, runs
            return runs if len(runs) == count and all(run.status in FINISHED for run in runs) else None

        return until(ended, seconds)

    def reason_of_idle_ticks(self, name: str, seconds: float = 120) -> str:
        """The reason why a sensor asks for nothing, once two ticks that begin from now on agree on it."""
        now = time.time()

        def skipped() -> str | None:
            ticks = [tick for tick in self.web.ticks(name) if tick["timestamp"] > now and tick["status"] != "STARTED"]
            assert {tick["status"] for tick in ticks} <= {"SKIPPED"}, ticks
            reasons = [tick["skipReason"] for tick in ticks]
            return reasons[0] if len(reasons) > 1 and reasons[0] == reasons[1] else None

        return until(skipped, seconds)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Tables `docs` (1 to 3 rows on each of the last 60 days) and `pages` (40,200 rows in two books), a file of notes
    (5 rows), and what sensors and schedules watch. An earlier deployment embedded the shelves `b` and `c` and all of
    `portions` by another model, the one that runs now the shelves `e` and `f`. The schedules of a minute are on from
    the start, so that it passes during other tests."""
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
            CREATE TABLE shelves AS SELECT n AS id, chr(97 + n::INTEGER // 2) AS shelf, 'book ' || n AS text
                FROM range(14) d(n);
            CREATE TABLE portions AS SELECT n AS id, 'portion ' || n AS text FROM range(5) d(n);
        """)
    with duckdb.connect(str(folder / "orders.duckdb")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, text VARCHAR)")
    (folder / "tickets").mkdir()
    home = folder / "home"
    prepare_home(home)
    variables = {"FLETCHER_LIVE_FOLDER": str(folder), "FLETCHER_LIVE_FIRST_DAY": days[0]}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        _embed_some(instance, variables)
        with running(home, HERE / "live_project.py", variables) as dagster:
            for schedule in ("notes_schedule", "shelves_catch_up"):
                dagster.web.turn_on_schedule(schedule)
            yield Live(dagster, instance, folder, days)


def _embed_some(instance: dg.DagsterInstance, variables: dict[str, str]) -> None:
    """What was embedded before the processes start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        from live_project import before, portions, shelves, tiny
    for model, first, last in ((before, "b", "c"), (tiny, "e", "f")):
        ends = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        assert dg.materialize([shelves(model)], instance=instance, resources={"tiny": model}, tags=ends).success
    assert dg.materialize([portions(before)], instance=instance, resources={"budgeted": before}).success

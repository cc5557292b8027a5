"""Sensors: what changed in files and tables is asked for once, without reading it, and rests are asked for in turn."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from embedding_project import DAYS, DOCS, LANGUAGES, Project

from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_dagster import (
    FletcherResource,
    LongbowResource,
    build_parquet_sensor,
    build_rest_sensor,
    build_watermark_sensor,
    fletcher_retry_policy,
    fletcher_run_tags,
)

FILES = dg.DynamicPartitionsDefinition(name="tickets")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """As in conftest, without a Longbow to deliver to."""
    longbow = LongbowResource(enabled=False)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow))
        project.sql(DOCS)
        yield project


class Ticks:
    """Ticks of a sensor one after another, each with the cursor of the one before, as the daemon would."""

    def __init__(self, project: Project, sensor: dg.SensorDefinition, assets: dg.AssetsDefinition) -> None:
        self.project = project
        defs = dg.Definitions(assets=[assets], sensors=[sensor], resources={"fletcher": project.fletcher})
        self.repository = defs.get_repository_def()
        self.sensor = self.repository.get_sensor_def(sensor.name)
        self.cursor: str | None = None
        self.known: set[str] = set()
        self.reason: str | None = None

    def evaluate(self) -> Any:
        instance = self.project.instance
        context = dg.build_sensor_context(
            instance,
            cursor=self.cursor,
            repository_def=self.repository,
            instance_ref=instance.get_ref() if instance.is_persistent else None,
        )
        return self.sensor.evaluate_tick(context)

    def __call__(self) -> list[dg.RunRequest]:
        """The runs of the next tick that the daemon would start: those with a run key it has not seen."""
        found = self.evaluate()
        self.cursor = found.cursor or self.cursor
        self.reason = found.skip_message
        for request in found.dynamic_partitions_requests or []:
            self.project.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        new = [request for request in found.run_requests if request.run_key not in self.known]
        self.known |= {request.run_key for request in new}
        return new


def write(project: Project, name: str, *texts: str) -> Path:
    """A file of `tickets/`: a row a text, each with the file's name in `file`."""
    path = project.folder / "tickets" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    rows = ", ".join(f"('{name}-{number}', '{text}', '{name}')" for number, text in enumerate(texts))
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * FROM (VALUES {rows}) t(id, text, file)) TO '{path}' (FORMAT parquet)")
    return path


def tickets(project: Project, **settings: Any) -> ParquetTable:
    return ParquetTable(project.folder / "tickets" / "*.parquet", name="tickets", **settings)


def test_new_changed_and_deleted_files_each_ask_for_one_run(project: Project) -> None:
    write(project, "a", "one")
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project), priority=3), assets)
    (request,) = tick()
    assert request.tags["fletcher/trigger"] == "files"
    assert request.tags["dagster/priority"] == "3"
    assert tick() == []
    assert tick.reason == "none of 1 files changed"
    write(project, "b", "two")
    assert len(tick()) == 1
    write(project, "b", "two", "and three")
    assert len(tick()) == 1
    (project.folder / "tickets" / "a.parquet").unlink()
    assert len(tick()) == 1
    assert tick() == []


def test_a_tick_that_is_repeated_asks_for_the_same_run(project: Project) -> None:
    write(project, "a", "one")
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
    assert len(tick()) == 1
    write(project, "b", "two")
    before = tick.cursor
    assert len(tick()) == 1
    tick.cursor = before  # the daemon died before it kept the cursor
    assert tick() == []


def test_files_that_come_back_as_they_were_ask_again(project: Project) -> None:
    """The run key of an earlier state would be known, and the run never start."""
    write(project, "a", "one")
    b = write(project, "b", "two")
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
    asked = [len(tick())]
    for _ in range(2):
        b.rename(project.folder / "aside")
        asked.append(len(tick()))
        (project.folder / "aside").rename(b)
        asked.append(len(tick()))
    assert asked == [1] * 5


def test_files_are_listed_and_not_read(project: Project) -> None:
    path = write(project, "a", "one")
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
    assert len(tick()) == 1
    facts = path.stat()
    path.write_bytes(b"x" * facts.st_size)  # no Parquet any more, but the listing is as it was
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert tick() == []
    path.write_bytes(b"no Parquet either")
    assert len(tick()) == 1


def test_a_folder_without_files_asks_for_nothing_and_is_not_taken_for_deletion(project: Project) -> None:
    write(project, "a", "one")
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
    tick()
    (project.folder / "tickets").rename(project.folder / "unmounted")
    assert tick() == []
    assert "there is no file at" in (tick.reason or "")
    (project.folder / "unmounted").rename(project.folder / "tickets")
    assert tick() == []


@pytest.fixture
def lasting(project: Project) -> Iterator[Project]:
    """With an instance that Dagster lets look up dynamic partitions while it resolves a tick's requests."""
    (project.folder / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(project.folder / "home")) as instance:
        project.instance = instance
        yield project


def test_each_file_is_a_partition_and_a_run(lasting: Project) -> None:
    project = lasting
    for name in "abc":
        write(project, name, f"text of {name}")
    source = tickets(project, partition_column="file")
    assets = project.assets(source, partitions_def=FILES)
    tick = Ticks(project, build_parquet_sensor(assets, source, max_runs_per_tick=2), assets)
    requests = [*tick(), *tick()]
    assert [request.partition_key for request in requests] == ["a", "b", "c"]
    assert tick() == []
    assert set(project.instance.get_dynamic_partitions("tickets")) == {"a", "b", "c"}
    assert project.run_range(assets, "a", "c").success
    write(project, "b", "another text")
    (project.folder / "tickets" / "c.parquet").unlink()
    changed, gone = tick()
    assert (changed.partition_key, gone.partition_key) == ("b", "c")
    assert project.run(assets, partition_key="c", tags=dict(gone.tags)).success
    assert project.figures("tickets_embeddings", "c")["fletcher/rows_deleted"] == 1
    assert tick() == []


def test_files_that_name_their_partitions_are_asked_for_by_that_name(lasting: Project) -> None:
    """Under another name a run would find no rows, and succeed."""
    write(lasting, "a", "one")
    write(lasting, "b", "two")
    (lasting.folder / "tickets" / "old").mkdir()
    write(lasting, "old/a", "three")
    source = ParquetTable(
        lasting.folder / "tickets" / "**" / "*.parquet", name="tickets", file_column="path", partition_column="path"
    )
    assets = lasting.assets(source, partitions_def=FILES)
    asked = [request.partition_key for request in Ticks(lasting, build_parquet_sensor(assets, source), assets)()]
    assert sorted(map(str, asked)) == ["a.parquet", "b.parquet", "old/a.parquet"] == sorted(source.file_names())
    by_id = build_parquet_sensor(assets, source, partition_key=lambda path: path[-9:], name="by_id")
    assert {request.partition_key for request in Ticks(lasting, by_id, assets)()} == {"a.parquet", "b.parquet"}


def test_the_cursor_does_not_grow_with_the_files(project: Project) -> None:
    assets = project.assets(tickets(project))
    tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
    write(project, "a", "one")
    tick()
    size = len(tick.cursor or "")
    for number in range(30):
        (project.folder / "tickets" / f"file-{number}.parquet").write_bytes(b"")
    assert len(tick()) == 1
    assert len(tick.cursor or "") == size


def test_a_cursor_of_another_sensor_is_a_fresh_start(project: Project) -> None:
    write(project, "a", "one")
    assets = project.assets(tickets(project))
    for cursor in ("42", "null", "[]", "{", '{"states": 1, "epoch": "", "sequence": 0}'):
        tick = Ticks(project, build_parquet_sensor(assets, tickets(project)), assets)
        tick.cursor = cursor
        assert len(tick()) == 1


def test_sensors_refuse_partitions_that_they_cannot_name(project: Project) -> None:
    daily = project.assets(project.docs(partition_column="day"), partitions_def=DAYS)
    with pytest.raises(ConfigError, match="have partitions that are no files"):
        build_parquet_sensor(daily, tickets(project))
    files = project.assets(tickets(project, partition_column="file"), partitions_def=FILES)
    with pytest.raises(ConfigError, match="has no partition_column"):
        build_parquet_sensor(files, tickets(project))
    with pytest.raises(ConfigError, match="max_runs_per_tick is 0"):
        build_parquet_sensor(files, tickets(project, partition_column="file"), max_runs_per_tick=0)
    with pytest.raises(ConfigError, match="build_watermark_sensor"):
        build_parquet_sensor(daily, project.docs())  # type: ignore[arg-type]


def test_the_watermark_asks_when_it_moves_or_rows_go(project: Project) -> None:
    assets = project.assets(project.docs())
    tick = Ticks(project, build_watermark_sensor(assets, project.docs(), watermark_column="id"), assets)
    (request,) = tick()
    assert request.tags["fletcher/trigger"] == "watermark"
    assert tick() == []
    assert tick.reason == "the watermark is where it was, at 6 rows"
    project.sql("INSERT INTO docs VALUES (7, 'Tides follow the moon.', '2026-01-03', 'en')")
    assert len(tick()) == 1
    project.sql("DELETE FROM docs WHERE id = 3")
    assert len(tick()) == 1
    project.sql("DELETE FROM docs")
    assert len(tick()) == 1
    assert tick() == []


def test_a_watermark_that_is_null_equal_or_lower_or_of_another_type_is_compared_as_it_is(project: Project) -> None:
    project.sql("ALTER TABLE docs ADD COLUMN updated TIMESTAMPTZ")
    assets = project.assets(project.docs())
    tick = Ticks(project, build_watermark_sensor(assets, project.docs(), watermark_column="updated"), assets)
    asked = []
    for change in (
        "SELECT 'all are null'",
        "UPDATE docs SET updated = '2026-03-29 12:00:00+02'",
        "UPDATE docs SET updated = '2026-03-29 10:00:00+00'",  # the same moment
        "UPDATE docs SET updated = NULL WHERE id = 1",  # the greatest one stays
        "UPDATE docs SET updated = '2026-03-28 10:00:00+00'",
        "ALTER TABLE docs ALTER updated TYPE DATE",
        "ALTER TABLE docs DROP COLUMN updated; ALTER TABLE docs ADD COLUMN updated INTEGER DEFAULT 1",
    ):
        project.sql(change)
        asked.append(len(tick()))
        assert tick() == []
    assert asked == [1, 1, 0, 0, 1, 1, 1]


def test_the_texts_of_a_table_are_not_read(project: Project) -> None:
    source = DuckDBTable(
        project.database, query="SELECT id, error('the text was read') AS text FROM docs", name="unreadable"
    )
    assets = project.assets(source)
    tick = Ticks(project, build_watermark_sensor(assets, source, watermark_column="id"), assets)
    assert len(tick()) == 1
    assert tick() == []


def test_with_partitions_only_those_that_moved_are_asked_for(project: Project) -> None:
    source = project.docs(partition_column="day")
    assets = project.assets(source, partitions_def=DAYS)
    tick = Ticks(project, build_watermark_sensor(assets, source, watermark_column="id"), assets)
    (request,) = tick()
    assert request.tags["dagster/asset_partition_range_start"] == "2026-01-01"
    assert request.tags["dagster/asset_partition_range_end"] == "2026-01-03"
    project.sql("INSERT INTO docs VALUES (7, 'Tides follow the moon.', '2026-01-02', 'en')")
    (request,) = tick()
    assert request.partition_key == "2026-01-02"
    project.sql("DELETE FROM docs WHERE day = '2026-01-01'")
    (request,) = tick()
    assert request.partition_key == "2026-01-01"
    assert tick() == []


def test_with_two_dimensions_a_request_covers_what_moved_and_nothing_else(lasting: Project) -> None:
    """A range of Dagster's is the product of both dimensions: neighbours in the list of keys may be no such range."""
    project = lasting
    definition = dg.MultiPartitionsDefinition({"when": DAYS, "language": LANGUAGES})
    source = project.docs(partition_column={"when": "day", "language": "language"})
    assets = project.assets(source, partitions_def=definition)
    tick = Ticks(project, build_watermark_sensor(assets, source, watermark_column="id"), assets)
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    asked = [[request.tags[end] for end in ends] for request in tick()]
    assert asked == [["en|2026-01-01", "en|2026-01-03"], ["de|2026-01-01", "de|2026-01-03"]]
    project.sql("INSERT INTO docs VALUES (7, 'Tides.', '2026-01-03', 'en'), (8, 'Ebb.', '2026-01-01', 'de')")
    assert [request.partition_key for request in tick()] == ["en|2026-01-03", "de|2026-01-01"]
    assert tick() == []


def begun(project: Project, assets: dg.AssetsDefinition, partition: str | None = None) -> dg.DagsterRun:
    """A run of the assets that is at work."""
    defs = dg.Definitions(assets=[assets], resources={"fletcher": project.fletcher})
    return project.instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": partition} if partition else {},
        asset_selection=frozenset(assets.keys),
    )


def test_what_a_run_is_at_is_asked_for_when_it_has_ended(project: Project) -> None:
    """A second run at the same time would find the store locked and fail, and its change be forgotten."""
    write(project, "a", "one")
    for source, build in (
        (tickets(project), build_parquet_sensor),
        (project.docs(), lambda *given: build_watermark_sensor(*given, watermark_column="id")),
    ):
        assets = project.assets(source)
        tick = Ticks(project, build(assets, source), assets)
        run = begun(project, assets)
        assert tick() == []
        assert run.run_id in (tick.reason or "")
        project.instance.report_run_canceled(run)
        assert len(tick()) == 1
        assert tick() == []


def test_partitions_that_no_run_is_at_are_asked_for_at_once(lasting: Project) -> None:
    lasting.instance.add_dynamic_partitions("tickets", ["a"])
    for name in "ab":
        write(lasting, name, f"text of {name}")
    files, days = tickets(lasting, partition_column="file"), lasting.docs(partition_column="day")
    for source, definition, busy, free, build in (
        (files, FILES, "a", "b", build_parquet_sensor),
        (days, DAYS, "2026-01-01", None, lambda *given: build_watermark_sensor(*given, watermark_column="id")),
    ):
        assets = lasting.assets(source, partitions_def=definition)
        tick = Ticks(lasting, build(assets, source), assets)
        run = begun(lasting, assets, busy)
        (request,) = tick()
        assert request.partition_key == free  # of days a range
        assert tick() == []
        assert "asked for when it has ended" in (tick.reason or "")
        lasting.instance.report_run_canceled(run)
        assert [request.partition_key for request in tick()] == [busy]


def test_a_locked_database_skips_the_tick_and_names_the_holder(project: Project) -> None:
    assets = project.assets(project.docs())
    sensor = build_watermark_sensor(assets, project.docs(), watermark_column="id", lock_timeout=0)
    tick = Ticks(project, sensor, assets)
    tick()
    cursor = tick.cursor
    script = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(project.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert tick() == []
        assert str(process.pid) in (tick.reason or "")
        # The same lock is worth another attempt of a run.
        locked = project.assets(project.docs(lock_timeout=0.1), retry_policy=fletcher_retry_policy(1, delay=0))
        assert attempts(project.run(locked)) == 2
        process.communicate()
    assert tick.cursor == cursor


def test_the_retry_policy_does_not_repeat_what_cannot_pass(project: Project) -> None:
    assets = project.assets(project.docs(text_columns="body"), retry_policy=fletcher_retry_policy(3, delay=0))
    assert attempts(project.run(assets)) == 1
    policy = fletcher_retry_policy()
    assert (policy.backoff, policy.jitter) == (dg.Backoff.EXPONENTIAL, dg.Jitter.PLUS_MINUS)
    with pytest.raises(ConfigError, match="neither can be negative"):
        fletcher_retry_policy(-1)


def attempts(result: dg.ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.event_type_value in ("STEP_START", "STEP_RESTARTED")])


def test_a_missing_watermark_column_fails_the_tick_in_words(project: Project) -> None:
    assets = project.assets(project.docs())
    tick = Ticks(project, build_watermark_sensor(assets, project.docs(), watermark_column="updated"), assets)
    with pytest.raises(Exception, match="'updated'") as caught:
        tick()
    assert isinstance(caught.value.__cause__ or caught.value, SourceError)


# What a run with a budget of rows leaves over


@dg.multi_asset(specs=[dg.AssetSpec("portions", metadata={})], name="portions")
def portions(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
    """An embedding asset as the sensor sees it: the run's tags say how many rows it left over."""
    tags = context.run.tags
    names = ("fletcher/rows_remaining", "fletcher/rows_embedded", "fletcher/rows_quarantined")
    figures = {name: int(tags.get(name, 0)) for name in names}
    if "fail" in tags:
        context.log_event(dg.AssetMaterialization("portions", metadata=figures))  # as a range does for a partition
        raise dg.Failure("no luck", allow_retries=False)
    yield dg.MaterializeResult(asset_key="portions", metadata=figures)


def left_over(project: Project, remaining: int, embedded: int = 10, **tags: str) -> dg.ExecuteInProcessResult:
    figures = {"fletcher/rows_remaining": str(remaining), "fletcher/rows_embedded": str(embedded)}
    return dg.materialize([portions], instance=project.instance, tags={**figures, **tags}, raise_on_error=False)


def test_a_rest_asks_for_one_run_after_another_until_nothing_remains(project: Project) -> None:
    tick = Ticks(project, build_rest_sensor(portions), portions)
    assert tick() == []
    left_over(project, 20)
    (request,) = tick()
    assert request.tags["fletcher/trigger"] == "rest"
    assert request.tags["dagster/priority"] == "-1"
    assert tick() == []  # until that run has ended
    left_over(project, 10)
    before = tick.cursor
    assert len(tick()) == 1
    tick.cursor = before
    assert tick() == []  # a repeated tick
    left_over(project, 0)
    assert tick() == []
    assert tick.reason == "no rows remain"


def test_a_rest_waits_for_the_run_that_is_at_it(project: Project) -> None:
    tick = Ticks(project, build_rest_sensor(portions), portions)
    left_over(project, 20)
    job = dg.Definitions(assets=[portions]).resolve_implicit_global_asset_job_def()
    run = project.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset(portions.keys)
    )
    assert tick() == []
    assert tick.reason == "portions: a run is at it"
    project.instance.report_run_canceled(run)
    assert len(tick()) == 1


def test_a_run_that_failed_or_did_nothing_ends_the_chain(project: Project) -> None:
    tick = Ticks(project, build_rest_sensor(portions), portions)
    left_over(project, 20)
    assert len(tick()) == 1
    left_over(project, 20, fail="yes")
    assert tick() == []
    assert "ended as FAILURE" in (tick.reason or "")
    # Rows that cannot be embedded are set aside anew in every run, which does not bring it further.
    for quarantined in ("0", "5"):
        left_over(project, 20, embedded=0, **{"fletcher/rows_quarantined": quarantined})
        assert tick() == []
        assert "embedded none of them" in (tick.reason or "")


def test_the_partitions_that_a_budget_left_out_follow_in_one_run(project: Project) -> None:
    longbow = LongbowResource(enabled=False)
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=longbow, max_rows_per_run=2)
    assets = project.assets(project.docs(partition_column="day"), partitions_def=DAYS)
    tick = Ticks(project, build_rest_sensor(assets), assets)
    project.run_range(assets, "2026-01-01", "2026-01-03")  # of two rows each
    (request,) = tick()
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    assert [request.tags[end] for end in ends] == ["2026-01-02", "2026-01-03"]
    assert project.run(assets, tags=dict(request.tags)).success
    (request,) = tick()
    assert request.partition_key == "2026-01-03"
    assert project.run(assets, partition_key=request.partition_key).success
    assert tick() == []
    assert [project.figures(partition=day)["dagster/partition_row_count"] for day in DAYS.get_partition_keys()] == [
        2
    ] * 3


def tell(project: Project, asset: str, remaining: int, partition: str | None = None) -> None:
    """What a run that embedded something reports of an asset or a partition of it."""
    figures = {"fletcher/rows_embedded": 1, "fletcher/rows_remaining": remaining}
    project.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, metadata=figures))


def test_more_partitions_than_are_read_at_a_time_are_all_followed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_dagster.rest_sensor._RECORDS", 1)
    assets = project.assets(project.docs(partition_column="day"), partitions_def=DAYS)
    tick = Ticks(project, build_rest_sensor(assets), assets)
    assert tick() == []
    for day in DAYS.get_partition_keys():
        tell(project, "docs_embeddings", 1, day)
    (request,) = tick()
    assert request.tags["dagster/asset_partition_range_start"] == "2026-01-01"
    assert request.tags["dagster/asset_partition_range_end"] == "2026-01-03"


def test_of_two_assets_the_one_with_a_rest_goes_on_alone(project: Project) -> None:
    project.sql("CREATE TABLE notes AS FROM docs")
    assets = project.assets(project.docs(), DuckDBTable(project.database, table="notes"))
    tick = Ticks(project, build_rest_sensor(assets), assets)
    tell(project, "docs_embeddings", 0)
    tell(project, "notes_embeddings", 5)
    (request,) = tick()
    assert request.asset_selection == [dg.AssetKey("notes_embeddings")]
    tell(project, "docs_embeddings", 3)
    tell(project, "notes_embeddings", 2)
    assert [request.asset_selection for request in tick()] == [[key] for key in sorted(assets.keys)]
    assert tick() == []


def test_the_history_of_an_asset_is_not_read_again(project: Project) -> None:
    tick = Ticks(project, build_rest_sensor(portions), portions)
    for _ in range(3):
        left_over(project, 0)
    tick()
    seen = json.loads(tick.cursor or "")["portions"]
    newest = project.instance.fetch_materializations(dg.AssetKey("portions"), limit=1).records[0]
    assert seen == newest.storage_id
    project.instance.delete_run(newest.run_id)  # what lies before the cursor may go
    assert tick() == []
    assert json.loads(tick.cursor or "")["portions"] == seen


def test_tags_name_the_trigger() -> None:
    assert fletcher_run_tags("schedule") == {"fletcher/trigger": "schedule"}
    assert fletcher_run_tags("ours", priority=0) == {"fletcher/trigger": "ours", "dagster/priority": "0"}

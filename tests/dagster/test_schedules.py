"""Schedules: the one way that each kind of partitions allows, and the nightly catch-up of missing and stale ones."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from embedding_project import DAYS, DOCS, LANGUAGES, Project

from fletcher_core.errors import ConfigError
from fletcher_core.models.declared import declared_fingerprint
from fletcher_dagster import (
    FletcherResource,
    LongbowResource,
    build_catch_up_schedule,
    build_fletcher_schedule,
    hash_partitions,
)
from fletcher_dagster.partition_ranges import ranges_of

NOWHERE = LongbowResource(enabled=False)
DAILY = dg.DailyPartitionsDefinition("2026-01-01")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """As in conftest, without a Longbow to deliver to."""
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:  # schedules want one that lasts
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=NOWHERE))
        project.sql(DOCS)
        yield project


def tick(
    project: Project, schedule: Any, assets: dg.AssetsDefinition, at: str = "2026-01-04T03:00:00"
) -> tuple[Sequence[dg.RunRequest], str | None]:
    """What a tick at `at` asks for, or why it does not."""
    defs = dg.Definitions(assets=[assets], schedules=[schedule], resources={"fletcher": project.fletcher})
    repository = defs.get_repository_def()
    schedule = repository.get_schedule_def(schedule.name)
    with dg.build_schedule_context(
        instance=project.instance,
        scheduled_execution_time=datetime.fromisoformat(f"{at}+00:00"),
        repository_def=repository,
        resources={"fletcher": project.fletcher},
    ) as context:
        found = schedule.evaluate_tick(context)
    return found.run_requests or [], found.skip_message


def named(requests: Sequence[dg.RunRequest]) -> list[str]:
    """The partitions of each request as `key` or `first...last`."""
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    return [request.partition_key or "...".join(request.tags[end] for end in ends) for request in requests]


def by_day(project: Project, **arguments: Any) -> dg.AssetsDefinition:
    return project.assets(project.docs(partition_column="day"), partitions_def=DAYS, **arguments)


def test_unpartitioned_assets_run_by_cron(project: Project) -> None:
    assets = project.assets(project.docs())
    schedule = build_fletcher_schedule(assets, cron_schedule="0 3 * * *", execution_timezone="Asia/Tokyo", priority=2)
    ((request,), _) = tick(project, schedule, assets)
    assert request.tags["fletcher/trigger"] == "schedule"
    assert request.tags["dagster/priority"] == "2"
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "Asia/Tokyo")


def test_time_partitions_run_at_their_own_cadence(project: Project) -> None:
    assets = project.assets(project.docs(partition_column="day"), partitions_def=DAILY)
    schedule = build_fletcher_schedule(assets, hour_of_day=4, minute_of_hour=30)
    defs = dg.Definitions(assets=[assets], schedules=[schedule], resources={"fletcher": project.fletcher})
    assert defs.get_repository_def().get_schedule_def(schedule.name).cron_schedule == "30 4 * * *"
    ((request,), _) = tick(project, schedule, assets, at="2026-01-04T04:30:00")
    assert request.partition_key == "2026-01-03"  # the window that closed last
    assert request.tags["fletcher/trigger"] == "schedule"


def test_static_partitions_run_by_cron_once_a_key(project: Project) -> None:
    assets = project.assets(project.docs(partition_column="language"), partitions_def=LANGUAGES)
    requests, _ = tick(project, build_fletcher_schedule(assets, cron_schedule="0 3 * * *"), assets)
    assert named(requests) == ["en", "de"]


def test_of_two_dimensions_the_window_that_closed_last_runs_with_every_key_of_the_other(project: Project) -> None:
    definition = dg.MultiPartitionsDefinition({"when": DAILY, "language": LANGUAGES})
    source = project.docs(partition_column={"when": "day", "language": "language"})
    assets = project.assets(source, partitions_def=definition)
    requests, _ = tick(project, build_fletcher_schedule(assets, hour_of_day=4), assets, at="2026-01-04T04:00:00")
    assert sorted(named(requests)) == ["de|2026-01-03", "en|2026-01-03"]
    with pytest.raises(ConfigError, match="hour_of_day="):
        build_fletcher_schedule(assets, cron_schedule="0 3 * * *")


def test_two_dimensions_without_time_run_by_cron_also_where_one_is_dynamic(project: Project) -> None:
    project.instance.add_dynamic_partitions("tenants", ["de", "en"])
    tenants = dg.DynamicPartitionsDefinition(name="tenants")
    definition = dg.MultiPartitionsDefinition({"bucket": hash_partitions(2), "tenant": tenants})
    assets = project.assets(project.docs(partition_column={"tenant": "language"}), partitions_def=definition)
    requests, _ = tick(project, build_fletcher_schedule(assets, cron_schedule="0 3 * * *"), assets)
    assert named(requests) == ["0|de", "0|en", "1|de", "1|en"]


def test_what_does_not_fit_the_partitions_is_refused_when_definitions_load(project: Project) -> None:
    plain = project.assets(project.docs())
    daily = project.assets(project.docs(partition_column="day"), partitions_def=DAILY)
    static = project.assets(project.docs(partition_column="language"), partitions_def=LANGUAGES)
    files = project.assets(
        project.docs(partition_column="language"), partitions_def=dg.DynamicPartitionsDefinition(name="files")
    )
    with pytest.raises(ConfigError, match="hour_of_day="):
        build_fletcher_schedule(daily, cron_schedule="0 3 * * *")
    with pytest.raises(ConfigError, match="minute_of_hour is 60; it must be from 0 to 59"):
        build_fletcher_schedule(daily, minute_of_hour=60)
    with pytest.raises(ConfigError, match="hour_of_day is -1"):
        build_fletcher_schedule(daily, hour_of_day=-1)
    with pytest.raises(ConfigError, match="build_parquet_sensor"):
        build_fletcher_schedule(files, cron_schedule="0 3 * * *")
    for assets in (plain, static):
        with pytest.raises(ConfigError, match="needs a cron_schedule="):
            build_fletcher_schedule(assets)
        with pytest.raises(ConfigError, match="are for time partitions"):
            build_fletcher_schedule(assets, cron_schedule="0 3 * * *", hour_of_day=3)
    with pytest.raises(ConfigError, match="no partitions to catch up"):
        build_catch_up_schedule(plain)
    with pytest.raises(ConfigError, match="max_rows is 0"):
        build_catch_up_schedule(static, max_rows=0)


def test_the_catch_up_asks_for_missing_partitions_and_its_request_runs(project: Project) -> None:
    assets = by_day(project)
    schedule = build_catch_up_schedule(assets)
    project.run(assets, partition_key="2026-01-02")
    requests, _ = tick(project, schedule, assets)
    assert named(requests) == ["2026-01-01", "2026-01-03"]
    assert {request.tags["fletcher/trigger"] for request in requests} == {"catch-up"}
    for request in requests:
        assert project.run(assets, tags=dict(request.tags), partition_key=request.partition_key).success
    requests, reason = tick(project, schedule, assets)
    assert (requests, reason) == ([], "all of 3 partitions are embedded by the declared model")


def test_a_changed_model_makes_every_partition_stale_and_neighbours_run_together(project: Project) -> None:
    assets = by_day(project)
    schedule = build_catch_up_schedule(assets)
    project.run_range(assets, "2026-01-01", "2026-01-03")
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=NOWHERE, max_length=16)
    (request,), _ = tick(project, schedule, assets)
    assert named([request]) == ["2026-01-01...2026-01-03"]
    assert project.run(assets, tags=dict(request.tags)).success
    assert tick(project, schedule, assets)[0] == []


def test_a_changed_code_version_makes_partitions_stale(project: Project) -> None:
    project.run_range(by_day(project), "2026-01-01", "2026-01-03")
    renamed = project.assets(project.docs(partition_column="day", template="doc: {text}"), partitions_def=DAYS)
    requests, _ = tick(project, build_catch_up_schedule(renamed), renamed)
    assert named(requests) == ["2026-01-01...2026-01-03"]


def test_another_number_of_hash_buckets_makes_those_of_the_same_keys_stale(project: Project) -> None:
    """Their rows are others, and Dagster knows the keys as materialized."""
    for buckets, due in ((4, []), (2, ["0...1"])):
        assets = project.assets(project.docs(), partitions_def=hash_partitions(buckets))
        for key in "0123" if buckets == 4 else "":
            tags = {"dagster/code_version": str(assets.code_versions_by_key[dg.AssetKey("docs_embeddings")])}
            event = dg.AssetMaterialization("docs_embeddings", partition=key, tags=tags)
            project.instance.report_runless_asset_event(event)
        assert named(tick(project, build_catch_up_schedule(assets), assets)[0]) == due


def test_the_backfill_policy_says_how_many_partitions_a_run_takes(project: Project) -> None:
    assets = by_day(project, backfill_policy=dg.BackfillPolicy.multi_run(2))
    requests, _ = tick(project, build_catch_up_schedule(assets), assets)
    assert named(requests) == ["2026-01-01...2026-01-02", "2026-01-03"]


def test_the_budget_counts_partitions_or_rows_and_lets_one_partition_through(project: Project) -> None:
    assets = by_day(project)  # two rows a day
    assert named(tick(project, build_catch_up_schedule(assets, max_partitions=1), assets)[0]) == ["2026-01-01"]
    assert named(tick(project, build_catch_up_schedule(assets, max_rows=5), assets)[0]) == ["2026-01-01...2026-01-02"]
    assert named(tick(project, build_catch_up_schedule(assets, max_rows=1), assets)[0]) == ["2026-01-01"]


def test_the_budget_of_rows_counts_partitions_of_two_dimensions(project: Project) -> None:
    definition = dg.MultiPartitionsDefinition({"when": DAYS, "language": LANGUAGES})
    source = project.docs(partition_column={"when": "day", "language": "language"})
    assets = project.assets(source, partitions_def=definition)
    requests, _ = tick(project, build_catch_up_schedule(assets, max_rows=4), assets)  # a row each
    assert named(requests) == ["en|2026-01-01...en|2026-01-03", "de|2026-01-01"]


def test_a_partition_that_failed_waits_for_the_missing_ones(project: Project) -> None:
    assets = by_day(project)
    project.sql("ALTER TABLE docs RENAME text TO body")
    assert not project.run(assets, partition_key="2026-01-01").success
    project.sql("ALTER TABLE docs RENAME body TO text")
    schedule = build_catch_up_schedule(assets, max_partitions=2)
    assert named(tick(project, schedule, assets)[0]) == ["2026-01-02...2026-01-03"]
    project.run_range(assets, "2026-01-02", "2026-01-03")
    assert named(tick(project, schedule, assets)[0]) == ["2026-01-01"]


def test_a_partition_that_a_run_is_at_is_left_out(project: Project) -> None:
    assets = by_day(project)
    job = dg.Definitions(
        assets=[assets], resources={"fletcher": project.fletcher}
    ).resolve_implicit_global_asset_job_def()
    tags = {"dagster/partition": "2026-01-02"}
    project.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags, asset_selection=assets.keys)
    requests, _ = tick(project, build_catch_up_schedule(assets), assets)
    assert named(requests) == ["2026-01-01", "2026-01-03"]
    for request in requests:
        assert project.run(assets, tags=dict(request.tags), partition_key=request.partition_key).success
    requests, reason = tick(project, build_catch_up_schedule(assets), assets)
    assert (requests, reason) == ([], "runs are at 1 of 3 partitions of docs_embeddings, or wait for them")


def test_ranges_cover_what_is_wanted_and_nothing_else() -> None:
    keys = [f"k{number}" for number in range(10)]
    wanted = [keys[number] for number in (9, 0, 1, 2, 3, 5, 6)]
    found = [r.keys for r in ranges_of(wanted, keys, dg.BackfillPolicy.multi_run(3))]
    assert found == [("k0", "k1", "k2"), ("k3",), ("k5", "k6"), ("k9",)]
    assert [len(r.keys) for r in ranges_of(wanted, keys, None)] == [1] * 7


@pytest.mark.parametrize("settings", [{}, {"max_length": 16}, {"dimension": 64, "normalize": False, "prompt": "x: "}])
def test_the_declared_fingerprint_is_that_of_the_loaded_model(project: Project, settings: dict[str, Any]) -> None:
    fletcher = FletcherResource(store_path="vectors", **settings)
    assert declared_fingerprint(fletcher.model, **settings) == fletcher.embedder().card.fingerprint

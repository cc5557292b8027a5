"""Runs of partitioned assets: single keys, ranges in one run, and what Dagster remembers of each partition."""

import os
from pathlib import Path

import dagster as dg
import pytest
from embedding_project import DAYS, LANGUAGES, Project, checks, failure, plain
from hash_buckets_job import hash_job

from fletcher_core.pipeline import MaterializeSettings
from fletcher_core.sources import DuckDBTable, ParquetTable, metadata_schema
from fletcher_dagster import hash_partitions

ALL_DAYS = DAYS.get_partition_keys()


def by_day(project: Project) -> dg.AssetsDefinition:
    return project.assets(project.docs(partition_column="day"), partitions_def=DAYS)


def test_a_day_embeds_the_rows_of_that_day(project: Project) -> None:
    result = project.run(by_day(project), partition_key="2026-01-02")
    assert result.success
    (materialization,) = project.materializations()
    assert materialization.partition == "2026-01-02"
    figures = plain(materialization.metadata)
    assert figures["dagster/partition_row_count"] == figures["fletcher/rows_new"] == 2
    assert "dagster/row_count" not in figures
    assert checks(result)["row_parity"].passed


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMPTZ", "VARCHAR"])
def test_a_day_is_found_in_columns_of_other_types(project: Project, kind: str) -> None:
    if kind == "VARCHAR":
        assets = project.assets(
            project.docs(partition_column="day"), partitions_def=dg.StaticPartitionsDefinition(ALL_DAYS)
        )
    else:
        assets = by_day(project)
    project.sql(f"ALTER TABLE docs ALTER day TYPE {kind}")
    project.run(assets, partition_key="2026-01-02")
    assert project.figures(partition="2026-01-02")["fletcher/rows_new"] == 2


def test_a_static_key_embeds_the_rows_with_that_value(project: Project) -> None:
    assets = project.assets(project.docs(partition_column="language"), partitions_def=LANGUAGES)
    assert project.run(assets, partition_key="de").success
    assert project.figures(partition="de")["dagster/partition_row_count"] == 3


def test_a_dynamic_key_embeds_the_rows_with_that_value(project: Project) -> None:
    languages = dg.DynamicPartitionsDefinition(name="languages")
    project.instance.add_dynamic_partitions("languages", ["de", "en"])
    assets = project.assets(project.docs(partition_column="language"), partitions_def=languages)
    assert project.run(assets, partition_key="en").success
    assert project.run_range(assets, "de", "en").success
    assert project.figures(partition="de")["fletcher/rows_new"] == 3
    assert project.figures(partition="en")["fletcher/rows_unchanged"] == 3


def test_each_partition_of_a_range_has_its_own_figures(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (7, 'Tides follow the moon.', '2026-01-03', 'en')")
    result = project.run_range(by_day(project), "2026-01-01", "2026-01-03")
    assert result.success
    counts = [project.figures(partition=day)["dagster/partition_row_count"] for day in ALL_DAYS]
    assert counts == [2, 2, 3]
    assert "dagster/row_count" not in project.figures()
    assert project.instance.get_materialized_partitions(dg.AssetKey("docs_embeddings")) == set(ALL_DAYS)
    assert plain(checks(result)["row_parity"].metadata)["fletcher/rows_live"] == 7


def test_an_unchanged_partition_of_a_range_is_reported_too(project: Project) -> None:
    assets = by_day(project)
    project.run_range(assets, "2026-01-01", "2026-01-03")
    version = project.version(partition="2026-01-01")
    project.run_range(assets, "2026-01-01", "2026-01-03")
    for day in ALL_DAYS:
        assert len(project.materializations(partition=day)) == 4
        assert project.figures(partition=day)["fletcher/rows_unchanged"] == 2
        assert project.figures(partition=day)["fletcher/rows_embedded"] == 0
    assert project.version(partition="2026-01-01") == version


def test_a_partition_has_one_version_however_it_was_run(project: Project) -> None:
    """The event at each commit carries the partition's own version; only the closing one is the range's."""
    assets = by_day(project)
    project.run_range(assets, "2026-01-01", "2026-01-02")
    committed = project.materializations(partition="2026-01-02")[1]
    project.run(assets, partition_key="2026-01-02")
    assert (committed.tags or {})["dagster/data_version"] == project.version(partition="2026-01-02")
    assert project.version(partition="2026-01-01") != project.version(partition="2026-01-02")


def test_a_day_without_rows_is_a_success_of_nothing(project: Project) -> None:
    project.sql("DELETE FROM docs WHERE day = '2026-01-02'")
    result = project.run_range(by_day(project), "2026-01-01", "2026-01-03")
    assert result.success
    assert project.figures(partition="2026-01-02")["dagster/partition_row_count"] == 0
    assert checks(result)["row_parity"].passed


def test_a_day_that_lost_its_rows_loses_its_vectors(project: Project) -> None:
    assets = by_day(project)
    project.run_range(assets, "2026-01-01", "2026-01-03")
    project.sql("DELETE FROM docs WHERE day = '2026-01-02'")
    project.run(assets, partition_key="2026-01-02")
    figures = project.figures(partition="2026-01-02")
    assert (figures["fletcher/rows_deleted"], figures["dagster/partition_row_count"]) == (2, 0)
    with project.fletcher.store("docs_embeddings") as store:
        generation = store.current()
        assert generation is not None
        assert generation.row_count() == 4


def test_keys_that_are_no_file_names_work(project: Project) -> None:
    keys = ["en/US", "..", "Ö x"]
    project.sql("UPDATE docs SET language = CASE WHEN id < 3 THEN 'en/US' WHEN id < 5 THEN '..' ELSE 'Ö x' END")
    assets = project.assets(
        project.docs(partition_column="language"), partitions_def=dg.StaticPartitionsDefinition(keys)
    )
    assert project.run_range(assets, "en/US", "Ö x").success
    assert [project.figures(partition=key)["dagster/partition_row_count"] for key in keys] == [2, 2, 2]


def test_a_partition_that_fails_costs_the_others_of_its_range_nothing(project: Project) -> None:
    source = project.docs(partition_column="day")
    assets = project.assets(source, partitions_def=DAYS)
    with project.fletcher.store("docs_embeddings") as store:
        card = project.fletcher.embedder().card
        generation = store.generation(card, metadata_schema(source), MaterializeSettings().vector_type)
        with generation.locked("2026-01-02", "another-run"):
            result = project.run_range(assets, "2026-01-01", "2026-01-03")
    error = failure(result)
    assert "another-run" in (error.description or "")
    said = "4 rows are committed and 2 of 3 partitions are complete; the next run does only the rest"
    assert said in (error.description or "")
    figures = plain(error.metadata)
    assert figures["fletcher/error"] == "StoreLockedError"
    assert (figures["fletcher/rows_committed"], figures["fletcher/partitions_committed"]) == (4, 2)
    done = project.instance.get_materialized_partitions(dg.AssetKey("docs_embeddings"))
    assert done == {"2026-01-01", "2026-01-03"}
    assert project.run_range(assets, "2026-01-01", "2026-01-03").success
    assert project.figures(partition="2026-01-01")["fletcher/rows_unchanged"] == 2
    assert project.figures(partition="2026-01-02")["fletcher/rows_new"] == 2


def test_a_range_that_is_named_backwards_is_told_so(project: Project) -> None:
    by_language = project.assets(project.docs(partition_column="language"), partitions_def=LANGUAGES)
    for assets, first, last in ((by_day(project), "2026-01-03", "2026-01-01"), (by_language, "de", "en")):
        error = failure(project.run_range(assets, first, last))
        assert f"has no partition from '{first}' to '{last}': name the first one first" in (error.description or "")


def test_a_row_that_moves_to_another_day_is_not_embedded_again(project: Project) -> None:
    assets = by_day(project)
    project.run_range(assets, "2026-01-01", "2026-01-03")
    project.sql("UPDATE docs SET day = '2026-01-01' WHERE id = 5")
    project.run_range(assets, "2026-01-01", "2026-01-03")
    embedded = [project.figures(partition=day)["fletcher/rows_embedded"] for day in ALL_DAYS]
    live = [project.figures(partition=day)["dagster/partition_row_count"] for day in ALL_DAYS]
    assert embedded == [0, 0, 0]
    assert live == [3, 2, 1]


def test_a_check_alone_looks_at_the_partitions_that_exist(project: Project) -> None:
    assets = by_day(project)
    project.run(assets, partition_key="2026-01-02")
    parity = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("docs_embeddings"), "row_parity"))
    evaluation = checks(project.run(assets, selection=parity))["row_parity"]
    assert evaluation.passed
    assert plain(evaluation.metadata)["fletcher/rows_live"] == 2


def test_hash_buckets_part_all_rows_without_a_column(project: Project) -> None:
    assets = project.assets(project.docs(), partitions_def=hash_partitions(3))
    result = project.run_range(assets, "0", "2")
    assert result.success
    counts = [project.figures(partition=str(number))["dagster/partition_row_count"] for number in range(3)]
    assert sum(counts) == 6
    assert checks(result)["row_parity"].passed
    project.run_range(assets, "0", "2")
    assert sum(project.figures(partition=str(number))["fletcher/rows_unchanged"] for number in range(3)) == 6


def test_a_range_of_two_dimensions_is_the_product_of_both(project: Project) -> None:
    """In the order of the dimensions' names: language|when."""
    definition = dg.MultiPartitionsDefinition({"when": DAYS, "language": LANGUAGES})
    source = project.docs(partition_column={"when": "day", "language": "language"})
    assets = project.assets(source, partitions_def=definition)
    result = project.run_range(assets, "en|2026-01-02", "de|2026-01-03")
    assert result.success
    expected = {f"{language}|2026-01-0{day}" for language in ("de", "en") for day in (2, 3)}
    assert project.instance.get_materialized_partitions(dg.AssetKey("docs_embeddings")) == expected
    for key in expected:
        assert project.figures(partition=key)["dagster/partition_row_count"] == 1
        for event in project.materializations(partition=key):  # at the commit, and at the end of the run
            assert isinstance(event.partition, dg.MultiPartitionKey)
            assert event.partition.keys_by_dimension == dict(zip(["language", "when"], key.split("|"), strict=True))
    assert checks(result)["row_parity"].passed


def test_one_key_of_two_dimensions(project: Project) -> None:
    project.instance.add_dynamic_partitions("tenants", ["de"])
    definition = dg.MultiPartitionsDefinition(
        {"tenant": dg.DynamicPartitionsDefinition(name="tenants"), "bucket": hash_partitions(2)}
    )
    assets = project.assets(project.docs(partition_column={"tenant": "language"}), partitions_def=definition)
    counts = []
    for bucket in ("0", "1"):
        key = dg.MultiPartitionKey({"bucket": bucket, "tenant": "de"})
        assert project.run(assets, partition_key=key).success
        counts.append(project.figures(partition=key)["dagster/partition_row_count"])
    assert sum(counts) == 3


def test_a_query_is_partitioned_like_a_table(project: Project) -> None:
    source = DuckDBTable(
        project.database,
        query="SELECT id, text, day + INTERVAL 1 DAY AS next FROM docs",
        name="docs",
        partition_column="next",
    )
    assert project.run(project.assets(source, partitions_def=DAYS), partition_key="2026-01-02").success
    with project.fletcher.store("docs_embeddings") as store:
        generation = store.current()
        assert generation is not None
        assert generation.row_count() == 2


def test_each_file_of_a_landing_folder_is_a_partition(project: Project) -> None:
    for language in ("en", "de"):
        project.sql(f"COPY (FROM docs WHERE language = '{language}') TO '{project.folder}/{language}.parquet'")
    source = ParquetTable(f"{project.folder}/*.parquet", name="docs", file_column="file", partition_column="file")
    project.instance.add_dynamic_partitions("files", source.file_names())
    assets = project.assets(source, partitions_def=dg.DynamicPartitionsDefinition(name="files"))
    (project.folder / "de.parquet").write_bytes(b"not written to the end yet")
    assert project.run(assets, partition_key="en.parquet").success
    assert project.figures(partition="en.parquet")["dagster/partition_row_count"] == 3
    result = project.run(assets, partition_key="de.parquet")
    assert "de.parquet" in (failure(result).description or "")


def test_a_day_of_hive_folders_meets_no_other_days_damage(project: Project) -> None:
    folder = project.folder / "lake"
    project.sql(f"COPY docs TO '{folder}' (FORMAT parquet, PARTITION_BY (day, language))")
    for damaged in folder.glob("day=2026-01-03/*/*.parquet"):
        damaged.write_bytes(b"nothing")
    source = ParquetTable(
        f"{folder}/**/*.parquet",
        name="docs",
        metadata_columns=["day", "language"],
        partition_column={"day": "day", "language": "language"},
    )
    definition = dg.MultiPartitionsDefinition({"day": DAYS, "language": LANGUAGES})
    assets = project.assets(source, partitions_def=definition)
    assert project.run_range(assets, "2026-01-01|en", "2026-01-02|de").success
    assert project.figures(partition="2026-01-02|de")["dagster/partition_row_count"] == 1
    assert not project.run(assets, partition_key="2026-01-03|de").success


def test_hash_buckets_are_known_again_in_a_step_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition is built anew there: were it a plain static one, its keys would be values of a column."""
    # A child leaves out the first entry of the path, which is this folder under pytest.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLETCHER_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("FLETCHER_TEST_LAUNCHER", str(os.getpid()))
    tags = {"dagster/asset_partition_range_start": "0", "dagster/asset_partition_range_end": "1"}
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        with dg.execute_job(dg.reconstructable(hash_job), instance, tags=tags) as result:
            assert result.success
        assert instance.get_materialized_partitions(dg.AssetKey("docs_embeddings")) == {"0", "1"}
    assert (tmp_path / "slices").read_text() == "[True, (0, 2), (1, 2)]"

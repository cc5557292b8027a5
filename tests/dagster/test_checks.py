"""Every check fails for what it is there for, in real runs: faults are put into the store's own files and into the
server; what is blocked stays unmade; and a check that cannot be evaluated fails rather than saying nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_project import DAYS, Project, checks, plain
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.embedded import stop_embedded
from fletcher_core.store import Generation
from fletcher_core.store.quarantine import ROW_SCHEMA
from fletcher_dagster import FletcherChecks, FletcherResource, LongbowResource, hash_partitions
from fletcher_dagster.check_settings import CHECKS, declared_checks
from fletcher_dagster.checks import Finding, Tally, check_specs, row_parity

KEY = dg.AssetKey("docs_embeddings")
ALL = dg.AssetSelection.checks_for_assets(KEY)
OFF = FletcherChecks(**dict.fromkeys(CHECKS, "off"))  # type: ignore[arg-type]


def only(*names: str) -> dg.AssetSelection:
    """These checks alone, without materializing."""
    return dg.AssetSelection.checks(*(dg.AssetCheckKey(KEY, name) for name in names))


def with_resource(project: Project, **settings: Any) -> Project:
    """The same project and store with other settings of the resource."""
    known = {"store_path": project.fletcher.store_path, "longbow": project.fletcher.longbow}
    return replace(project, fletcher=FletcherResource(**{**known, **settings}))


def with_store(project: Project, use: Callable[[Generation], None]) -> None:
    with project.fletcher.store(KEY) as store:
        generation = store.current()
        assert generation is not None
        use(generation)


def tamper(project: Project, column: str, change: Callable[[list[Any]], None], partition: str = "") -> None:
    """Changes a column of the partition's only segment file behind the store's back; rows are in the order of ids."""

    def rewrite(generation: Generation) -> None:
        (file,) = generation.files(partition)
        with pq.ParquetFile(file) as opened:
            footer, table = opened.schema_arrow.metadata, opened.read().sort_by("id")
        values = table[column].to_pylist()
        change(values)
        kind = pa.list_(pa.float32()) if column == "vector" else table[column].type
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(values, kind)).sort_by("sequence")
        pq.write_table(table.replace_schema_metadata(footer), file)

    with_store(project, rewrite)


def make_nan(vectors: list[Any]) -> None:
    vectors[0][7] = float("nan")


def table(found: dg.AssetCheckEvaluation | Finding, key: str) -> list[dict[str, Any]]:
    value = found.metadata[key]
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


@pytest.fixture
def local(project: Project) -> Project:
    """The project without Longbow, for what it is not about."""
    return with_resource(project, longbow=LongbowResource(enabled=False))


# Settings


def test_only_checks_that_are_not_off_are_declared_and_errors_block() -> None:
    specs = {spec.name: spec for spec in check_specs(KEY, FletcherChecks(drift="off", unit_norm="error"))}
    assert set(specs) == set(CHECKS) - {"drift"}
    blocking = {name for name, spec in specs.items() if spec.blocking}
    assert blocking == {"row_parity", "no_nan", "dimension", "duplicates", "unit_norm", "quarantine"}
    assert check_specs(KEY, OFF) == []


_LEVELS = st.sampled_from(["error", "warn", "off"])


@given(st.fixed_dictionaries(dict.fromkeys(CHECKS, _LEVELS)), st.none() | st.integers(1), st.floats(0, 2))
def test_what_decides_a_result_is_in_the_specs_of_its_check(
    levels: dict[str, Any], sample_rows: int | None, distance: float
) -> None:
    asked = FletcherChecks(**levels, sample_rows=sample_rows, drift_distance=distance)
    found = declared_checks(check_specs(KEY, asked))
    for name in CHECKS:
        if asked.level(name) != "off":
            assert found.level(name) == asked.level(name)
    if asked.drift != "off":
        assert (found.sample_rows, found.drift_distance) == (sample_rows, distance)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("drift", "fatal"), ("no_nan", True), ("sample_rows", 0), ("sample_rows", 1.5), ("recall_share", 1.1),
     ("drift_distance", -0.1), ("drift_distance", float("nan")), ("lag_seconds", None), ("lag_rows", -1),
     ("recall_k", "10"), ("recall_rows", True)],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        FletcherChecks(**{setting: value})


# Vectors


def test_each_fault_in_the_store_fails_its_own_check(local: Project) -> None:
    assets = local.assets(local.docs(), checks=FletcherChecks(drift="off", unit_norm="error"))
    local.run(assets)
    assert all(evaluation.passed for evaluation in checks(local.run(assets, selection=ALL)).values())

    def spoil(vectors: list[Any]) -> None:
        make_nan(vectors)
        vectors[1] = [2 * element for element in vectors[1]]
        vectors[2] = vectors[2][:-1]

    tamper(local, "vector", spoil)
    tamper(local, "id", lambda ids: ids.__setitem__(4, "6"))
    found = checks(local.run(assets, selection=ALL))
    assert set(found) == set(CHECKS) - {"drift"}
    examples = {name: plain(found[name].metadata).get("fletcher/examples") for name in found}
    faults = {"no_nan": ["1"], "unit_norm": ["2"], "dimension": ["3"], "duplicates": ["6"]}
    assert {name: examples[name] for name in faults} == faults
    assert {name for name in found if not found[name].passed} >= set(faults)
    assert {found[name].severity.value for name in faults} == {"ERROR"}
    figures = plain(found["unit_norm"].metadata)
    assert figures["fletcher/norm_max"] == pytest.approx(2, abs=1e-4)
    assert (figures["fletcher/rows_looked_at"], figures["fletcher/is_sample"]) == (6, False)


@pytest.mark.parametrize(("level", "goes_on"), [("error", False), ("warn", True), ("off", True)])
def test_an_error_holds_up_what_is_downstream_and_a_warning_does_not(local: Project, level: Any, goes_on: bool) -> None:
    @dg.asset(deps=[KEY])
    def report() -> None: ...

    assets = local.assets(local.docs(), checks=replace(OFF, no_nan=level))
    local.run(assets)
    tamper(local, "vector", make_nan)
    resources = {"fletcher": local.fletcher}
    result = dg.materialize([assets, report], resources=resources, instance=local.instance, raise_on_error=False)
    assert local.figures()["fletcher/rows_unchanged"] == 6
    assert bool(local.materializations("report")) == result.success == goes_on
    found = checks(result)
    assert set(found) == ({"no_nan"} if level != "off" else set())
    if level != "off":
        assert (found["no_nan"].passed, found["no_nan"].severity.value) == (False, level.upper())


def test_a_large_partition_is_sampled_and_the_result_says_so(local: Project) -> None:
    assets = local.assets(local.docs(), checks=replace(OFF, no_nan="error", sample_rows=6))
    local.run(assets)
    local.sql("INSERT INTO docs VALUES (7, 'Tides follow the moon.', '2026-01-03', 'en')")
    figures = plain(checks(local.run(assets))["no_nan"].metadata)
    assert figures["fletcher/is_sample"] is True or figures["fletcher/rows_looked_at"] == 7
    sample = local.assets(local.docs(), checks=replace(OFF, no_nan="error", sample_rows=1))
    figures = plain(checks(local.run(sample, selection=only("no_nan")))["no_nan"].metadata)
    assert figures["fletcher/is_sample"] is True
    assert figures["fletcher/rows_looked_at"] < 7


def test_unit_length_is_not_asked_of_vectors_that_are_not_normalized(local: Project) -> None:
    local = with_resource(local, normalize=False)
    found = checks(local.run(local.assets(local.docs(), checks=replace(OFF, unit_norm="error"))))["unit_norm"]
    assert found.passed
    assert "normalize is False" in str(found.description)


def test_a_run_looks_at_its_partitions_only_and_names_the_one_at_fault(local: Project) -> None:
    settings = replace(OFF, no_nan="error", row_parity="error")
    assets = local.assets(local.docs(partition_column="day"), partitions_def=DAYS, checks=settings)
    local.run_range(assets, "2026-01-01", "2026-01-03")
    tamper(local, "vector", make_nan, "2026-01-02")
    assert checks(local.run(assets, partition_key="2026-01-01"))["no_nan"].passed
    found = checks(local.run_range(assets, "2026-01-01", "2026-01-03"))["no_nan"]
    figures = plain(found.metadata)
    assert (found.passed, figures["fletcher/partitions_at_fault"]) == (False, 1)
    assert table(found, "fletcher/partitions") == [{"partition": "2026-01-02", "rows": 1}]
    assert (figures["fletcher/rows_looked_at"], figures["fletcher/examples"]) == (6, ["3"])


def test_a_failure_lists_the_first_partitions_with_their_figures() -> None:
    none = ROW_SCHEMA.empty_table()
    unequal = [Tally(f"part {number:02}", 1, 3, none) for number in range(25)]
    found = row_parity([Tally("sound", 3, 3, none), *unequal])
    assert found.metadata["fletcher/partitions_at_fault"] == 25
    rows = table(found, "fletcher/partitions")
    assert rows[0] == {"partition": "part 00", "rows_in_store": 1, "rows_to_embed": 3}
    assert [row["partition"] for row in rows] == [f"part {number:02}" for number in range(20)]
    assert "fletcher/partitions" not in row_parity([Tally("", 1, 3, none)]).metadata  # no partitions


def test_buckets_of_another_number_are_not_passed_over(local: Project) -> None:
    """Their rows are in the present buckets, too: each of them would be found twice."""
    for buckets, passed in ((3, True), (2, False)):
        definition = hash_partitions(buckets)
        assets = local.assets(local.docs(), partitions_def=definition, checks=replace(OFF, row_parity="error"))
        found = checks(local.run_range(assets, "0", definition.get_partition_keys()[-1]))["row_parity"]
        assert found.passed == passed
    assert "such as '2'" in str(found.description)
    assert plain(found.metadata)["fletcher/left_over"] == "2"


# Drift


def test_another_corpus_drifts_and_another_model_is_not_compared(local: Project) -> None:
    assets = local.assets(local.docs(), checks=replace(OFF, drift="warn", drift_min_rows=6))

    def run(of: Project) -> tuple[bool, str]:
        found = checks(of.run(assets))["drift"]
        return found.passed, str(found.description)

    assert run(local) == (True, "no earlier run to compare with")
    assert run(local) == (True, "the mean vector moved by 0 (1 - cosine), the mean norm by 0.00%")
    local.sql("UPDATE docs SET text = 'SELECT count(*) FROM table_' || id || ' GROUP BY column_b'")
    passed, words = run(local)
    assert not passed
    assert "moved by" in words
    assert run(local)[0]  # the last run is what counts
    assert run(with_resource(local, dimension=64)) == (True, "no earlier run to compare with")
    small = local.assets(local.docs(), checks=replace(OFF, drift="warn"))
    assert "drift_min_rows" in str(checks(local.run(small, selection=only("drift")))["drift"].description)


# Longbow


def test_a_server_that_lost_its_rows_fails_the_probe(project: Project) -> None:
    assets = project.assets(project.docs(), checks=replace(OFF, recall_probe="error"))
    assert plain(checks(project.run(assets))["recall_probe"].metadata)["fletcher/recall"] == 1

    def lose(generation: Generation) -> None:
        client = project.fletcher.longbow_client()
        assert client is not None
        with client:
            client.delete_dataset(generation.name)

    with_store(project, lose)
    lost = checks(project.run(assets, selection=only("recall_probe")))["recall_probe"]
    figures = plain(lost.metadata)
    assert (lost.passed, lost.severity.value) == (False, "ERROR")
    assert (figures["fletcher/rows_probed"], figures["fletcher/rows_found"]) == (6, 0)
    assert checks(project.run(assets))["recall_probe"].passed  # which sends them again


def test_a_server_that_holds_other_vectors_fails_the_probe(project: Project) -> None:
    assets = project.assets(project.docs(), checks=replace(OFF, recall_probe="warn", recall_k=1))
    project.run(assets)
    tamper(project, "vector", lambda vectors: vectors.append(vectors.pop(0)))
    found = checks(project.run(assets, selection=only("recall_probe")))["recall_probe"]
    assert (found.passed, plain(found.metadata)["fletcher/rows_found"]) == (False, 0)


def test_equal_vectors_count_as_found_whichever_of_them_is(project: Project) -> None:
    project.sql("INSERT INTO docs SELECT 100 + range, 'One and the same text.', '2026-01-01', 'en' FROM range(60)")
    assets = project.assets(project.docs(), checks=replace(OFF, recall_probe="warn", recall_rows=66))
    found = plain(checks(project.run(assets))["recall_probe"].metadata)
    assert (found["fletcher/rows_probed"], found["fletcher/recall"]) == (66, 1)


def test_a_server_that_is_down_warns_and_never_blocks(project: Project, tmp_path: Path) -> None:
    settings = replace(OFF, recall_probe="error", delivery_lag="error", lag_seconds=0)
    assets = project.assets(project.docs(), checks=settings)
    project = with_resource(project, longbow=None)  # an embedded server of its own
    assert project.run(assets).success
    address = project.fletcher.longbow_client()
    assert address is not None
    with address:
        assert stop_embedded(tmp_path / "vectors" / ".longbow")
        down = LongbowResource(data_address=address.address.data, meta_address=address.address.meta)
    found = checks(project.run(assets, selection=only("recall_probe", "delivery_lag")))
    stop_embedded(tmp_path / "vectors" / ".longbow")
    assert found["delivery_lag"].passed  # started again by itself
    found = checks(with_resource(project, longbow=down).run(assets, selection=only("recall_probe", "delivery_lag")))
    probe = found["recall_probe"]
    assert (probe.passed, probe.severity.value) == (False, "WARN")
    assert plain(probe.metadata)["fletcher/error"] == "LongbowUnavailable"


def test_rows_that_wait_too_long_fail_the_delivery_lag(project: Project) -> None:
    nowhere = LongbowResource(data_address="127.0.0.1:9", meta_address="127.0.0.1:9", delivery_timeout=0.1)
    project = with_resource(project, longbow=nowhere)
    by_day: dict[str, Any] = {"partitions_def": DAYS}
    source = project.docs(partition_column="day")
    patient = project.assets(source, checks=replace(OFF, delivery_lag="error"), **by_day)
    found = checks(project.run_range(patient, "2026-01-01", "2026-01-03"))["delivery_lag"]
    figures = plain(found.metadata)
    assert found.passed
    assert (figures["fletcher/longbow_rows_pending"], figures["fletcher/longbow_rows_searchable"]) == (6, 0)
    assert figures["fletcher/oldest_waiting_seconds"] > 0
    for limit in ({"lag_seconds": 0.0}, {"lag_rows": 5}):
        strict = project.assets(source, checks=replace(OFF, delivery_lag="error", **limit), **by_day)
        found = checks(project.run(strict, selection=only("delivery_lag")))["delivery_lag"]
        assert not found.passed
        assert table(found, "fletcher/partitions") == [
            {"partition": day, "rows": 2} for day in DAYS.get_partition_keys()
        ]


def test_without_longbow_its_checks_pass_with_a_note(project: Project) -> None:
    project = with_resource(project, longbow=LongbowResource(enabled=False))
    found = checks(project.run(project.assets(project.docs())))
    for name in ("delivery_lag", "recall_probe"):
        assert found[name].passed
        assert found[name].description == "Longbow is switched off"


# Checks that cannot be evaluated


def test_a_check_that_cannot_be_evaluated_fails_with_its_cause(local: Project) -> None:
    assets = local.assets(local.docs())
    local.run(assets)
    files: list[Path] = []
    with_store(local, lambda generation: files.extend(generation.files()))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    found = checks(local.run(assets, selection=ALL))
    assert set(found) == set(CHECKS)
    for name in ("no_nan", "dimension", "duplicates", "row_parity"):
        assert (found[name].passed, found[name].severity.value) == (False, "ERROR")
        assert files[0].name in str(found[name].description)
        assert plain(found[name].metadata)["fletcher/error"] == "StoreError"
    assert found["delivery_lag"].passed


def test_without_its_source_only_what_needs_it_fails(local: Project) -> None:
    assets = local.assets(local.docs())
    local.run(assets)
    local.database.unlink()
    found = checks(local.run(assets, selection=ALL))
    assert {name for name in found if not found[name].passed} == {"row_parity", "quarantine"}
    assert "source.duckdb" in str(found["row_parity"].description)


def test_before_the_first_materialization_every_check_says_so(project: Project) -> None:
    result = project.run(project.assets(project.docs()), selection=ALL)
    found = checks(result)
    assert set(found) == set(CHECKS)
    assert not any(evaluation.passed for evaluation in found.values())
    assert all("materialize it first" in str(evaluation.description) for evaluation in found.values())


# Beside Dagster's own


def test_dagsters_own_checks_read_the_metadata_of_a_materialization(local: Project) -> None:
    assets = local.assets(local.docs(metadata_columns=["language"]))
    bounds = dg.build_metadata_bounds_checks(
        assets=[KEY], metadata_key="fletcher/texts_per_s", min_value=1e9, severity=dg.AssetCheckSeverity.WARN
    )
    columns = dg.build_column_schema_change_checks(assets=[KEY])
    for source in (local.docs(metadata_columns=["language"]), local.docs()):
        assets = local.assets(source)
        local.run(assets)
    result = dg.materialize(
        [assets, *bounds, *columns],
        resources={"fletcher": local.fletcher},
        instance=local.instance,
        raise_on_error=False,
    )
    failed = {evaluation.check_name for evaluation in result.get_asset_check_evaluations() if not evaluation.passed}
    assert any("bounds" in name or "texts_per_s" in name for name in failed), failed

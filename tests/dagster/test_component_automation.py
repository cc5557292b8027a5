"""Checks, retries, IO managers, schedules and sensors that the YAML component declares: they load, work, and are
refused with file and line where they cannot."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from component_sandbox import REVIEWS, loaded, spec_of
from dagster.components.testing import create_defs_folder_sandbox
from dagster_dg_core.utils.check_utils import error_dict_to_formatted_error
from dagster_shared.yaml_utils import parse_yaml_with_source_position
from embedding_project import DAYS, DOCS, Project
from jsonschema import Draft202012Validator

from fletcher_core.errors import ConfigError
from fletcher_dagster import (
    FletcherChecks,
    FletcherEmbeddingsComponent,
    FletcherIOManager,
    FletcherResource,
    LongbowResource,
    build_catch_up_schedule,
    build_fletcher_schedule,
    build_parquet_sensor,
    build_rest_sensor,
    build_watermark_sensor,
    fletcher_assets,
    fletcher_retry_policy,
)
from fletcher_dagster.check_settings import declared_checks
from fletcher_dagster.component import EmbeddingsSpecModel
from fletcher_dagster.scaffolder import FletcherEmbeddingsScaffolder, FletcherScaffoldParams
from fletcher_dagster.yaml_automation import (
    CatchUpModel,
    ParquetSensorModel,
    RestSensorModel,
    ScheduleModel,
    WatermarkSensorModel,
)
from fletcher_dagster.yaml_models import ChecksModel, RetryPolicyModel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dagster" / "component.md"
WHOLE = {key: value for key, value in REVIEWS.items() if key != "partition_column"}
DAILY = {"source": REVIEWS, "partitions_def": {"type": "daily", "start_date": "2026-01-01"}}
TICKETS = {"type": "parquet", "files": "tickets/*.parquet", "text_columns": "message", "partition_column": "file"}
FILES = {"source": TICKETS, "partitions_def": {"type": "dynamic", "name": "ticket_files"}}
IO_MANAGER = FletcherIOManager(store_path="vectors")
HEAD = f"type: fletcher_dagster.{FletcherEmbeddingsComponent.__name__}\nattributes:\n"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """As in conftest, without a Longbow to deliver to."""
    (tmp_path / "dagster").mkdir()
    longbow = LongbowResource(enabled=False)
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:  # schedules want one that lasts
        project = Project(tmp_path, instance, FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow))
        project.sql(DOCS)
        yield project


@pytest.mark.parametrize(
    ("shape", "called", "given_by_the_entry"),
    [
        (ChecksModel, FletcherChecks, set()),
        (RetryPolicyModel, fletcher_retry_policy, set()),
        (ScheduleModel, build_fletcher_schedule, {"assets"}),
        (CatchUpModel, build_catch_up_schedule, {"assets", "resource", "resource_key"}),
        (ParquetSensorModel, build_parquet_sensor, {"assets", "source"}),
        (WatermarkSensorModel, build_watermark_sensor, {"assets", "source"}),
        (RestSensorModel, build_rest_sensor, {"assets"}),
    ],
)
def test_yaml_has_the_settings_defaults_and_descriptions_of_what_python_calls(
    shape: type[dg.Model], called: Callable[..., Any], given_by_the_entry: set[str]
) -> None:
    parameters = inspect.signature(called).parameters
    assert set(shape.model_fields) - {"type"} == set(parameters) - given_by_the_entry
    for name, field in shape.model_fields.items():
        assert field.description, name
        default = parameters[name].default if name in parameters else field.default
        if default is inspect.Parameter.empty:
            assert field.is_required()
        elif not callable(default):
            assert field.default == getattr(default, "value", default)


def test_an_entry_can_say_all_that_the_decorator_takes() -> None:
    elsewhere = {
        "sources": "source",
        "translator": "translation",
        "group_name": "translation",
        **dict.fromkeys(("name", "op_tags", "pool", "backfill_policy"), "op"),
    }
    entry = {field.name for field in fields(EmbeddingsSpecModel)}
    python = set(inspect.signature(fletcher_assets).parameters) - {"resource", "hooks"}
    assert {elsewhere.get(name, name) for name in python} <= entry


def test_checks_retries_and_the_io_manager_reach_the_asset() -> None:
    entry = {
        "source": WHOLE,
        "checks": {"unit_norm": "error", "drift": False, "lag_seconds": 600, "lag_rows": None},  # a bare `off` is False
        "retry_policy": {"max_retries": 2},
        "io_manager_key": "fletcher_io",
    }
    with loaded(entry) as (_, defs):
        assets = dg.Definitions.merge(defs, dg.Definitions(resources={"fletcher_io": IO_MANAGER})).resolve_assets_def(
            "reviews_embeddings"
        )
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="fletcher_io"):
            dg.Definitions.validate_loadable(defs)
    names = {spec.name for spec in assets.check_specs}
    assert "drift" not in names
    declared = declared_checks(assets.check_specs)
    assert (declared.unit_norm, declared.lag_seconds, declared.lag_rows) == ("error", 600.0, None)
    assert {spec.name: spec.blocking for spec in assets.check_specs}["unit_norm"]
    assert assets.op.retry_policy == fletcher_retry_policy(2)
    assert [spec.metadata["dagster/io_manager_key"] for spec in assets.specs] == ["fletcher_io"]


def test_schedules_and_sensors_are_named_after_their_asset_wherever_it_stands_in_the_file() -> None:
    first = {"source": {**WHOLE, "table": "first"}}
    entry = {
        "source": WHOLE,
        "schedule": {"cron_schedule": "0 3 * * *", "execution_timezone": "Asia/Tokyo", "default_status": "RUNNING"},
        "sensor": {"type": "watermark", "watermark_column": "updated_at", "max_runs_per_tick": 3},
        "rest_sensor": {},
    }
    for entries in ((entry,), (first, entry)):
        with loaded(*entries, {**DAILY, "source": {**REVIEWS, "name": "days"}}, fletcher={"max_rows_per_run": 9}) as (
            _,
            defs,
        ):
            repository = defs.get_repository_def()
            assert [one.name for one in repository.schedule_defs] == ["reviews_embeddings_schedule"]
            assert sorted(one.name for one in repository.sensor_defs) == [
                "reviews_embeddings_rest",
                "reviews_embeddings_watermark",
            ]
            (schedule,) = repository.schedule_defs
            assert schedule.cron_schedule == "0 3 * * *"
            assert schedule.execution_timezone == "Asia/Tokyo"
            assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    with loaded(
        {**entry, "op": {"name": "mine"}, "rest_sensor": {"name": "own"}}, fletcher={"max_rows_per_run": 9}
    ) as (
        _,
        defs,
    ):
        assert sorted(one.name for one in defs.get_repository_def().sensor_defs) == ["mine_watermark", "own"]


def test_templates_give_numbers_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHER_TEST_STATUS", "RUNNING")
    monkeypatch.setenv("FLETCHER_TEST_RUNS", "7")
    env = "{{ env.FLETCHER_TEST_%s }}"
    sensor = {
        "type": "watermark",
        "watermark_column": "updated_at",
        "default_status": env % "STATUS",
        "minimum_interval_seconds": env % "RUNS",
    }
    with loaded({"source": WHOLE, "sensor": sensor}) as (_, defs):
        (made,) = defs.get_repository_def().sensor_defs
        assert made.default_status == dg.DefaultSensorStatus.RUNNING
        assert made.minimum_interval_seconds == 7
    monkeypatch.setenv("FLETCHER_TEST_RUNS", "many")
    with pytest.raises(Exception, match=r"defs\.yaml") as caught, loaded({"source": WHOLE, "sensor": sensor}):
        pass
    assert "minimum_interval_seconds is 'many': input should be a valid integer" in str(caught.value.__cause__)


NAMES = """
import dagster as dg

@dg.template_var
def of_file():
    return lambda path: "day-" + path.rsplit("/", 1)[-1].removesuffix(".parquet")
"""


def test_a_parquet_sensor_asks_for_files_and_takes_a_function_from_a_template(project: Project) -> None:
    duckdb.sql("SELECT 1 AS id, 'day-1' AS file, 'x' AS text").write_parquet(str(project.folder / "1.parquet"))
    text = f"""\
{HEAD}  fletcher: {{store_path: vectors}}
  embeddings:
    - source: {{type: parquet, files: "{project.folder}/*.parquet", name: tickets, partition_column: file}}
      partitions_def: {{type: dynamic, name: ticket_files}}
      sensor: {{type: parquet, partition_key: "{{{{ of_file }}}}"}}
template_vars_module: .names
"""
    with loaded(text=text, modules={"names.py": NAMES}) as (_, defs):
        repository = defs.get_repository_def()
        context = dg.build_sensor_context(
            project.instance, repository_def=repository, instance_ref=project.instance.get_ref()
        )
        found = repository.get_sensor_def("tickets_embeddings_files").evaluate_tick(context)
    assert [request.partition_key for request in found.run_requests or []] == ["day-1"]


def test_a_catch_up_asks_the_components_own_store(project: Project) -> None:
    entry = {
        "source": {"type": "duckdb", "database": str(project.database), "table": "docs", "partition_column": "day"},
        "partitions_def": {"type": "daily", "start_date": "2026-01-01", "end_date": "2026-01-04"},
        "catch_up": {"max_partitions": 1},
    }
    settings = {"store_path": project.fletcher.store_path, "longbow": {"enabled": False}}
    with loaded(entry, fletcher=settings) as (_, defs):
        repository = defs.get_repository_def()
        assert DAYS.get_partition_keys() == repository.get_job("__ASSET_JOB").partitions_def.get_partition_keys()
        schedule = repository.get_schedule_def("docs_embeddings_catch_up")
        with dg.build_schedule_context(instance=project.instance, repository_def=repository) as context:
            requests = schedule.evaluate_tick(context).run_requests or []
    assert [request.partition_key for request in requests] == ["2026-01-01"]


@pytest.mark.parametrize(
    ("entry", "block", "words"),
    [
        ({"source": WHOLE, "sensor": {"type": "parquet"}}, "sensor", "take `sensor: {type: watermark}`"),
        ({**DAILY, "source": {**TICKETS}, "sensor": {"type": "parquet"}}, "sensor", "by `schedule:` and `catch_up:`"),
        ({"source": WHOLE, "catch_up": {}}, "catch_up", "no partitions to catch up with"),
        ({**FILES, "schedule": {"cron_schedule": "@daily"}}, "schedule", "use `sensor: {type: parquet}` for"),
        ({**DAILY, "schedule": {"cron_schedule": "@daily"}}, "schedule", "time partitions run at their own cadence"),
        ({**DAILY, "schedule": {"hour_of_day": 24}}, "schedule", "hour_of_day is 24; it must be from 0 to 23"),
        ({"source": WHOLE, "schedule": {}}, "schedule", "needs a cron_schedule="),
        ({"source": WHOLE, "schedule": {"cron_schedule": "daily"}}, "schedule", "invalid cron schedule 'daily'"),
        ({"source": WHOLE, "rest_sensor": {}}, "rest_sensor", "set max_rows_per_run under fletcher"),
        ({"source": WHOLE, "checks": {"recall_share": 2}}, "checks", "recall_share of the checks is 2.0"),
        ({"source": WHOLE, "retry_policy": {"delay": -1}}, "retry_policy", "neither can be negative"),
    ],
)
def test_what_does_not_go_together_fails_at_load_with_its_line(entry: dict[str, Any], block: str, words: str) -> None:
    lines = "".join(f"      {key}: {json.dumps(value)}\n" for key, value in entry.items())
    text = f"{HEAD}  fletcher: {{store_path: v}}\n  embeddings:\n    -\n{lines}"
    with pytest.raises(Exception, match=r"defs\.yaml") as caught, loaded(text=text):
        pass
    shown = str(caught.value.__cause__)
    line = 6 + [*entry].index(block)
    assert re.search(rf"defs\.yaml:{line} - attributes\.embeddings\.0\.{block}\b", shown)
    assert words in shown
    if block in ("sensor", "catch_up", "schedule", "rest_sensor"):
        assert isinstance(caught.value.__cause__, ConfigError)


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("checks: {\n        drift: loud}", "checks.drift"),
        ("checks: {\n        recal_share: 0.5}", "checks.recal_share"),
        ("retry_policy: {\n        retries: 3}", "retry_policy.retries"),
        ("schedule: {\n        cron: '@daily'}", "schedule.cron"),
        ("catch_up: {\n        max_rows: many}", "catch_up.max_rows"),
        ("sensor: {type: watermark, watermark_column: day,\n        lock_timeout: long}", "sensor.lock_timeout"),
        ("sensor: {type: parquet,\n        watermark_column: day}", "sensor.watermark_column"),
        ("rest_sensor: {\n        default_status: on}", "rest_sensor.default_status"),
        ("checks: {}\n      io_manager_key: [a]", "io_manager_key"),
    ],
)
def test_dg_check_yaml_names_the_line(lines: str, key: str, tmp_path: Path) -> None:
    entry = f"    - source: {{type: parquet, files: x}}\n      {lines}\n"
    text = f"{HEAD}  fletcher: {{store_path: v}}\n  embeddings:\n{entry}"
    file = tmp_path / "defs.yaml"
    file.write_text(text)
    document = parse_yaml_with_source_position(text, str(file))
    validator = Draft202012Validator(FletcherEmbeddingsComponent.get_model_cls().model_json_schema())
    errors = list(validator.iter_errors(document.value["attributes"]))
    assert errors, "the schema takes it"
    shown = error_dict_to_formatted_error(None, errors[0], document.source_position_tree, ["attributes"])
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert re.search(rf"defs\.yaml:7 .*attributes\.embeddings\.0\.{re.escape(key)}", plain), plain


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"fletcher": {"store_path": "v", "engine": "gpuu"}}, "'gpuu' is not one of ['auto', 'mlx', 'cpu', 'native'"),
        ({"embeddings": [{"source": {"type": "postgres"}}]}, "'postgres' is not one of ['duckdb', 'parquet']"),
        ({"embeddings": [{"source": {"database": "x"}}]}, "'type' is a required property"),
        ({"embeddings": [{"source": WHOLE, "checks": {"drift": "loud"}}]}, "'loud' is not one of ['error', 'warn'"),
    ],
)
def test_a_word_that_does_not_exist_is_answered_with_those_that_do(attributes: dict[str, Any], words: str) -> None:
    schema = FletcherEmbeddingsComponent.get_model_cls().model_json_schema()
    given = {"fletcher": {"store_path": "v"}, "embeddings": [{"source": WHOLE}], **attributes}
    (error,) = Draft202012Validator(schema).iter_errors(given)
    assert words in error.message
    engine = {"fletcher": {"store_path": "v", "engine": "{{ env.ENGINE }}"}}
    assert not [*Draft202012Validator(schema).iter_errors({**given, **engine, "embeddings": [{"source": WHOLE}]})]


def test_conditions_and_freshness_come_from_dagsters_own_shapes_also_where_a_sensor_targets_the_asset() -> None:
    text = f"""\
{HEAD}  fletcher: {{store_path: vectors}}
  embeddings:
    - source: {{type: duckdb, database: x, table: reviews, text_columns: body}}
      schedule: {{cron_schedule: "@daily"}}
      sensor: {{type: watermark, watermark_column: id}}
      translation: {{automation_condition: "{{{{ eager_or_model_changed }}}}"}}
post_processing:
  assets:
    - attributes:
        group_name: later
        freshness_policy: "{{{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=24)) }}}}"
"""
    with loaded(text=text) as (_, defs):
        dg.Definitions.validate_loadable(defs)
        spec = spec_of(defs, "reviews_embeddings")
        (sensor,) = [one for one in defs.get_repository_def().sensor_defs if one.name == "reviews_embeddings_watermark"]
        assert defs.get_repository_def().get_job(sensor.job_name).asset_layer.executable_asset_keys == {spec.key}
    assert spec.group_name == "later"
    assert spec.automation_condition is not None
    assert spec.automation_condition.get_label() == "eager_or_model_changed"
    assert isinstance(spec.freshness_policy, dg.FreshnessPolicy)


@pytest.mark.parametrize("number", range(len(re.findall(r"^```yaml\ntype:", PAGE.read_text(), re.MULTILINE))))
def test_an_example_of_the_page_loads(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_LENGTH", "128")
    text = re.findall(r"^```yaml\n(type:.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[number]
    with loaded(text=text) as (_, defs):
        dg.Definitions.validate_loadable(
            dg.Definitions.merge(defs, dg.Definitions(resources={"fletcher_io": IO_MANAGER}))
        )


def test_the_page_has_its_examples() -> None:
    assert len(re.findall(r"^```yaml\ntype:", PAGE.read_text(), re.MULTILINE)) == 3


def test_every_suggestion_of_the_scaffolded_yaml_loads() -> None:
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=FletcherEmbeddingsComponent, scaffold_params=FletcherScaffoldParams().model_dump()
        )
        file = path / "defs.yaml"
        suggested = re.sub(r"^( +)# (?= *\w+:)", r"\1", file.read_text(), flags=re.MULTILINE)
        assert not re.search(r"^ *#", suggested, re.MULTILINE)
        file.write_text(suggested)
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            assert isinstance(component, FletcherEmbeddingsComponent)
            (entry,) = component.embeddings
            unsaid = [field.name for field in fields(EmbeddingsSpecModel) if getattr(entry, field.name) is None]
            assert unsaid == []
            dg.Definitions.validate_loadable(
                dg.Definitions.merge(defs, dg.Definitions(resources={"fletcher_io": IO_MANAGER}))
            )


def test_a_second_scaffold_is_written_behind_the_first(tmp_path: Path) -> None:
    file = tmp_path / "defs.yaml"
    for append, table in ((False, "notes"), (True, "orders")):
        FletcherEmbeddingsScaffolder().scaffold(
            dg.ScaffoldRequest(
                type_name="fletcher_dagster.FletcherEmbeddingsComponent",
                target_path=file if append else tmp_path,
                scaffold_format="yaml",
                project_root=None,
                params=FletcherScaffoldParams(table=table),
                append=append,
            )
        )
    first, second = file.read_text().split("---\n")
    assert "table: notes" in first
    assert "table: orders" in second
    assert first.replace("notes", "orders") == second

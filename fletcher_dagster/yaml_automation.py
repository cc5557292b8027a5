"""What starts the runs of an entry, in YAML: a clock, the source, the partitions that lack, the rows left over.

Every shape is derived from the builder that Python calls. In come the settings of an entry, and, when its assets are
made, those; out go its schedules and sensors, or a ConfigError that begins with file and line.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from fletcher_core.errors import ConfigError
from fletcher_core.sources import Source
from fletcher_dagster.catch_up import build_catch_up_schedule
from fletcher_dagster.derived_models import call_model, call_settings
from fletcher_dagster.resources import FletcherResource
from fletcher_dagster.rest_sensor import build_rest_sensor
from fletcher_dagster.schedules import build_fletcher_schedule
from fletcher_dagster.sensors import build_parquet_sensor, build_watermark_sensor
from fletcher_dagster.yaml_models import given_settings

_OF_THE_ENTRY = ("assets", "source", "resource", "resource_key")
"""Parameters of the builders that the entry itself gives."""

ScheduleModel = call_model(build_fletcher_schedule, without=_OF_THE_ENTRY, name="ScheduleModel")
CatchUpModel = call_model(build_catch_up_schedule, without=_OF_THE_ENTRY, name="CatchUpModel")
ParquetSensorModel = call_model(build_parquet_sensor, without=_OF_THE_ENTRY, kind="parquet", name="ParquetSensorModel")
WatermarkSensorModel = call_model(
    build_watermark_sensor, without=_OF_THE_ENTRY, kind="watermark", name="WatermarkSensorModel"
)
RestSensorModel = call_model(build_rest_sensor, without=_OF_THE_ENTRY, name="RestSensorModel")


@dataclass(frozen=True)
class Automation:
    """One block of an entry: the builder, what it is called with, the end of the name, and where the block stands."""

    builder: Callable[..., Any]
    settings: Mapping[str, Any]
    suffix: str
    place: str

    def build(self, name: str, assets: dg.AssetsDefinition, source: Source, resource: FletcherResource) -> Any:
        """The schedule or the sensor, by default called `name` and the suffix.

        Raises:
            ConfigError: the settings do not go with the source, its partitions or the resource.
        """
        ours = {"assets": assets, "source": source, "resource": resource}
        taken = inspect.signature(self.builder).parameters
        settings = {"name": f"{name}_{self.suffix}", **self.settings}
        try:
            if self.builder is build_rest_sensor and resource.max_rows_per_run is None:
                raise ConfigError(
                    "rest_sensor asks for the next run while a run left rows over, and without a limit none does: set "
                    "max_rows_per_run under fletcher, or leave rest_sensor out"
                )
            return self.builder(**{key: value for key, value in ours.items() if key in taken}, **settings)
        except (ConfigError, dg.DagsterError) as error:
            words = re.sub(r"build_\w+", lambda found: _IN_YAML.get(found[0], found[0]), str(error))
            raise ConfigError(f"{self.place}: {words}") from error


_IN_YAML = {
    "build_fletcher_schedule": "`schedule:`",
    "build_catch_up_schedule": "`catch_up:`",
    "build_parquet_sensor": "`sensor: {type: parquet}`",
    "build_watermark_sensor": "`sensor: {type: watermark}`",
    "build_rest_sensor": "`rest_sensor:`",
}
"""What the builders that a sentence names are called here."""


def resolve_schedule(context: dg.ResolutionContext, model: dg.Model) -> Automation:
    return _automation(context, model, build_fletcher_schedule, "schedule")


def resolve_catch_up(context: dg.ResolutionContext, model: dg.Model) -> Automation:
    return _automation(context, model, build_catch_up_schedule, "catch_up")


def resolve_sensor(context: dg.ResolutionContext, model: dg.Model) -> Automation:
    if isinstance(model, ParquetSensorModel):
        return _automation(context, model, build_parquet_sensor, "files")
    return _automation(context, model, build_watermark_sensor, "watermark")


def resolve_rest_sensor(context: dg.ResolutionContext, model: dg.Model) -> Automation:
    return _automation(context, model, build_rest_sensor, "rest")


def _automation(context: dg.ResolutionContext, model: dg.Model, builder: Callable[..., Any], suffix: str) -> Automation:
    settings = given_settings(context, model)
    settings.pop("type", None)
    return Automation(builder, call_settings(builder, settings), suffix, _place(context))


def _place(context: dg.ResolutionContext) -> str:
    """As Dagster names it where a value has the wrong type: file, line and path."""
    if context.source_position_tree is None:
        return ".".join(str(part) for part in context.path)
    found = context.source_position_tree.source_error(context.path, inline_error_message="", value_error=True)
    return f"{found.file_name}:{found.start_line_no} - {found.location}"

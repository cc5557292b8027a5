"""The component: embeddings declared in YAML.

In come the attributes of a `defs.yaml` (the settings of one `FletcherResource`, a list of embeddings, each a
source with its partitions, checks, op, translation and what starts its runs); out go `Definitions` with one asset an
entry, and its schedules and sensors.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import dagster as dg
from dagster.components.resolved.core_models import OpSpec
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel

from fletcher_core.sources import Source
from fletcher_dagster.assets import build_fletcher_asset_specs, fletcher_assets
from fletcher_dagster.automation import eager_or_model_changed
from fletcher_dagster.check_settings import FletcherChecks
from fletcher_dagster.resources import FletcherResource
from fletcher_dagster.scaffolder import FletcherEmbeddingsScaffolder
from fletcher_dagster.schema_lines import with_lines
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData
from fletcher_dagster.yaml_automation import (
    Automation,
    CatchUpModel,
    ParquetSensorModel,
    RestSensorModel,
    ScheduleModel,
    WatermarkSensorModel,
    resolve_catch_up,
    resolve_rest_sensor,
    resolve_schedule,
    resolve_sensor,
)
from fletcher_dagster.yaml_models import (
    ChecksModel,
    DuckDBTableModel,
    FletcherModel,
    ParquetTableModel,
    PartitionsModel,
    RetryPolicyModel,
    resolve_checks,
    resolve_fletcher,
    resolve_partitions,
    resolve_retry_policy,
    resolve_source,
)

_TRANSLATION = TranslationFnResolver[FletcherTranslatorData](lambda data: {"source": data.source, "data": data})
_TRANSLATION.description = "What to change in the asset: key, group, tags, owners, automation condition and the like."


@dataclass
class EmbeddingsSpecModel(dg.Resolvable):
    """One entry of `embeddings`: a source and how its asset is partitioned, run and named."""

    source: Annotated[
        Source,
        dg.Resolver(
            resolve_source,
            model_field_type=DuckDBTableModel | ParquetTableModel,
            description="What is embedded: a DuckDB table or query, or Parquet files.",
        ),
    ]
    partitions_def: Annotated[
        dg.PartitionsDefinition[str] | None,
        dg.Resolver(
            resolve_partitions,
            model_field_type=PartitionsModel | None,
            description="How the rows are divided, by the source's partition_column.",
        ),
    ] = None
    op: Annotated[
        OpSpec | None,
        dg.Resolver.default(description="What runs the asset: its name, tags, description, pool and backfill_policy."),
    ] = None
    checks: Annotated[
        FletcherChecks | None,
        dg.Resolver(
            resolve_checks,
            model_field_type=ChecksModel,
            description="What a failure of each check means (error, warn, off), and the checks' limits.",
            examples=[{"unit_norm": "error", "drift": "off", "lag_seconds": 600}],
        ),
    ] = None
    retry_policy: Annotated[
        dg.RetryPolicy | None,
        dg.Resolver(
            resolve_retry_policy,
            model_field_type=RetryPolicyModel,
            description="How often a step is tried again after a failure that can pass by itself; left out: never.",
        ),
    ] = None
    io_manager_key: Annotated[
        str | None,
        dg.Resolver.default(
            description="Of a FletcherIOManager among the project's resources, for assets downstream that take the "
            "vectors as a parameter.",
            examples=["fletcher_io"],
        ),
    ] = None
    schedule: Annotated[
        Automation | None,
        dg.Resolver(
            resolve_schedule,
            model_field_type=ScheduleModel,
            description="Runs the asset on a clock: cron_schedule, or hour_of_day for time partitions.",
            examples=[{"cron_schedule": "0 3 * * *"}],
        ),
    ] = None
    sensor: Annotated[
        Automation | None,
        dg.Resolver(
            resolve_sensor,
            model_field_type=ParquetSensorModel | WatermarkSensorModel,
            description="Runs the asset when the source changed: by its files (type parquet), or by a column that "
            "grows (type watermark).",
            examples=[{"type": "watermark", "watermark_column": "updated_at"}],
        ),
    ] = None
    catch_up: Annotated[
        Automation | None,
        dg.Resolver(
            resolve_catch_up,
            model_field_type=CatchUpModel,
            description="Runs missing, stale and failed partitions, so many a night.",
            examples=[{"cron_schedule": "0 2 * * *", "max_rows": 1_000_000}],
        ),
    ] = None
    rest_sensor: Annotated[
        Automation | None,
        dg.Resolver(
            resolve_rest_sensor,
            model_field_type=RestSensorModel,
            description="Asks for the next run while rows remain over max_rows_per_run; {} for its defaults.",
            examples=[{}],
        ),
    ] = None
    translation: Annotated[TranslationFn[FletcherTranslatorData] | None, _TRANSLATION] = None


@dg.scaffold_with(FletcherEmbeddingsScaffolder)
@dataclass
class FletcherEmbeddingsComponent(dg.Component, dg.Resolvable):
    """Embeddings of DuckDB tables and Parquet files as assets, declared in YAML.

    Relative paths are taken from the project's root. To begin: `dg scaffold defs
    fletcher_dagster.FletcherEmbeddingsComponent <path>`.
    """

    fletcher: Annotated[
        FletcherResource,
        dg.Resolver(
            resolve_fletcher,
            model_field_type=FletcherModel,
            description="The model that embeds, and where the vectors go.",
            examples=[{"store_path": "vectors", "longbow": {"data_address": "longbow.internal:3000"}}],
        ),
    ]
    embeddings: Annotated[
        Sequence[EmbeddingsSpecModel],
        dg.Resolver.default(
            description="One asset an entry: its source and the rest.",
            examples=[
                [
                    {
                        "source": {
                            "type": "duckdb",
                            "database": "shop.duckdb",
                            "table": "reviews",
                            "text_columns": ["title"],
                        }
                    }
                ]
            ],
        ),
    ]

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return with_lines(cls.model())

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        """The spec of one source's asset, before the entry's `translation`. Override to name assets in
        Python."""
        return FletcherTranslator().get_asset_spec(data)

    def execute(
        self, context: dg.AssetExecutionContext, fletcher: FletcherResource
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        """What a run of the assets does. Override to act before or after, or to change the events."""
        yield from fletcher.run(context=context)

    @staticmethod
    @dg.template_var
    def eager_or_model_changed() -> dg.AutomationCondition[dg.AssetKey]:
        """What `{{ eager_or_model_changed }}` stands for in the file: see `fletcher_dagster.eager_or_model_changed`."""
        return eager_or_model_changed()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions.merge(*map(self._build_entry, self.embeddings))

    def _build_entry(self, entry: EmbeddingsSpecModel) -> dg.Definitions:
        op, translator = entry.op or OpSpec(), _EntryTranslator(self, entry)
        (spec,) = build_fletcher_asset_specs(sources=[entry.source], translator=translator, resource=self.fletcher)
        # After the asset, and not numbered: other files may have entries, too, and Dagster knows by its name whether a
        # sensor is on, and what it saw last.
        name = op.name or re.sub(r"\W", "_", "__".join(spec.key.path))
        assets = self._build_asset(name, entry, op, translator)

        def built(*given: Automation | None) -> list[Any]:
            return [one.build(name, assets, entry.source, self.fletcher) for one in given if one]

        return dg.Definitions(
            assets=[assets],
            schedules=built(entry.schedule, entry.catch_up),
            sensors=built(entry.sensor, entry.rest_sensor),
        )

    def _build_asset(
        self, name: str, entry: EmbeddingsSpecModel, op: OpSpec, translator: FletcherTranslator
    ) -> dg.AssetsDefinition:
        def embeddings(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from self.execute(context, self.fletcher)

        embeddings.__doc__ = op.description  # Dagster describes an op so
        return fletcher_assets(
            sources=[entry.source],
            name=name,
            op_tags=op.tags,
            pool=op.pool,
            backfill_policy=op.backfill_policy,
            partitions_def=entry.partitions_def,
            retry_policy=entry.retry_policy,
            io_manager_key=entry.io_manager_key,
            checks=entry.checks,
            translator=translator,
            resource=self.fletcher,
        )(embeddings)


class _EntryTranslator(FletcherTranslator):
    """The component's own `get_asset_spec`, then the entry's `translation`."""

    def __init__(self, component: FletcherEmbeddingsComponent, entry: EmbeddingsSpecModel) -> None:
        self._component = component
        self._entry = entry

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        spec = self._component.get_asset_spec(data)
        return self._entry.translation(spec, data) if self._entry.translation else spec

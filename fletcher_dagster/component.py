"""The component: embeddings declared in YAML.

In come the attributes of a `defs.yaml` (the settings of one `FletcherResource`, a list of embeddings, each a
source with its partitions, op and translation); out go `Definitions` with one asset an entry.
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
from fletcher_dagster.assets import fletcher_assets
from fletcher_dagster.resources import FletcherResource
from fletcher_dagster.scaffolder import FletcherEmbeddingsScaffolder
from fletcher_dagster.schema_lines import with_lines
from fletcher_dagster.translator import FletcherTranslator, FletcherTranslatorData
from fletcher_dagster.yaml_models import (
    DuckDBTableModel,
    FletcherModel,
    ParquetTableModel,
    PartitionsModel,
    resolve_fletcher,
    resolve_partitions,
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

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(assets=[self._build_asset(n, entry) for n, entry in enumerate(self.embeddings)])

    def _build_asset(self, number: int, entry: EmbeddingsSpecModel) -> dg.AssetsDefinition:
        op = entry.op or OpSpec()
        # Ops of one code location need names of their own, also where two entries read the same table.
        name = op.name or re.sub(r"\W", "_", f"{entry.source.name}_embeddings_{number}")

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
            translator=_EntryTranslator(self, entry),
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

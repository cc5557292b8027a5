"""From a source to the asset that holds its embeddings: key, dependencies, kinds, description.

In comes a `FletcherTranslatorData` (a source and what is known of the model at definition time), out goes
a `dagster.AssetSpec`. It exists so that a project can rename, group and tag its assets in one place.
"""

import re
from dataclasses import dataclass

import dagster as dg

from fletcher_core.sources import DuckDBTable, Source


@dataclass(frozen=True)
class FletcherTranslatorData:
    """What an asset spec is made from.

    `model` is None when the resource that will embed is not known at definition time, or takes it from an
    environment variable. `code_version` covers the text that is embedded and the known settings of the model.
    `longbow` says whether vectors are also delivered to Longbow.
    """

    source: Source
    model: str | None
    code_version: str
    longbow: bool = True


class FletcherTranslator:
    """Maps sources to asset specs. Override `get_asset_spec` to change keys, groups, tags or dependencies."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        """The spec of the asset that holds the embeddings of `data.source`.

        The default: a table `main.docs` becomes the asset `main/docs_embeddings` that depends on the asset
        `main/docs`; a source with a `name` of its own, a query or Parquet files go by that name.
        """
        source = data.source
        path = _key_path(source.name)
        table = source.table if isinstance(source, DuckDBTable) else None
        return dg.AssetSpec(
            key=dg.AssetKey([*path[:-1], f"{path[-1]}_embeddings"]),
            deps=[dg.AssetKey(_key_path(table or source.name))],
            description=_description(data),
            kinds={_kind(data.source)} | ({"longbow"} if data.longbow else set()),
            code_version=data.code_version,
        )


def _key_path(name: str) -> list[str]:
    """A dotted name as an asset key; what Dagster refuses becomes _."""
    parts = [re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in name.split(".")]
    return [part for part in parts if part] or ["source"]


def _kind(source: Source) -> str:
    return "duckdb" if isinstance(source, DuckDBTable) else "parquet"


def _description(data: FletcherTranslatorData) -> str:
    columns = ", ".join(f"`{column}`" for column in data.source.text_columns)
    model = f" by the model `{data.model}`" if data.model else ""
    return f"Embeddings of {columns} of `{data.source.name}`{model}: one vector a row, kept up to date."

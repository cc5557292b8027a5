"""From a source to the asset that holds its embeddings: key, dependencies, kinds, description.

In comes a `FletcherTranslatorData` (a source and what is known of the model at definition time), out goes
a `dagster.AssetSpec`. It exists so that a project can rename, group and tag its assets in one place.
"""

import os
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import dagster as dg

from fletcher_core.models.architecture import Family
from fletcher_core.models.description import ModelDescription
from fletcher_core.sources import DuckDBTable, Source

_FAMILIES: dict[Family, str] = {"bert": "BERT", "nomic_bert": "NomicBERT"}
_TAG_VALUE_CHARACTERS = 63  # the most that Dagster takes


@dataclass(frozen=True)
class FletcherTranslatorData:
    """What an asset spec is made from.

    `model` and `engine` are None when the resource that will embed is not known at definition time, or takes them
    from an environment variable. `code_version` covers the text that is embedded and the known settings of the
    model. `longbow` says whether vectors are also delivered to Longbow. `model_description` is None, too, when the
    model is not on this machine.
    """

    source: Source
    model: str | None
    code_version: str
    longbow: bool = True
    engine: str | None = None
    model_description: ModelDescription | None = None


class FletcherTranslator:
    """Maps sources to asset specs. Override `get_asset_spec` to change keys, groups, owners, tags or dependencies."""

    def get_asset_spec(self, data: FletcherTranslatorData) -> dg.AssetSpec:
        """The spec of the asset that holds the embeddings of `data.source`.

        The default: a table `main.docs` becomes the asset `main/docs_embeddings` that depends on the asset
        `main/docs`; a source with a `name` of its own, a query or Parquet files go by that name. The model's name is
        the tag `fletcher/model`; the folder of one that has no other name is the metadata `fletcher/model_folder`.
        Dagster takes no more than three kinds, which source, `longbow` and `mlx` fill.
        """
        source = data.source
        path = _key_path(source.name)
        table = source.table if isinstance(source, DuckDBTable) else None
        return dg.AssetSpec(
            key=dg.AssetKey([*path[:-1], f"{path[-1]}_embeddings"]),
            deps=[dg.AssetKey(_key_path(table or source.name))],
            description=_description(data),
            kinds=_kinds(data),
            tags=_tags(data),
            metadata=_model_folder(data),
            code_version=data.code_version,
        )


def _key_path(name: str) -> list[str]:
    """A dotted name as an asset key; what Dagster refuses becomes _."""
    parts = [re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in name.split(".")]
    return [part for part in parts if part] or ["source"]


def _kinds(data: FletcherTranslatorData) -> set[str]:
    source = "duckdb" if isinstance(data.source, DuckDBTable) else "parquet"
    return {source} | ({"longbow"} if data.longbow else set()) | ({"mlx"} if data.engine == "mlx" else set())


def _tags(data: FletcherTranslatorData) -> dict[str, str]:
    """The model without the owner or the folders before its name; no tag for a name that is none of Dagster's."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", PurePath(data.model or "").name)[:_TAG_VALUE_CHARACTERS]
    return {"fletcher/model": name} if name else {}


def _is_folder(model: str) -> bool:
    """Whether a model's name is a place on this machine, rather than a package's name or the hub's `owner/name`."""
    return model.startswith(("/", "~", ".")) or model.count("/") > 1


def _model_folder(data: FletcherTranslatorData) -> dict[str, dg.MetadataValue[Any]]:
    """Where the model is, for people to copy; nothing for one that goes by its name."""
    if not data.model or not _is_folder(data.model):
        return {}
    return {"fletcher/model_folder": dg.MetadataValue.path(os.path.abspath(os.path.expanduser(data.model)))}


def _description(data: FletcherTranslatorData) -> str:
    columns = ", ".join(f"`{column}`" for column in data.source.text_columns)
    name = PurePath(data.model).name if data.model and _is_folder(data.model) else data.model
    model = f" by the model `{name}`" if name else ""
    sentence = f"Embeddings of {columns} of `{data.source.name}`{model}: one vector a row, kept up to date."
    return "\n\n".join([sentence, _model_card(data.model_description)] if data.model_description else [sentence])


def _model_card(model: ModelDescription) -> str:
    """As a Markdown table."""
    lines = {
        "Model": f"`{model.name}`",
        "Architecture": f"{_FAMILIES[model.family]}, {model.layers} layers",
        "Dimension": f"{model.dimension:,}",
        "Longest text": f"{model.max_tokens:,} tokens",
        "Pooling": model.pooling,
        "Normalized": "yes" if model.normalize else "no",
        "Prompt": f"`{_cell(model.prompt)}`" if model.prompt else "none",
        "Licence": model.licence or "not stated",
    }
    (first, value), *rest = lines.items()
    return "\n".join([f"| {first} | {value} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rest)])


def _cell(text: str) -> str:
    """Any text as code inside a cell of a Markdown table."""
    plain = " ".join(text.replace("`", "'").split())
    return plain[:80].replace("|", "\\|")

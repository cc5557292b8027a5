"""What an asset's definition remembers of its source, so that the run can find it again.

A source goes into the asset spec's metadata as plain JSON, which Dagster stores and shows, and comes back as
the same `DuckDBTable` or `ParquetTable`. The folder of an asset's vectors follows from the asset's key alone.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import dagster as dg

from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, ParquetTable, Source

SOURCE_KEY = "fletcher/source"

_KINDS: dict[str, type[DuckDBTable] | type[ParquetTable]] = {"duckdb": DuckDBTable, "parquet": ParquetTable}


def source_metadata(source: Source) -> dict[str, dg.JsonMetadataValue]:
    """The metadata entry that `declared_source` reads back."""
    kind = next(kind for kind, type_ in _KINDS.items() if isinstance(source, type_))
    settings = {field.name: _plain(getattr(source, field.name)) for field in fields(source) if field.init}
    return {SOURCE_KEY: dg.MetadataValue.json({"kind": kind, **settings})}


def declared_source(spec: dg.AssetSpec) -> Source:
    """The source that `build_fletcher_asset_specs` put into `spec`; raises `ConfigError` when there is
    none."""
    entry = spec.metadata.get(SOURCE_KEY)
    if not isinstance(entry, dg.JsonMetadataValue) or not isinstance(entry.data, dict):
        raise ConfigError(
            f"asset {spec.key.to_user_string()!r} carries no {SOURCE_KEY!r} metadata: declare it with "
            "@fletcher_assets or build_fletcher_asset_specs, and merge metadata into specs instead of replacing it"
        )
    settings: dict[str, Any] = dict(entry.data)
    return _KINDS[settings.pop("kind")](**settings)


def source_place(source: Source) -> dict[str, dg.MetadataValue[Any]]:
    """Where the source is, for people to copy or to follow: `fletcher/database`, or `fletcher/files`."""
    if isinstance(source, DuckDBTable):
        return {"fletcher/database": dg.MetadataValue.path(_absolute(str(source.database)))}
    places = [_absolute(pattern) for pattern in source.patterns]
    if len(places) > 1:
        return {"fletcher/files": dg.MetadataValue.json(places)}
    (place,) = places
    is_link = place.startswith(("http://", "https://"))
    return {"fletcher/files": dg.MetadataValue.url(place) if is_link else dg.MetadataValue.path(place)}


def collection_name(asset_key: dg.AssetKey) -> str:
    """The name of an asset's vector store and of its folder: the key's parts joined by dots, other signs as
    %XX."""
    return ".".join(quote(part, safe="").replace(".", "%2E") for part in asset_key.path)


def _absolute(place: str) -> str:
    """Addresses such as s3://... stay as they are."""
    return place if "://" in place else str(Path(place).absolute())


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value

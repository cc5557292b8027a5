"""The columns of an embedding asset in Dagster's words: what each is, and which upstream columns it is made of.

In come the store's Arrow schema and the source; out go a `TableSchema` and a `TableColumnLineage`.
"""

from collections.abc import Collection

import dagster as dg
import pyarrow as pa

from fletcher_core.setting_values import VectorType
from fletcher_core.sources import DuckDBTable, Source
from fletcher_core.store.schema import segment_schema

_NOTES = {
    "id": "The row's id in the source.",
    "op": "upsert, or delete when the row left the source.",
    "content_hash": "MD5 of the text that was embedded.",
    "metadata_hash": "MD5 of the metadata columns.",
    "tokens": "Tokens of the text before any cut.",
    "truncated": "Whether the text was too long for the model and was cut.",
    "replaces": "Sequence of the version that this one supersedes.",
    "partition_key": "The partition the row belongs to; empty without partitions.",
    "fingerprint": "Identity of the model and its settings.",
    "sequence": "Grows with every version of every row; the row's id in Longbow.",
    "segment": "The commit that wrote the row.",
    "embedded_at": "When it was written.",
    "vector": "The embedding; null in a delete.",
}


def column_schema(schema: pa.Schema, untyped: Collection[str] = ()) -> dg.TableSchema:
    """The store's columns as Dagster describes a table; the types of the `untyped` ones are left to the source."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                "as in the source" if field.name in untyped else str(field.type),
                description=_NOTES.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def declared_schema(source: Source, dimension: int, vector_type: VectorType) -> dg.TableSchema:
    """The columns before the first run: all but the types of metadata columns, for which the source would have to be
    opened."""
    metadata = pa.schema([pa.field(name, pa.null()) for name in source.metadata_columns])
    return column_schema(segment_schema(dimension, metadata, vector_type), source.metadata_columns)


def column_lineage(source: Source, spec: dg.AssetSpec) -> dg.TableColumnLineage | None:
    """Which columns of the upstream asset each column is made of; None when no upstream asset has them for sure.

    A query's columns go by the names that it gives them. Of several dependencies the one that is called like the
    source's table, or like the source, is taken to hold the columns.
    """
    upstream = _upstream(source, [dep.asset_key for dep in spec.deps])
    if upstream is None:
        return None

    by = source.partition_column
    partitions = [by] if isinstance(by, str) else list(by.values()) if by else []
    texts, metadata = list(source.text_columns), list(source.metadata_columns)
    made_of = {
        "id": [source.id_column],
        **dict.fromkeys(("content_hash", "tokens", "truncated", "vector"), texts),
        **({"metadata_hash": metadata} if metadata else {}),
        **({"partition_key": partitions} if partitions else {}),
        **{column: [column] for column in metadata},
    }
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=upstream, column_name=name) for name in names]
            for column, names in made_of.items()
        }
    )


def _upstream(source: Source, keys: list[dg.AssetKey]) -> dg.AssetKey | None:
    if len(keys) == 1:
        return keys[0]
    table = source.table if isinstance(source, DuckDBTable) else None
    for name in filter(None, (table, source.name)):
        named = [key for key in keys if key.path[-1] == name.split(".")[-1]]
        if len(named) == 1:
            return named[0]
    return None

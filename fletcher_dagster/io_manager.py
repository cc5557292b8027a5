"""`FletcherIOManager` hands the vectors of an embedding asset to the assets downstream of it.

In come Dagster's context of an input and the type that the parameter is annotated with; out come the live rows of the
input's partitions as Arrow, Polars or DuckDB. The vectors themselves are written by the embedding asset's own run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from fletcher_core.errors import ConfigError, FletcherError
from fletcher_dagster.failures import can_pass_by_itself
from fletcher_dagster.loading import asset_reader

COLUMNS_KEY = "columns"
MODEL_KEY, GENERATION_KEY = b"fletcher_model", b"fletcher_generation"  # in the schema of `live_reader`


class FletcherIOManager(dg.ConfigurableIOManager):
    """Loads what `@fletcher_assets` embedded; the annotation of the parameter decides the form.

    `pyarrow.Table` (also without an annotation, or by `Definitions.load_asset_value` outside of a run),
    `pyarrow.RecordBatchReader` (a stream for vectors that do not fit into memory), `polars.DataFrame`,
    `polars.LazyFrame` or `duckdb.DuckDBPyRelation`. The rows are the current versions in the partitions that Dagster
    maps to the input, all of them for an asset without partitions.
    `AssetIn(metadata={"columns": ["id", "vector"]})` chooses columns; see `fletcher_core.store.live_reader`.

    Example:
        .. code-block:: python

            import dagster as dg
            import pyarrow as pa
            from fletcher_dagster import FletcherIOManager

            @dg.asset(ins={"reviews": dg.AssetIn("reviews_embeddings", input_manager_key="fletcher_io")})
            def clusters(reviews: pa.Table) -> None: ...

            defs = dg.Definitions(
                assets=[clusters], resources={"fletcher_io": FletcherIOManager(store_path="vectors")}
            )
    """

    store_path: str = Field(description="Folder of the vector stores: the store_path of the FletcherResource.")

    def load_input(self, context: dg.InputContext) -> Any:
        """The input's rows in the form that the parameter is annotated with.

        Raises:
            dagster.Failure: in the words of the ConfigError or StoreError that is behind it.
        """
        # Outside of a run, as Definitions.load_asset_value asks, there is no input.
        name = context.name if context.has_input_name else context.asset_key.to_user_string()
        try:
            form = _form(context.dagster_type.typing_type)
            keys = list(context.asset_partition_keys) if context.has_asset_partitions else None
            columns = _columns(context.definition_metadata or {})
            _warn_of_missing(context, name, keys or [])
            reader = asset_reader(self.store_path, context.asset_key, keys, columns)
            # In the log, not as input metadata: that is an observation of the upstream asset, of one partition at most.
            model, generation = (reader.schema.metadata[key].decode() for key in (MODEL_KEY, GENERATION_KEY))
            context.log.info(f"input {name}: vectors of {model} from {generation}")
            return form(reader)
        except FletcherError as error:
            raise _failure(error, f"input {name!r}: {error}") from None

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Nothing to do for an embedding asset, which has stored its vectors itself and has no value.

        Raises:
            dagster.Failure: an asset has a value to store.
        """
        if obj is None:
            return
        name = context.asset_key.to_user_string() if context.has_asset_key else context.name
        error = ConfigError(
            f"{name!r} returned a {type(obj).__name__}, and FletcherIOManager stores nothing: it loads what "
            "@fletcher_assets embedded. Give that asset another io_manager_key; its inputs can still be loaded from "
            'here through AssetIn(input_manager_key="...")'
        )
        raise _failure(error, str(error))


def _warn_of_missing(context: dg.InputContext, name: str, keys: Sequence[str]) -> None:
    """A partition without rows and one that was never materialized look alike in the store."""
    known = context.instance.get_materialized_partitions(context.asset_key) if keys else ()
    missing = [key for key in keys if key not in known]
    if missing:
        context.log.warning(
            f"input {name}: {len(missing):,} of its {len(keys):,} partitions were never materialized, such as "
            f"{missing[0]!r}, and are taken to have no rows"
        )


def _form(annotation: Any) -> Callable[[pa.RecordBatchReader], Any]:
    """What makes the annotated type from a stream of batches."""
    import duckdb

    forms: dict[Any, Callable[[pa.RecordBatchReader], Any]] = {
        Any: pa.RecordBatchReader.read_all,
        object: pa.RecordBatchReader.read_all,  # what load_asset_value asks for by default
        pa.Table: pa.RecordBatchReader.read_all,
        pa.RecordBatchReader: lambda reader: reader,
        duckdb.DuckDBPyRelation: _relation,
    }
    if polars := sys.modules.get("polars"):  # who annotates with its types has imported it
        forms[polars.DataFrame] = lambda reader: polars.from_arrow(reader.read_all())
        forms[polars.LazyFrame] = lambda reader: polars.from_arrow(reader.read_all()).lazy()
    try:
        return forms[annotation]
    except (KeyError, TypeError):  # an annotation need not be hashable
        raise ConfigError(
            f"vectors cannot be loaded as {annotation}: annotate the parameter with pyarrow.Table, "
            "pyarrow.RecordBatchReader, polars.DataFrame, polars.LazyFrame or duckdb.DuckDBPyRelation"
        ) from None


def _relation(reader: pa.RecordBatchReader) -> Any:
    """A relation of DuckDB's default connection, so that `duckdb.sql` knows it by the name of its variable."""
    import duckdb

    table = reader.read_all()
    place = table.schema.get_field_index("vector")
    if place >= 0 and table.schema.field(place).type.value_type == pa.float16():  # which DuckDB does not have
        single = pa.list_(pa.float32(), table.schema.field(place).type.list_size)
        table = table.set_column(place, "vector", table["vector"].cast(single))
    return duckdb.from_arrow(table)


def _columns(metadata: Mapping[str, Any]) -> list[str] | None:
    """The columns that the input's metadata asks for."""
    chosen = metadata.get(COLUMNS_KEY)
    if chosen is None:
        return None
    columns = getattr(chosen, "value", chosen)  # MetadataValue.json([...]) holds the same
    if not isinstance(columns, list | tuple) or not all(isinstance(name, str) for name in columns):
        raise ConfigError(f"metadata {COLUMNS_KEY!r} is {columns!r}: give a list of column names")
    return list(columns)


def _failure(error: FletcherError, description: str) -> dg.Failure:
    return dg.Failure(
        description=description,
        metadata={"fletcher/error": type(error).__name__},
        allow_retries=can_pass_by_itself(error),
    )

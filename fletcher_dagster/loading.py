"""The vectors of an asset as Arrow, for assets that work on with them.

In come the folder of the vector stores, an asset's key, partitions and columns; out comes a stream of the live rows,
which `FletcherResource.load` and `FletcherIOManager` give on in the form that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import dagster as dg
import pyarrow as pa

from fletcher_core.addresses import below
from fletcher_core.errors import StoreError
from fletcher_dagster.declaration import collection_name


def asset_reader(
    store_path: str,
    asset_key: dg.AssetKey,
    partition_keys: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatchReader:
    """The asset's live rows as `fletcher_core.store.live_reader` gives them; the store is closed at their end.

    Raises:
        StoreError: the asset has never been materialized under `store_path`, or its store cannot be read.
        ConfigError: there is no such column.
    """
    from fletcher_core.store import VectorStore, live_reader

    collection = collection_name(asset_key)
    folder = below(store_path, collection)
    if not VectorStore.exists(folder):  # opening it would make one
        raise StoreError(
            f"there is no vector store of the asset {asset_key.to_user_string()!r} at {str(folder)!r}: materialize "
            "the asset first, and give the store_path that it was given"
        )
    store = VectorStore.open(folder, collection=collection)
    try:
        reader = live_reader(store, partition_keys, columns)
    except BaseException:
        store.close()
        raise

    def batches() -> Iterator[pa.RecordBatch]:
        with store:
            yield from reader

    return pa.RecordBatchReader.from_batches(reader.schema, batches())

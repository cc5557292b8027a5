"""The live rows of a collection for whoever works on with the vectors: as a stream of Arrow batches or as one table.

In come a store and the wanted partitions and columns; out come the current version of each row, from the current
generation alone, unharmed by a compaction in another process meanwhile.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.store.generation import Generation
from fletcher_core.store.schema import UPSERT
from fletcher_core.store.segments import row_group_rows
from fletcher_core.store.store import VectorStore

_log = logging.getLogger(__name__)

_NOT_OF_LIVE_ROWS = ("op", "replaces")  # how the store knows which rows are live
_SHOWN = 5  # partition keys in a message


def live_reader(
    store: VectorStore | Generation,
    partition_keys: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatchReader:
    """The live rows as a stream that holds about one row group (16 MiB of vectors) in memory at a time.

    Every partition comes as it was at one instant, when the stream reached it. Keep the store open until the stream
    is at its end.

    Args:
        store: a store, of which the current generation is read, the one written most recently; or a generation.
        partition_keys: in the order that the rows are to come in; None: all of the generation, sorted. A key that
            the store does not know has no rows.
        columns: in the order that they are to have; None: id, partition_key, the metadata columns and vector. There
            are content_hash, metadata_hash, tokens, truncated, fingerprint, sequence, segment and embedded_at, too.

    Returns:
        A reader whose `vector` is a FixedSizeList of the stored type, float32 or float16. The metadata of its schema
        names `fletcher_generation`, `fletcher_model` and `fletcher_fingerprint`.

    Vectors of two generations are never mixed: they are of another model, or have other columns. Without
    `partition_keys`, partitions that only an older generation holds are left out, with a warning in the log.

    Raises:
        StoreError: nothing was ever stored; a named partition, or all there is, is held by an older generation alone;
            later, while batches are read: a file is damaged, or a partition has more files than may be open.
        ConfigError: there is no such column, or one is named twice.
    """
    generation = store if isinstance(store, Generation) else _current(store)
    schema = _schema(generation, columns)
    keys = generation.partitions() if partition_keys is None else _listed(partition_keys)
    if isinstance(store, VectorStore):
        _check_generation(store, generation, keys, named=partition_keys is not None)
    return pa.RecordBatchReader.from_batches(
        schema, (batch for key in keys for batch in _live_batches(generation, key, schema))
    )


def live_table(
    store: VectorStore | Generation,
    partition_keys: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The live rows in memory, all at once; see `live_reader`."""
    return live_reader(store, partition_keys, columns).read_all()


def vector_matrix(vectors: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """A `vector` column as a float32 array of shape (rows, dimension); no copy where it is one piece of float32."""
    chunks = vectors.chunks if isinstance(vectors, pa.ChunkedArray) else [vectors]
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), vectors.type.list_size) for chunk in chunks]
    if not parts:
        return np.empty((0, vectors.type.list_size), np.float32)
    matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return matrix.astype(np.float32, copy=False)


def _current(store: VectorStore) -> Generation:
    current = store.current()
    if current is None:
        raise StoreError(
            f"the store {store.root} holds no vectors of {store.collection!r} yet: materialize the asset first"
        )
    return current


def _schema(generation: Generation, columns: Sequence[str] | None) -> pa.Schema:
    """The wanted columns, with a note of the generation that they come from."""
    known = [name for name in generation.schema.names if name not in _NOT_OF_LIVE_ROWS]
    default = ["id", "partition_key", *generation.metadata_schema.names, "vector"]
    names = default if columns is None else _listed(columns)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"has no column {', '.join(map(repr, unknown))}" if unknown else "was asked for no column"
        raise ConfigError(f"{generation.name} {wrong}: there are {', '.join(known)}")
    origin = {
        "fletcher_generation": generation.name,
        "fletcher_model": generation.card.name,
        "fletcher_fingerprint": generation.card.fingerprint,
    }
    return pa.schema([generation.schema.field(name) for name in names], metadata=origin)


def _listed(names: Sequence[str]) -> list[str]:
    """Each name once; a single string is one name, not a sequence of letters."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def _check_generation(store: VectorStore, generation: Generation, keys: Sequence[str], *, named: bool) -> None:
    """Says so, or refuses, when wanted partitions are in older generations only."""
    held = set(generation.partitions())
    behind = sorted({key for older in generation.siblings() for key in older.partitions()} - held)
    wanted = [key for key in keys if key in behind] if named else behind
    if not wanted:
        return
    shown = ", ".join(repr(key) for key in wanted[:_SHOWN]) + (", ..." if len(wanted) > _SHOWN else "")
    what = f"{len(wanted)} of its partitions ({shown})" if any(wanted) else "its rows"
    message = (
        f"{store.collection!r} has {what} in an older generation only (of another model, vector type or columns than "
        f"{generation.name}), and vectors of two generations are never mixed: materialize the asset there"
    )
    if named or not held:
        raise StoreError(message)
    _log.warning("%s. They are left out", message)


def _live_batches(generation: Generation, partition_key: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """What is live in one partition: its files are opened together, and what is open stays readable."""
    with ExitStack() as stack:
        files = [stack.enter_context(file) for file in generation.opened(partition_key)]
        try:
            parquet = [pq.ParquetFile(file, pre_buffer=False) for file in files]
            replaced = _replaced(parquet)
            read = list(dict.fromkeys([*schema.names, "op", "sequence"]))
            for file in parquet:
                for batch in file.iter_batches(row_group_rows(generation.schema), columns=read):
                    live = _live(batch, replaced)
                    if live.num_rows:
                        yield live.select(schema.names).cast(schema)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"a segment file of {generation.name}, partition {partition_key!r}, cannot be read: {error}. If it is "
                "damaged for good, move it away and run the materialization: rows that only it held are embedded again"
            ) from error


def _replaced(files: Sequence[pq.ParquetFile]) -> npt.NDArray[np.int64]:
    """Sequences of the rows that later rows replace, ascending."""
    found = [
        batch.column(0).drop_null().to_numpy().astype(np.int64, copy=False)
        for file in files
        for batch in file.iter_batches(columns=["replaces"])
    ]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _live(batch: pa.RecordBatch, replaced: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The upserts of the batch that nothing replaces; the batch itself when that is all of it."""
    live = pc.equal(batch["op"], UPSERT).to_numpy(zero_copy_only=False)
    if len(replaced):
        sequence = batch["sequence"].to_numpy()
        place = np.minimum(np.searchsorted(replaced, sequence), len(replaced) - 1)
        live &= replaced[place] != sequence
    return batch if live.all() else batch.filter(pa.array(live))

"""Rows that can be read once in, a Parquet file of them out: what is compared with a store is read more than once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.files.rows import DEFAULT_TEXT, ID, Rows, Selection
from fletcher_core.sources import ParquetTable

_STRINGS = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string()}


@contextmanager
def spooled(rows: Rows, selection: Selection, *, name: str) -> Iterator[ParquetTable]:
    """The rows as a table on disk for the length of a `with` block, in the folder for temporary files.

    Raises:
        SourceError: the rows cannot be read.
    """
    kept = tuple(column for column in selection.keep if column != DEFAULT_TEXT)
    with TemporaryDirectory(prefix="fletcher-") as folder:
        file = Path(folder) / f"{name}.parquet"
        writer: pq.ParquetWriter | None = None
        for window in rows.windows():
            # Bytes that are no UTF-8 go along as they are: change detection finds them and names their rows.
            texts = [part.view(_STRINGS[part.type]) if part.type in _STRINGS else part for part in _parts(window.texts)]
            table = window.columns.select([ID, *kept]).append_column(DEFAULT_TEXT, pa.chunked_array(texts))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is None:
            schema = pa.schema([*(rows.schema.field(column) for column in (ID, *kept)), (DEFAULT_TEXT, pa.string())])
            writer = pq.ParquetWriter(file, schema)
        writer.close()
        metadata = kept if DEFAULT_TEXT not in selection.keep else (*kept, DEFAULT_TEXT)
        yield ParquetTable(str(file), metadata_columns=metadata, name=name)


def _parts(texts: "pa.Array | pa.ChunkedArray") -> list[pa.Array]:
    return texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]

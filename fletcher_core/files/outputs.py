"""Where vectors go: a Parquet or .npy file that appears whole or not at all, or a stream of Arrow or JSON.

In: the columns of a window of rows with their vectors, in order. A row without a vector has a null, in .npy NaN.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.embed_call import Vectors
from fletcher_core.embedder import vector_array
from fletcher_core.errors import ConfigError
from fletcher_core.files.rows import VECTOR
from fletcher_core.store.durable import committed

_ROW_GROUP_BYTES = 16 * 2**20


class VectorOutput(Protocol):
    """Takes windows: `columns`, `vectors` float32 [n, dimension], `missing` bool [n], rows that have no vector."""

    def write(self, columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_]) -> None: ...


@contextmanager
def file_output(path: Path, columns: pa.Schema, dimension: int) -> Iterator[VectorOutput]:
    """The file, by its name's end; it is there when the block ends well, and as it was before when it does not.

    Raises:
        ConfigError: the name ends in neither .parquet nor .npy.
        StoreError: the file cannot be written.
    """
    if path.suffix == ".parquet":
        with committed(path) as file:
            parquet = ParquetOutput(file, columns, dimension)
            try:
                yield parquet
            except BaseException:
                parquet.abandon()
                raise
            parquet.finish()
    elif path.suffix == ".npy":
        with committed(path) as file:
            npy = NpyOutput(file, dimension)
            yield npy
            npy.finish()
    else:
        raise ConfigError(
            f"{str(path)!r} ends in neither .parquet nor .npy: name the file so, or write '-' or 'longbow'"
        )


class ParquetOutput:
    """The columns and `vector`, FixedSizeList<float32>."""

    def __init__(self, file: IO[bytes], columns: pa.Schema, dimension: int) -> None:
        self._schema = with_vector(columns, dimension)
        # Vectors do not compress: no time is spent on trying to.
        codecs = {field.name: "zstd" for field in columns} | {f"{VECTOR}.list.element": "none"}
        self._writer = pq.ParquetWriter(file, self._schema, compression=codecs, use_dictionary=columns.names)
        self._group_rows = max(1024, _ROW_GROUP_BYTES // (4 * dimension))
        self._pending: list[pa.Table] = []

    def write(self, columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_]) -> None:
        self._pending.append(joined(columns, vectors, missing, self._schema))
        if sum(table.num_rows for table in self._pending) >= self._group_rows:
            self._flush()

    def finish(self) -> None:
        """The last rows and the footer."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """End it in any state: the file will not be kept."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=self._group_rows)
            self._pending = []


class NpyOutput:
    """float32 [n, dimension] as NumPy loads it; how many rows there are is written in the end."""

    def __init__(self, file: IO[bytes], dimension: int) -> None:
        self._file = file
        self._dimension = dimension
        self._rows = 0
        self._header = self._write_header()

    def write(self, columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_]) -> None:
        if missing.any():
            vectors = np.where(missing[:, None], np.float32(np.nan), vectors)
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        self._rows += len(vectors)

    def finish(self) -> None:
        """Say in the header how many rows there are: NumPy leaves room there for an array to grow."""
        self._file.seek(0)
        if self._write_header() != self._header:
            raise AssertionError("the header of an .npy file changed its length")
        self._file.seek(0, io.SEEK_END)

    def _write_header(self) -> int:
        shape = (self._rows, self._dimension)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return self._file.tell()


class ArrowOutput:
    """An Arrow IPC stream of the columns and `vector`."""

    def __init__(self, stream: IO[bytes], columns: pa.Schema, dimension: int) -> None:
        self._schema = with_vector(columns, dimension)
        self._writer = pa.ipc.new_stream(stream, self._schema)

    def write(self, columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_]) -> None:
        self._writer.write_table(joined(columns, vectors, missing, self._schema))

    def finish(self) -> None:
        """Mark the end of the stream."""
        self._writer.close()


class JsonOutput:
    """A JSON object a line: the columns and `vector`, null for none and for NaN and infinity, which JSON does not have.
    Floats with the digits that give them back."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_]) -> None:
        for at, record in enumerate(_finite(columns).to_pylist()):
            values = None if missing[at] else [_shortest(value) for value in vectors[at]]
            self._stream.write(json.dumps({**record, VECTOR: values}, default=str, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Nothing ends a file of lines."""
        self._stream.flush()


def with_vector(columns: pa.Schema, dimension: int) -> pa.Schema:
    """The columns and the vectors."""
    return columns.append(pa.field(VECTOR, pa.list_(pa.float32(), dimension)))


def joined(columns: pa.Table, vectors: Vectors, missing: npt.NDArray[np.bool_], schema: pa.Schema) -> pa.Table:
    """The columns with their vectors, null where they are missing."""
    return columns.append_column(schema.field(VECTOR), vector_array(vectors, missing))


def _finite(columns: pa.Table) -> pa.Table:
    for place, field in enumerate(columns.schema):
        if pa.types.is_floating(field.type):
            values = columns.column(place)
            finite = pc.if_else(pc.is_finite(values), values, pa.scalar(None, field.type))
            columns = columns.set_column(place, field, finite)
    return columns


def _shortest(value: Any) -> float:
    return float(str(value))

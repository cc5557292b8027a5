"""Segment files: how rows become a Parquet file that describes itself, and how they are read back.

A segment is what one call of `write_segment` committed; its rows carry its label for ever. A file holds one segment
when it is written and several after compaction; its footer lists them, so that the manifest can be rebuilt from files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError
from fletcher_core.store.schema import REPEATED_STRINGS
from fletcher_core.store.versions import SEGMENT_VERSION, check_version, version_of

_FOOTER_KEY = b"fletcher.segment"
_ROW_GROUP_BYTES = 16 << 20
_MAX_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class Segment:
    """Rows committed together.

    `upserts` and `deletes` count the rows that still exist (compaction drops superseded ones); sequences run from
    `first_sequence` to `last_sequence` inclusive; `bytes` is its share of `file`; `committed_at` is in seconds since
    1970.
    """

    label: str
    generation: str
    partition_key: str
    file: Path
    upserts: int
    deletes: int
    first_sequence: int
    last_sequence: int
    bytes: int
    run_id: str
    committed_at: float

    @property
    def rows(self) -> int:
        """Rows of either kind."""
        return self.upserts + self.deletes


@dataclass(frozen=True)
class SegmentEntry:
    """What a file's footer says of one of its segments."""

    label: str
    upserts: int
    deletes: int
    first_sequence: int
    last_sequence: int
    run_id: str
    committed_at: float


@dataclass(frozen=True)
class Footer:
    """What a segment file says of itself. `inputs` are the names of the files whose rows it took over, in the same
    folder; where both are found, this file counts and the inputs are left-overs."""

    generation: str
    partition_key: str
    segments: tuple[SegmentEntry, ...]
    inputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Footer":
        """The footer that `asdict` made `content` of. Raises KeyError or TypeError when there is something else."""
        entries = tuple(SegmentEntry(**entry) for entry in content["segments"])
        return cls(content["generation"], content["partition_key"], entries, tuple(content["inputs"]))

    def encode(self) -> dict[bytes, bytes]:
        """As Parquet key-value metadata."""
        return {_FOOTER_KEY: json.dumps({"version": SEGMENT_VERSION, **asdict(self)}).encode()}


def new_label(first_sequence: int) -> str:
    """A name for a segment or file; names sort as sequences do."""
    return f"seg-{first_sequence:010d}-{uuid4().hex[:8]}"


def row_group_rows(schema: pa.Schema) -> int:
    """Rows to a row group, so that its vectors take about 16 MiB."""
    vector = schema.field("vector").type
    width = vector.list_size * (vector.value_type.bit_width // 8)
    return max(1024, min(_MAX_ROW_GROUP_ROWS, _ROW_GROUP_BYTES // max(width, 1)))


def parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with the layout of segments: vectors plain and uncompressed, the rest zstd."""
    scalars = [name for name in schema.names if name != "vector"]
    compression = dict.fromkeys(scalars, "zstd")
    return pq.ParquetWriter(
        file,
        schema,
        compression={**compression, "vector.list.element": "none"},
        use_dictionary=list(REPEATED_STRINGS),
        write_statistics=scalars,
    )


def read_footer(path: Path) -> Footer:
    """The footer of a segment file.

    Raises:
        StoreError: the file is damaged, was not written by Fletcher, or was written by a newer one.
        FileNotFoundError: there is no such file.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        content = json.loads(metadata[_FOOTER_KEY])
        check_version(path, version_of(content), SEGMENT_VERSION)
        return Footer.of(content)
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} is damaged or no segment of Fletcher's ({error}): move it out of the folder; rows that "
            "only it held are embedded again on the next run"
        ) from error


def read_labelled(path: Path, label: str) -> pa.Table:
    """The rows of one segment, in sequence order; row groups without such rows are not read.

    Raises:
        StoreError: the file is damaged.
        FileNotFoundError: there is no such file.
    """
    try:
        with pq.ParquetFile(path) as file:
            groups = [i for i in range(file.num_row_groups) if _may_hold(file.metadata.row_group(i), label)]
            table = file.read_row_groups(groups)
    except pa.ArrowException as error:
        raise StoreError(
            f"segment file {str(path)!r} is damaged ({error}): move it out of the folder; rows that only it held "
            "are embedded again on the next run"
        ) from error
    # Each copies the vectors; a file that was never merged needs neither.
    belongs = pa.compute.equal(table["segment"], label)
    if not pa.compute.all(belongs).as_py():
        table = table.filter(belongs)
    if not _ascending(table["sequence"]):
        table = table.sort_by("sequence")
    return table.replace_schema_metadata(None)


def _ascending(values: pa.ChunkedArray) -> bool:
    found = values.to_numpy()
    return bool((found[1:] > found[:-1]).all())


def entry_counts(table: pa.Table, into: dict[str, dict[str, int]]) -> None:
    """Adds the rows of `table` to counts by label and op."""
    counts = table.group_by(["segment", "op"]).aggregate([([], "count_all")])
    columns: Sequence[Sequence[Any]] = [counts[name].to_pylist() for name in ("segment", "op", "count_all")]
    for label, op, rows in zip(*columns, strict=True):
        into.setdefault(label, {})[op] = into.get(label, {}).get(op, 0) + rows


def _may_hold(group: pq.RowGroupMetaData, label: str) -> bool:
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "segment")
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= label <= statistics.max)

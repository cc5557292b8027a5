"""Rows that could not be embedded, with the reason, kept until a later run gets over them.

Each write is a Parquet file of its own, so runs never wait for each other. Its name begins with a number above those
of all earlier files of the partition: the order of the files, whatever the clock says.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError
from fletcher_core.sql import session
from fletcher_core.store.durable import committed
from fletcher_core.store.place import LocalFolder, Place
from fletcher_core.store.schema import folder_name
from fletcher_core.store.versions import QUARANTINE_VERSION, check_version, version_of
from fletcher_core.telemetry.metrics import QUARANTINED

ROW_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("content_hash", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field("run_id", pa.string()),
        pa.field("partition_key", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("fingerprint", pa.string()),  # of the model that it was tried with; null in files of before
    ]
)
# What rows are set aside for; whoever writes for another reason is counted under "other".
_REASONS = ("duplicate_id", "engine_failed", "invalid_text", "invalid_vector", "not_tokenized", "too_long")
# What may take an engine's process with it each time it is tried, and is therefore given up at some point.
ENGINE_FAILED = "engine_failed"
REASONS = ("duplicate_id", ENGINE_FAILED, "invalid_text", "invalid_vector", "not_tokenized", "too_long")
"""All that a row is set aside for."""
_NUMBER = pa.field("number", pa.int64())
_FOOTER_KEY = b"fletcher.quarantine"
_FOOTER = {_FOOTER_KEY: json.dumps({"version": QUARANTINE_VERSION}).encode()}


class Quarantine:
    """The quarantine of one collection, in `folder`."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        self._folder = folder
        self._place = LocalFolder(folder) if place is None else place

    def write(
        self,
        rows: pa.Table | Sequence[dict[str, str | None]],
        *,
        run_id: str,
        partition_key: str = "",
        fingerprint: str | None = None,
    ) -> None:
        """Adds rows (id, reason, message, content_hash). A row that was in before, with the same text and model,
        counts one attempt more.

        Args:
            fingerprint: of the model that they were tried with; None for rows that no model can have tried.

        Raises:
            StoreError: a column is missing or no text; the disk is full; an earlier file is damaged or of a newer
                version.
        """
        table = _rows(rows)
        if table.num_rows == 0:
            return
        with session() as connection:
            connection.register("rows", table)
            connection.register("earlier", self._recorded(partition_key))
            attempts = (
                "SELECT any_value(rows) AS row, coalesce(arg_max(e.attempts, e.number), 0) + 1 AS attempts FROM rows "
                "LEFT JOIN earlier e ON e.id = rows.id AND e.content_hash IS NOT DISTINCT FROM rows.content_hash "
                "AND e.fingerprint IS NOT DISTINCT FROM ? AND e.run_id <> ? "
                "GROUP BY rows.id, rows.content_hash, rows.reason, rows.message"
            )
            counted: pa.Table = connection.sql(
                f"SELECT row.id, row.reason, row.message, row.content_hash, attempts FROM ({attempts})",
                params=[fingerprint, run_id],
            ).to_arrow_table()
        count = counted.num_rows
        counted = (
            counted.append_column("run_id", pa.repeat(run_id, count))
            .append_column("partition_key", pa.repeat(partition_key, count))
            .append_column("at", pa.repeat(pa.scalar(int(time.time() * 1e6), SCHEMA.field("at").type), count))
            .append_column("fingerprint", pa.repeat(pa.scalar(fingerprint, pa.string()), count))
        )
        self._add(counted, partition_key)
        _count(counted)

    def given_up(self, partition_key: str, fingerprint: str, attempts: int) -> pa.Table:
        """Rows, as `read` gives them, that the engine failed on in so many runs with this model: not to be tried."""
        rows = self.read(partition_key)
        tried = pc.and_(pc.greater_equal(rows["attempts"], attempts), pc.equal(rows["fingerprint"], fingerprint))
        return rows.filter(pc.and_(tried, pc.equal(rows["reason"], ENGINE_FAILED)))

    def refused(self, partition_key: str, fingerprint: str) -> pa.Table:
        """Rows, as `read` gives them, that were tried with this model, but not those to be tried anew (`retry`)."""
        rows = self.read(partition_key)
        return rows.filter(pc.and_(pc.greater(rows["attempts"], 0), pc.equal(rows["fingerprint"], fingerprint)))

    def keep(self, rows: pa.Table, *, run_id: str, is_counted: bool = True) -> None:
        """Counts rows, as `read` gives them, among those of this run, without an attempt more; in the metrics, too, if
        `is_counted`."""
        for partition_key in rows["partition_key"].unique().to_pylist():
            these = rows.filter(pc.equal(rows["partition_key"], partition_key))
            column = SCHEMA.get_field_index("run_id")
            self._add(these.set_column(column, "run_id", pa.repeat(run_id, these.num_rows)), partition_key)
            if is_counted:
                _count(these)

    def retry(self, ids: Sequence[str] | None = None, partition_key: str | None = None) -> int:
        """Forgets how often rows were tried, so that the next run tries them again; how many rows that concerns.

        Args:
            ids: which; None for all.
            partition_key: in which partition; None for all.
        """
        rows = self.read(partition_key)
        if ids is not None:
            rows = rows.filter(pc.is_in(rows["id"], pa.array(ids, pa.string())))
        for key in rows["partition_key"].unique().to_pylist():
            these = rows.filter(pc.equal(rows["partition_key"], key))
            column = SCHEMA.get_field_index("attempts")
            zeros = pa.repeat(pa.scalar(0, pa.int32()), these.num_rows)
            self._add(these.set_column(column, "attempts", zeros), key)
        return rows.num_rows

    def _add(self, rows: pa.Table, partition_key: str) -> None:
        """One more file, with rows of SCHEMA."""
        number = max(map(_number, self._files(partition_key)), default=0) + 1
        path = self._folder / folder_name(partition_key) / f"rows-{number:010d}-{uuid4().hex[:8]}.parquet"
        with committed(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            writer.write_table(rows.select(SCHEMA.names).cast(SCHEMA))
            writer.add_key_value_metadata(_FOOTER)
        self._place.add_side_file(path)

    def read(self, partition_key: str | None = None) -> pa.Table:
        """One row an id: id, reason, message, content_hash, run_id, partition_key, attempts int32, at; as last seen.

        Raises:
            StoreError: a file is damaged or of a newer version.
        """
        if not self._files(partition_key):  # most often: a database only to find nothing takes 15 ms
            return SCHEMA.empty_table()
        with session() as connection:
            connection.register("recorded", self._recorded(partition_key))
            newest = (
                "SELECT * EXCLUDE (number) FROM recorded "
                "QUALIFY row_number() OVER (PARTITION BY partition_key, id ORDER BY number DESC, reason) = 1 "
                "ORDER BY partition_key, id"
            )
            rows: pa.Table = connection.sql(newest).to_arrow_table()
        return rows.cast(SCHEMA)

    def retain(self, partition_key: str, run_id: str) -> None:
        """Drops what runs other than `run_id` put in: for the end of a run that tried the whole partition."""
        runs = {path: _read(path)["run_id"].unique().to_pylist() for path in self._files(partition_key)}
        self._place.drop_side_files([path for path, found in runs.items() if run_id not in found])

    def _recorded(self, partition_key: str | None) -> pa.Table:
        """Rows of all files with the number of their file."""
        schema = SCHEMA.append(_NUMBER)
        tables = [
            table.append_column(_NUMBER, pa.repeat(pa.scalar(_number(path), pa.int64()), table.num_rows))
            for path in self._files(partition_key)
            for table in [_read(path)]
        ]
        return pa.concat_tables([schema.empty_table(), *tables])

    def _files(self, partition_key: str | None) -> list[Path]:
        partition = "*" if partition_key is None else folder_name(partition_key)
        return self._place.side_files(self._folder, f"{partition}/*.parquet")


def _count(rows: pa.Table) -> None:
    """Rows that were set aside in a run."""
    for found in rows["reason"].value_counts().to_pylist():
        reason = found["values"] if found["values"] in _REASONS else "other"
        QUARANTINED.labels(reason).inc(found["counts"])


def _number(path: Path) -> int:
    """The number in a file's name; earlier versions took one from the clock, which is above all that count up."""
    found = re.match(r"rows-(\d{1,19})-", path.name)
    return int(found[1]) if found else 0


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            described = json.loads((file.metadata.metadata or {}).get(_FOOTER_KEY, b"{}"))
            check_version(path, version_of(described), QUARANTINE_VERSION)
            rows = file.read()
            if "fingerprint" not in rows.column_names:  # an earlier Fletcher's
                rows = rows.append_column("fingerprint", pa.nulls(rows.num_rows, pa.string()))
            return rows.select(SCHEMA.names).cast(SCHEMA)
    except FileNotFoundError:  # dropped since it was listed
        return SCHEMA.empty_table()
    except (OSError, pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the quarantine file {str(path)!r} is damaged ({error}): move it away; the next run sets rows aside anew"
        ) from error


def _rows(rows: pa.Table | Sequence[dict[str, str | None]]) -> pa.Table:
    try:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA)
        return table.select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise StoreError(f"quarantined rows need the text columns {ROW_SCHEMA.names}: {error}") from error

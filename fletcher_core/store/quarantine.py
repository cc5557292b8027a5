"""Rows that could not be embedded, with the reason, kept until a later run gets over them.

Each write is a Parquet file of its own, so runs never wait for each other.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.errors import StoreError
from fletcher_core.sql import connect
from fletcher_core.store.durable import committed
from fletcher_core.store.schema import folder_name

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
    ]
)


class Quarantine:
    """The quarantine of one collection, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, rows: pa.Table | Sequence[dict[str, str | None]], *, run_id: str, partition_key: str = "") -> None:
        """Adds rows (id, reason, message, content_hash). A row that was in before counts one attempt more.

        Raises:
            StoreError: a column is missing or no text.
        """
        table = _rows(rows)
        if table.num_rows == 0:
            return
        with connect() as connection:
            connection.register("rows", table)
            connection.register("earlier", self._recorded(partition_key))
            attempts = (
                "SELECT any_value(rows) AS row, coalesce(max(e.attempts), 0) + 1 AS attempts FROM rows "
                "LEFT JOIN earlier e ON e.id = rows.id AND e.content_hash IS NOT DISTINCT FROM rows.content_hash "
                "AND e.run_id <> ? GROUP BY rows.id, rows.content_hash, rows.reason, rows.message"
            )
            counted: pa.Table = connection.sql(
                f"SELECT row.id, row.reason, row.message, row.content_hash, attempts FROM ({attempts})", params=[run_id]
            ).to_arrow_table()
        count = counted.num_rows
        counted = (
            counted.append_column("run_id", pa.repeat(run_id, count))
            .append_column("partition_key", pa.repeat(partition_key, count))
            .append_column("at", pa.repeat(pa.scalar(int(time.time() * 1e6), SCHEMA.field("at").type), count))
        )
        path = self._folder / folder_name(partition_key) / f"rows-{time.time_ns()}-{uuid4().hex[:8]}.parquet"
        with committed(path) as file:
            pq.write_table(counted.select(SCHEMA.names).cast(SCHEMA), file, compression="zstd")

    def read(self, partition_key: str | None = None) -> pa.Table:
        """One row an id: id, reason, message, content_hash, run_id, partition_key, attempts int32, at; as last seen."""
        with connect() as connection:
            connection.register("recorded", self._recorded(partition_key))
            newest = (
                "SELECT * FROM recorded "
                'QUALIFY row_number() OVER (PARTITION BY partition_key, id ORDER BY "at" DESC) = 1 '
                "ORDER BY partition_key, id"
            )
            rows: pa.Table = connection.sql(newest).to_arrow_table()
        return rows.cast(SCHEMA)

    def retain(self, partition_key: str, run_id: str) -> None:
        """Drops what runs other than `run_id` put in: for the end of a run that tried the whole partition."""
        for path in self._files(partition_key):
            if run_id not in pq.read_table(path, columns=["run_id"])["run_id"].unique().to_pylist():
                path.unlink(missing_ok=True)

    def _recorded(self, partition_key: str | None) -> pa.Table:
        tables = [pq.read_table(path, schema=SCHEMA) for path in self._files(partition_key)]
        return pa.concat_tables([SCHEMA.empty_table(), *tables])

    def _files(self, partition_key: str | None) -> list[Path]:
        return sorted(self._folder.glob(f"{'*' if partition_key is None else folder_name(partition_key)}/*.parquet"))


def _rows(rows: pa.Table | Sequence[dict[str, str | None]]) -> pa.Table:
    try:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA)
        return table.select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise StoreError(f"quarantined rows need the text columns {ROW_SCHEMA.names}: {error}") from error

"""The demo's two sources on disk, and the edit that its second run has to find.

`build` writes the corpus as a DuckDB table ("docstrings") and a folder of Parquet files ("manuals"); `edit`
changes one row in a hundred of both and deletes ten altogether, as an application between two runs would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from demo import corpus

CHANGED_SHARE = 0.01
DELETED_PER_SOURCE = 5
_ADDED_SENTENCE = " This sentence was added between the two runs of the demo."


@dataclass(frozen=True)
class Edit:
    """How many rows of one source were changed and deleted."""

    changed: int
    deleted: int


def database(folder: Path) -> Path:
    """The DuckDB file with the table "docstrings"."""
    return folder / "corpus.duckdb"


def parquet_folder(folder: Path) -> Path:
    """The folder of the Parquet files: topic.parquet, readme.parquet, licence.parquet."""
    return folder / "manuals"


def build(folder: Path) -> dict[str, int]:
    """Write both sources below `folder` and return their row counts by name."""
    docstrings, manuals = corpus.docstrings(), corpus.manuals()
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(database(folder)) as connection:
        connection.register("corpus", docstrings)
        connection.execute("CREATE OR REPLACE TABLE docstrings AS SELECT * FROM corpus")
    parquet_folder(folder).mkdir(exist_ok=True)
    for kind in manuals["kind"].unique().to_pylist():
        pq.write_table(
            manuals.filter(manuals["kind"].to_numpy(False) == kind),
            parquet_folder(folder) / f"{kind}.parquet",
        )
    return {"docstrings": docstrings.num_rows, "manuals": manuals.num_rows}


def texts(folder: Path, source: str, ids: Sequence[str]) -> dict[str, str]:
    """The texts of the rows `ids` of "docstrings" or "manuals", by id."""
    with duckdb.connect() as connection:
        if source == "docstrings":
            connection.execute(f"ATTACH '{database(folder)}' AS corpus (READ_ONLY)")
            relation = "corpus.docstrings"
        else:
            relation = f"read_parquet('{parquet_folder(folder)}/*.parquet')"
        rows = connection.execute(f"SELECT id, text FROM {relation} WHERE id IN (SELECT unnest(?))", [list(ids)])
        return dict(rows.fetchall())


def edit(folder: Path) -> dict[str, Edit]:
    """Change and delete rows of both sources (the ids alone decide which); returns the counts by source."""
    with duckdb.connect(database(folder)) as connection:
        docstrings = _edit_table(connection, "docstrings")
    with duckdb.connect() as connection:
        files = sorted(parquet_folder(folder).glob("*.parquet"))
        connection.execute(
            "CREATE TABLE manuals AS SELECT * FROM read_parquet(?, filename = 'file')",
            [[str(file) for file in files]],
        )
        manuals = _edit_table(connection, "manuals")
        for file in files:
            rows = connection.sql("SELECT * EXCLUDE (file) FROM manuals WHERE file = ? ORDER BY id", params=[str(file)])
            pq.write_table(rows.to_arrow_table(), file)
    return {"docstrings": docstrings, "manuals": manuals}


def _edit_table(connection: duckdb.DuckDBPyConnection, table: str) -> Edit:
    ids = [row[0] for row in connection.execute(f"SELECT id FROM {table} ORDER BY md5(id)").fetchall()]
    changed = ids[: round(CHANGED_SHARE * len(ids))]
    deleted = ids[len(changed) : len(changed) + DELETED_PER_SOURCE]
    connection.execute(
        f"UPDATE {table} SET text = text || ? WHERE id IN (SELECT unnest(?))", [_ADDED_SENTENCE, changed]
    )
    connection.execute(f"DELETE FROM {table} WHERE id IN (SELECT unnest(?))", [deleted])
    return Edit(len(changed), len(deleted))

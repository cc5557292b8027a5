"""A table of short texts that goes on changing, and what must be in the store and on the server for it."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt

from fletcher_core import Embedder
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.reconcile import reconcile
from fletcher_core.search import search
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import Generation, VectorStore

COLLECTION = "notes"
# Of the vectors of one text by two engines, of which one may have stood in for the other.
_LEAST_COSINE = 0.9999
_WORDS = [
    "river",
    "stone",
    "lamp",
    "wheel",
    "bread",
    "violin",
    "harbour",
    "winter",
    "ticket",
    "garden",
    "engine",
    "letter",
    "copper",
    "forest",
    "mirror",
]


@dataclass
class Notes:
    """Rows (id -> text) in a DuckDB table, by `change`, always as the same seed has it.

    Args:
        database: file of the table.
        chance: what decides.
    """

    database: Path
    chance: random.Random
    rows: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> DuckDBTable:
        """The table, with a metadata column."""
        return DuckDBTable(self.database, COLLECTION, metadata_columns=("tag",))

    def change(self, changed: int, deleted: int, added: int) -> None:
        """Change, delete and add rows here; `write` puts them into the database."""
        known = sorted(self.rows)
        for id_ in self.chance.sample(known, min(changed, len(known))):
            self.rows[id_] = self._text(id_)
        for id_ in self.chance.sample(known, min(deleted, len(known))):
            del self.rows[id_]
        for _ in range(added):
            id_ = f"note-{self.chance.randrange(10**9)}"
            self.rows[id_] = self._text(id_)

    def write(self) -> None:
        """Make the table anew."""
        ids = list(self.rows)
        table = {"id": ids, "text": [self.rows[id_] for id_ in ids], "tag": [id_[-1] for id_ in ids]}
        with duckdb.connect(str(self.database)) as connection:
            rows = list(zip(*table.values(), strict=True))
            connection.execute("CREATE OR REPLACE TABLE notes (id VARCHAR, text VARCHAR, tag VARCHAR)")
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)
            connection.execute("COMMIT")

    def _text(self, id_: str) -> str:
        words = " ".join(self.chance.choices(_WORDS, k=self.chance.randint(3, 30)))
        return f"{id_} says {words} {self.chance.randrange(10**6)}"


@dataclass(frozen=True)
class Books:
    """What is wrong: ids `lost` from the store or `doubled` in it, `wrong` vectors, rows that `search` misses or shows
    though they are gone, and what reconciling found in the end."""

    lost: int
    doubled: int
    wrong: int
    search_missing: int
    search_stale: int
    problem: str

    @property
    def balance(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.search_missing or self.search_stale or self.problem)


def check_books(rows: dict[str, str], store: VectorStore, client: LongbowClient, embedder: Embedder) -> Books:
    """Compare the store and the server with a clean embedding of `rows`: id -> text of all that must be there."""
    generation = store.current()
    assert generation is not None
    stored = _stored(generation)
    ids = [id_ for id_, _ in stored]
    present = dict(stored)
    common = [id_ for id_ in rows if id_ in present]
    expected = embedder.embed([rows[id_] for id_ in common])
    cosines = [float(present[id_] @ right) for id_, right in zip(common, expected, strict=True)]
    report = reconcile(generation, client)
    found = {hit.id for hit in search(store, client, embedder, "a note", k=len(rows) + 50)}
    return Books(
        lost=len(rows.keys() - present.keys()),
        doubled=len(ids) - len(present) + len(present.keys() - rows.keys()),
        wrong=sum(not cosine >= _LEAST_COSINE for cosine in cosines),
        search_missing=len(rows.keys() - found),
        search_stale=len(found - rows.keys()),
        problem="" if report.balances else (report.problem or f"{report.still_missing} rows are not on the server"),
    )


def _stored(generation: Generation) -> list[tuple[str, npt.NDArray[np.float32]]]:
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT id, vector FROM ({generation.live_sql()})").fetchall()
    return [(id_, np.array(vector, np.float32)) for id_, vector in rows]

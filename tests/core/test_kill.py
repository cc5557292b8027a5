"""kill -9 at random moments of a materialization, over a source that goes on changing: nothing lost, nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest

from fletcher_core import Embedder
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.search import search
from fletcher_core.store import VectorStore

KILLS = int(os.environ.get("FLETCHER_KILLS", "6"))
TARGET = Path(__file__).with_name("kill_target.py")


def rewrite(database: Path, chance: random.Random, rows: dict[str, str]) -> None:
    """Change, delete and add a few rows; the database has them when this returns."""
    for id_ in chance.sample(sorted(rows), 12):
        rows[id_] = f"{rows[id_].split(' v')[0]} v{chance.randrange(10**6)}"
    for id_ in chance.sample(sorted(rows), 4):
        del rows[id_]
    for _ in range(6):
        number = chance.randrange(10**6)
        rows[f"note-{number}"] = f"a note about {number} things"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE OR REPLACE TABLE notes (id VARCHAR, text VARCHAR, tag VARCHAR)")
        connection.executemany(
            "INSERT INTO notes VALUES (?, ?, ?)", [(id_, text, id_[-1]) for id_, text in rows.items()]
        )


def run(*arguments: str, kill_after: float | None = None) -> str:
    process = subprocess.Popen(
        [sys.executable, str(TARGET), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if kill_after is not None and first:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return first + output


@pytest.fixture
def longbow(tmp_path: Path):  # type: ignore[no-untyped-def]
    yield ensure_embedded(tmp_path / "longbow")
    stop_embedded(tmp_path / "longbow")


def test_killed_runs_lose_nothing_and_repeat_nothing(tmp_path: Path, longbow, minilm: Embedder) -> None:  # type: ignore[no-untyped-def]
    chance = random.Random(os.environ.get("FLETCHER_SEED", "kill"))
    database, root = tmp_path / "notes.duckdb", tmp_path / "store"
    rows = {f"note-{n}": f"note {n} says {' '.join(chance.sample('abcdefghij', 8))}" for n in range(220)}
    arguments = (str(database), str(root), longbow.data, longbow.meta)
    finished = 0
    for _ in range(KILLS):
        rewrite(database, chance, rows)
        finished += "finished" in run(*arguments, kill_after=chance.uniform(0.0, 2.0))
    assert run(*arguments).strip().endswith("finished")

    with VectorStore.open(root, collection="notes") as store:
        generation = store.current()
        assert generation is not None
        with duckdb.connect() as connection:
            stored = connection.execute(f"SELECT id, vector, tag FROM ({generation.live_sql()})").fetchall()
            glob = root / generation.name / "segments" / "**" / "*.parquet"
            outsider = connection.execute(
                f"""SELECT id FROM (SELECT * FROM '{glob}'
                    QUALIFY row_number() OVER (PARTITION BY partition_key, id ORDER BY sequence DESC) = 1)
                    WHERE op = 'upsert'"""
            ).fetchall()
        assert sorted(id_ for id_, _, _ in stored) == sorted(rows)
        assert sorted(id_ for (id_,) in outsider) == sorted(rows)
        expected = dict(zip(rows, minilm.embed(list(rows.values())), strict=True))
        for id_, vector, tag in stored:
            assert np.abs(np.array(vector, np.float32) - expected[id_]).max() < 1e-3, id_
            assert tag == id_[-1]
        client = LongbowClient(LongbowSettings(longbow.data, longbow.meta))
        hits = search(store, client, minilm, "a note", k=len(rows) + 50)
        assert sorted(hit.id for hit in hits) == sorted(rows)

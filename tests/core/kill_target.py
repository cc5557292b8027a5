"""One materialization in a process of its own, for `test_kill.py` to kill: source, store and Longbow by argument."""

import sys
from pathlib import Path

from fletcher_core import Embedder
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore

# Small segments, committed at once: as many moments as possible at which a kill can do harm.
SETTINGS = MaterializeSettings(segment_rows=16, commit_seconds=0.0, max_segments=6)


def main(database: str, store: str, data: str, meta: str) -> None:
    embedder = Embedder.load(precision="fp32", threads=1)
    client = LongbowClient(LongbowSettings(data, meta))
    vectors = VectorStore.open(Path(store), collection="notes")
    print("started", flush=True)
    source = DuckDBTable(database, "notes", metadata_columns=("tag",))
    report = materialize(source, embedder=embedder, store=vectors, longbow=client, settings=SETTINGS)
    print(f"finished {report.delivery.problem}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

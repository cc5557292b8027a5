"""Short measurements of the Fletcher in one tree, in a process of its own: what `bench/compare.py` asks, one by one.

    PYTHONPATH=$PWD:$PWD/kernels .venv/bin/python bench/short_form.py --help    # or see how compare.py starts it

Reads names of measurements from standard input, a line each, and answers each with a line of JSON: {"seconds": of one
item} or {"error": why not}. The first answer is a line with the file that `fletcher_core` was imported from.
"""

import argparse
import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp
from types import ModuleType
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from fletcher_core import Embedder
    from fletcher_core.changes import Changes
    from fletcher_core.sources import Source
    from fletcher_core.store import Generation

# A measurement that takes longer hangs: the process dies with a trace of its threads.
PATIENCE = 120
ENGINE_TEXTS = 128
OPENVINO_TEXTS = 64
PIPELINE_ROWS = 128
TABLE_ROWS = 100_000
TOKENIZER_SECONDS = 0.15
LATENCY_CALLS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="JSON, a list of texts")
    parser.add_argument("--native", type=Path, required=True, help="the folder whose fletcher_core/ has the extensions")
    parser.add_argument("--folder", type=Path, required=True, help="for tables and stores; may be kept for the next")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import_from_path(options.native)
    import fletcher_core

    print(json.dumps({"imported": fletcher_core.__file__}), file=answers, flush=True)
    measurements = Measurements(json.loads(options.texts.read_text("utf-8")), options.folder)
    for line in sys.stdin:
        print(json.dumps(answer(measurements, line.strip())), file=answers, flush=True)


def answer(measurements: "Measurements", name: str) -> dict[str, float | str]:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        return {"seconds": MEASUREMENTS[name].run(measurements)}
    except Exception as error:  # noqa: BLE001 - an older tree may lack anything; the parent says so and goes on
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        faulthandler.cancel_dump_traceback_later()


def import_from_path(native: Path) -> None:
    """Lets PYTHONPATH decide which Fletcher is imported, and `native` which compiled extensions go with it.

    An editable installation puts a finder before everything else, which would always answer with its own tree.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "known_wheel_files")]
    sys.meta_path.insert(0, Extensions(native))


@dataclass
class Extensions:
    """Finds compiled modules of Fletcher in `folder`, and nothing else."""

    folder: Path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("fletcher_"):
            return None
        stem = self.folder.joinpath(*fullname.split("."))
        files = (stem.with_name(stem.name + suffix) for suffix in EXTENSION_SUFFIXES)
        found = next((file for file in files if file.exists()), None)
        return spec_from_file_location(fullname, found) if found else None


class Measurements:
    """Each method times one thing once and returns seconds for an item of it. What it needs is made on first use."""

    def __init__(self, texts: list[str], folder: Path) -> None:
        self.texts = texts
        self.folder = folder
        self._stores = count()

    def tokenizer(self) -> float:
        """Seconds for a text, one thread."""
        encode = self.embedder.encoder.encode
        return best(lambda: encode(self.texts), TOKENIZER_SECONDS) / len(self.texts)

    def engine(self) -> float:
        """Seconds for a text that is tokenized already, on the engine that this machine gets."""
        return engine_seconds(self.embedder, self.texts[:ENGINE_TEXTS])

    def openvino(self) -> float:
        """The same on the engine that runs on every CPU."""
        return engine_seconds(self.openvino_embedder, self.texts[:OPENVINO_TEXTS])

    def latency(self) -> float:
        """The median of seconds for one short text in a call of its own."""
        short = [text for text in self.texts if len(text) <= 200][:LATENCY_CALLS]
        return median(once(partial(self.embedder.embed, [text])) for text in short)

    def pipeline(self) -> float:
        """Seconds for a row of a DuckDB table that goes into a new store."""
        from fletcher_core.pipeline import materialize
        from fletcher_core.store import VectorStore

        folder = self.folder / f"store-{os.getpid()}-{next(self._stores)}"
        with VectorStore.open(folder, collection="bench") as store:
            seconds = once(lambda: materialize(self.table, embedder=self.embedder, store=store))
        return seconds / min(PIPELINE_ROWS, len(self.texts))

    def change_detection(self) -> float:
        """Seconds for a row of a table whose rows are all in the store, unchanged."""
        from fletcher_core.changes import detect_changes
        from fletcher_core.sources import Partition

        source, generation = self.filled
        found: list[Changes] = []
        with generation.locked("", "bench"), TemporaryDirectory(dir=self.folder) as work:
            seconds = once(lambda: found.append(detect_changes(source, Partition(), generation, Path(work))))
        if found[0].unchanged != TABLE_ROWS:
            raise AssertionError(f"{found[0].unchanged} rows are unchanged, not {TABLE_ROWS}")
        return seconds / TABLE_ROWS

    @cached_property
    def embedder(self) -> "Embedder":
        from fletcher_core import Embedder

        return Embedder.load()

    @cached_property
    def openvino_embedder(self) -> "Embedder":
        from fletcher_core import Embedder

        return Embedder.load(engine="openvino")

    @cached_property
    def table(self) -> "Source":
        """A DuckDB table of the texts."""
        from fletcher_core.sources import DuckDBTable

        database = Path(mkdtemp(dir=self.folder)) / "texts.duckdb"
        texts = self.texts[:PIPELINE_ROWS]
        rows = pa.table({"id": range(len(texts)), "text": texts})  # noqa: F841 - DuckDB reads it by its name
        with duckdb.connect(str(database)) as connection:
            connection.execute("CREATE TABLE texts AS SELECT * FROM rows")
        return DuckDBTable(database, "texts")

    @cached_property
    def filled(self) -> "tuple[Source, Generation]":
        """A DuckDB table and the part of a store that has all its rows; made once a folder, which takes a second."""
        from fletcher_core.models.card import ModelCard
        from fletcher_core.sources import DuckDBTable
        from fletcher_core.store import VectorStore

        folder, is_there = self.folder / "table", (self.folder / "table").exists()
        folder.mkdir(exist_ok=True)
        source = DuckDBTable(folder / "docs.duckdb", "docs")
        store = VectorStore.open(folder / "store", collection="bench")
        generation = store.generation(ModelCard("bench", "beef", 1), pa.schema([]))
        if not is_there:
            with duckdb.connect(str(folder / "docs.duckdb")) as connection:
                text = "concat('Document ', i, ': ', repeat(concat(md5(i::VARCHAR), ' '), 8))"
                connection.execute(f"CREATE TABLE docs AS SELECT i AS id, {text} AS text FROM range({TABLE_ROWS}) t(i)")
            fill(source, generation, folder)
        return source, generation


def fill(source: "Source", generation: "Generation", folder: Path) -> None:
    """Stores every row of the source, as a first materialization would, with a made-up vector of one element."""
    from fletcher_core.changes import detect_changes
    from fletcher_core.sources import Partition

    with generation.locked("", "bench"):
        changes = detect_changes(source, Partition(), generation, folder)
        rows = pq.read_table(changes.changes_path, columns=["id", "content_hash", "metadata_hash", "replaces"])
        added = {
            "op": pa.repeat("upsert", rows.num_rows),
            "tokens": pa.repeat(pa.scalar(70, pa.int32()), rows.num_rows),
            "truncated": pa.repeat(False, rows.num_rows),
            "vector": pa.FixedSizeListArray.from_arrays(pa.repeat(pa.scalar(1, pa.float32()), rows.num_rows), 1),
        }
        for name, column in added.items():
            rows = rows.append_column(name, column)
        generation.write_segment("", rows, "bench")
        generation.compact_if_needed("", 32)


@dataclass(frozen=True)
class Measurement:
    """`run` gives seconds for an item; people read `scale` times that, or as many `unit` in a second without one."""

    unit: str
    run: Callable[[Measurements], float]
    scale: float | None = None

    def shown(self, seconds: float) -> float:
        return self.scale * seconds if self.scale else 1 / seconds


MEASUREMENTS = {
    "tokenizer": Measurement("texts/s", Measurements.tokenizer),
    "engine": Measurement("texts/s", Measurements.engine),
    "OpenVINO engine": Measurement("texts/s", Measurements.openvino),
    "pipeline": Measurement("rows/s", Measurements.pipeline),
    "change detection": Measurement("s / 1M rows", Measurements.change_detection, 1e6),
    "one text": Measurement("ms", Measurements.latency, 1e3),
}


def engine_seconds(embedder: "Embedder", texts: list[str]) -> float:
    sequences = embedder.encoder.encode(texts).sequences
    # Trees from before engines said how they want their batches had `plan` on the engine itself.
    plan = getattr(embedder.engine, "batching", embedder.engine).plan(sequences.lengths)
    return once(lambda: list(embedder.engine.run(sequences.take(rows) for rows in plan))) / len(sequences)


def once(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def best(action: Callable[[], object], seconds: float) -> float:
    """The fastest of all calls that begin within `seconds`."""
    end = time.perf_counter() + seconds
    fastest = once(action)
    while time.perf_counter() < end:
        fastest = min(fastest, once(action))
    return fastest


if __name__ == "__main__":
    main()

